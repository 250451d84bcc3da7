"""Checkpoint folders: `config.json`, `model.safetensors` and a model card.

A folder from a stranger is data, never code: no pickle is read, no value of the config becomes a path, and
the header of the weights is checked before tensors are made of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from qmamba.checkpoints.bases import (
    base_tensors,
    check_unchanged,
    fetcher,
    is_stored,
    pin_cached,
    stored_state,
)
from qmamba.checkpoints.card import render_card
from qmamba.checkpoints.config import ModelConfig
from qmamba.checkpoints.file_names import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from qmamba.checkpoints.hub import PushOptions, check_repo_id, push
from qmamba.checkpoints.safetensors_file import (
    Shapes,
    read_tensors,
    read_weights,
    serialise,
    shapes_in,
    write_files,
)
from qmamba.checks import DTYPES
from qmamba.errors import CheckpointError, QMambaError
from qmamba.models import create_model, get_architecture
from qmamba.quantization.grid import Grid
from qmamba.quantization.network import activation_quantizers, grids_of, prepare, set_grids
from qmamba.quantization.packing import layout, own_types, unpacked
from qmamba.quantization.planning import Plan, plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

_MAX_CONFIG_BYTES = 1 << 20
_INTEGERS = {torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL"}
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Return the config of a checkpoint folder; reads `config.json` only.

    Raises:
        CheckpointError: no such folder or file, not a qmamba config, or a wrong value; one line.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; a checkpoint is one with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_FILE} here, so it is not a qmamba checkpoint")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path}: larger than {_MAX_CONFIG_BYTES} bytes, so it is not a qmamba config")
    try:
        return ModelConfig.from_json(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def verify_checkpoint(folder: str | os.PathLike[str]) -> ModelConfig:
    """Check a folder's config, and size, sha256 and header of its weights; builds no network.

    Raises:
        CheckpointError: as `load_checkpoint`, except that names and shapes of the weights are not compared.
    """
    config = read_config(folder)
    _data(Path(folder), config)
    return config


def push_checkpoint(folder: str | os.PathLike[str], repo_id: str, **options: Unpack[PushOptions]) -> str:
    """Upload a checkpoint folder to the Hub in one commit, after it has been verified.

    Repository and branch are created if they do not exist. Config, weights and card are sent, no other file.

    Args:
        folder: a checkpoint, as :func:`save_checkpoint` writes it.
        repo_id: `user/repo`.
        options: see :class:`qmamba.checkpoints.hub.PushOptions`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the folder is not a valid checkpoint; nothing was sent.
        HubError: the upload failed; one line with what to do.
    """
    check_repo_id(repo_id)
    verify_checkpoint(folder)
    options.setdefault("commit_message", "Upload a qmamba checkpoint")
    return push(folder, (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE), repo_id, **options).url


def load_checkpoint(
    folder: str | os.PathLike[str],
    *,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, ModelConfig]:
    """Build the network that a checkpoint folder describes, and load its weights strictly.

    The global random state is left as it was.

    Args:
        folder: a folder with `config.json` and `model.safetensors`.
        local_files_only: for the base weights that the config names, take them from the cache and never use
            the network. A checkpoint without bases never uses it.
        cache_dir, token: for base weights, as for `qmamba.load`.
        dtype: of the network. Base weights are read into it one by one.

    Returns:
        The network, of that type on the CPU whatever type the file holds, in evaluation mode, and its config.

    Raises:
        CheckpointError: a file is missing, damaged or truncated (sha256), the weights are a pickle, or stored
            and base weights are not together exactly those of the architecture (the first names and shapes
            that differ are given).
        HubError: base weights are neither in the cache nor can be downloaded.
    """
    folder = Path(folder)
    config = read_config(folder)
    data = _data(folder, config)
    network = _build(folder, config)
    path = folder / WEIGHTS_FILE
    made = None if config.quantization is None else plan(network, config.quantization)
    if config.quantization is not None and made is not None:
        prepare(network, config.quantization, made)
    stored, own = is_stored(config), network.state_dict()
    held = {name: v for name, v in own.items() if stored(name)}
    held = held if made is None else layout(held, made)
    _check_fit(folder, config, held, shapes_in(path, data), own_types(network, held))
    state = read_tensors(path, data)
    del data  # before base weights are read: both may be large
    if made is not None:
        state, grids = _unpacked(path, state, own, made)
        set_grids(network, grids)
    frozen = {name: tuple(value.shape) for name, value in own.items() if not stored(name)}
    fetch = fetcher(local_files_only=local_files_only, cache_dir=cache_dir, token=token)
    names_of = get_architecture(config.arch).names_of
    state |= base_tensors(config.bases, frozen, fetch, names_of=names_of, dtype=dtype)
    config = config.replace(bases=pin_cached(config.bases, fetch))
    network.load_state_dict(state, strict=True, assign=True)
    del state
    return network.to(dtype).eval(), config


def read_stored(folder: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Return a folder's config and the tensors that it stores, without its bases, as float32 on the CPU.

    Raises:
        CheckpointError: as `load_checkpoint`; a quantized checkpoint is refused, too.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config.quantization is not None:
        raise CheckpointError(f"{folder} must be in float, got a quantized checkpoint; use the original")
    return config, read_tensors(folder / WEIGHTS_FILE, _data(folder, config))


def save_checkpoint(
    folder: str | os.PathLike[str],
    network: nn.Module,
    config: ModelConfig,
    *,
    dtype: torch.dtype | None = None,
    card: str | None = None,
) -> ModelConfig:
    """Write `model.safetensors`, `README.md` and `config.json` into a folder.

    Each file is written completely and then renamed, the config last: an interruption leaves a folder that
    is refused when it is loaded. Equal weights give equal bytes. If the config names bases, only the tensors
    that its architecture calls trained are stored.

    Args:
        folder: is created if it does not exist; files of the same names are replaced, others are left alone.
        network: the module that `create_model(config.arch, **config.overrides)` builds, on any device. Frozen
            weights that bases hold may be on the device "meta".
        config: is written with sha256, size and type of the weights filled in, and with the sha256 of bases
            that lack it and are in the Hub's cache.
        dtype: float32, float16 or bfloat16 for the stored weights; the config's by default.
        card: text of the model card; made from the config by default.

    Returns:
        The config as written.

    Raises:
        CheckpointError: the network is of another architecture, a weight is NaN or too large for the type, a
            frozen weight differs from its base, the type is not one of the three, or the folder cannot be
            written.
    """
    folder = Path(folder)
    name = config.dtype if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"dtype of stored weights must be one of {', '.join(DTYPES)}, got {name}")
    _check_same(network, config)
    check_unchanged(network, config)
    _check_quantized(network, config)
    state = stored_state(network, config)
    data = serialise(state, getattr(torch, name), own_types(network, state))
    config = config.replace(
        weights_sha256=hashlib.sha256(data).hexdigest(),
        weights_bytes=len(data),
        dtype=name,
        bases=pin_cached(config.bases),
        tokenizers=pin_cached(config.tokenizers),
    )
    files = (
        (WEIGHTS_FILE, data),
        (CARD_FILE, (render_card(config) if card is None else card).encode()),
        (CONFIG_FILE, config.to_json().encode()),
    )
    write_files(folder, files, "checkpoint")
    return config


def _data(folder: Path, config: ModelConfig) -> bytes:
    return read_weights(folder / WEIGHTS_FILE, config.weights_sha256, config.weights_bytes, CONFIG_FILE)


def _check_same(network: nn.Module, config: ModelConfig) -> None:
    """Refuse a config of another network; some overrides (windows) leave no trace in the weights' shapes."""
    arch, overrides = getattr(network, "arch", config.arch), getattr(network, "overrides", config.overrides)
    if arch != config.arch:
        raise CheckpointError(f"the network is a {arch!r}, the config says {config.arch!r}: make them agree")
    _check_output(config)
    asked = ModelConfig(name=config.name, arch=arch, overrides=overrides).overrides
    for key in sorted((asked.keys() | config.overrides.keys()) - {"drop_path"}):  # it acts in training only
        ours, theirs = asked.get(key), config.overrides.get(key)
        if ours != theirs:
            raise CheckpointError(f"the network has {key}={ours}, the config {key}={theirs}: make them agree")


def _check_quantized(network: nn.Module, config: ModelConfig) -> None:
    """Refuse a float network under a config of a quantized one, and the other way round."""
    quantized = bool(grids_of(network) or activation_quantizers(network))
    if quantized != (config.quantization is not None):
        have, says = ("quantized", "in float") if quantized else ("in float", "quantized")
        raise CheckpointError(f"the network is {have}, the config says it is {says}: make them agree")


def _unpacked(
    path: Path, state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], made: Plan
) -> tuple[dict[str, torch.Tensor], dict[str, Grid]]:
    try:
        return unpacked(state, own, made)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_output(config: ModelConfig) -> None:
    output = get_architecture(config.arch).output
    if output != config.output:
        raise CheckpointError(
            f"config: output must be {output!r} for {config.arch!r}, got {config.output!r}: make them agree"
        )


def _build(folder: Path, config: ModelConfig) -> nn.Module:
    try:
        _check_output(config)
        network = _build_empty(config)
        if network is None:
            # An untrained network draws its weights; the caller's random state must stay as it was.
            with torch.random.fork_rng(devices=[]):
                network = create_model(config.arch, **config.overrides)
    except (QMambaError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: this qmamba cannot build {config.arch!r} as described: {why}"
        ) from error
    return network


def _build_empty(config: ModelConfig) -> nn.Module | None:
    """Return the network on the device "meta", where absurd widths cost nothing before weights are compared.

    None for an architecture that computes with tensors while it is built, or leaves buffers outside its
    state there.
    """
    try:
        with torch.device("meta"):
            network = create_model(config.arch, **config.overrides)
    except (NotImplementedError, RuntimeError):
        return None
    buffers = {name for name, buffer in network.named_buffers() if buffer.is_meta}
    return network if buffers <= network.state_dict().keys() else None


def _check_fit(
    folder: Path,
    config: ModelConfig,
    own: Mapping[str, torch.Tensor],
    found: Shapes,
    types: Mapping[str, torch.dtype],
) -> None:
    """Refuse a file whose tensors are not exactly these, with the first names that differ.

    Floating tensors must be of the config's type, except for those in `types`.
    """
    expected = {key: tuple(value.shape) for key, value in own.items()}
    problems = []
    for what, names in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            problems.append(f"{what} {', '.join(repr(name) for name in sorted(names)[:2])}{more}")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name][1]:
            problems.append(f"{name!r} must be of shape {list(expected[name])}, got {list(found[name][1])}")
            break
    if problems:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: not the weights of {config.arch!r} as the config describes it: "
            f"{'; '.join(problems)}: use the config that they were saved with"
        )
    for name, (dtype, _) in found.items():
        stored = _FLOATS.get(dtype, dtype)
        kept = str(types[name]).removeprefix("torch.") if name in types else config.dtype
        expected_type = _INTEGERS.get(own[name].dtype, kept)
        if stored != expected_type:
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE}: {name!r} must be {expected_type}, got {stored}: "
                "use the config that they were saved with"
            )
