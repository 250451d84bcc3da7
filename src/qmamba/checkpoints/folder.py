"""Checkpoint folders: `config.json`, `model.safetensors` and a model card.

A folder from a stranger is data, never code: no pickle is read, no value of the config becomes a path, and
the header of the weights is checked before anything is made of it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from qmamba.checkpoints.card import render_card
from qmamba.checkpoints.config import ModelConfig
from qmamba.checkpoints.file_names import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
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

_MAX_CONFIG_BYTES = 1 << 20
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The config of a checkpoint folder. Reads `config.json` only.

    Raises:
        CheckpointError: no such folder or file, not a qmamba config, or a value that is wrong; one line.
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
    """Check a folder's config and that its weights are whole (size, sha256, header); builds no network.

    Raises:
        CheckpointError: as `load_checkpoint`, but for what only the network can tell.
    """
    config = read_config(folder)
    _data(Path(folder), config)
    return config


def load_checkpoint(folder: str | os.PathLike[str]) -> tuple[nn.Module, ModelConfig]:
    """Build the network that a checkpoint folder describes and load its weights, strictly.

    Args:
        folder: a folder with `config.json` and `model.safetensors`.

    The global random state is left as it was.

    Returns:
        The network, float32 on the CPU whatever type the file holds, in eval mode, and its config.

    Raises:
        CheckpointError: a file is missing, damaged or truncated (sha256), the weights are a pickle, or they
            do not fit the architecture (the first names and shapes that differ are given).
    """
    folder = Path(folder)
    config = read_config(folder)
    data = _data(folder, config)
    network = _build(folder, config)
    path = folder / WEIGHTS_FILE
    _check_fit(folder, config, network, shapes_in(path, data))
    network.load_state_dict(read_tensors(path, data), strict=True, assign=True)
    return network.float().eval(), config


def save_checkpoint(
    folder: str | os.PathLike[str],
    network: nn.Module,
    config: ModelConfig,
    *,
    dtype: torch.dtype | None = None,
    card: str | None = None,
) -> ModelConfig:
    """Write `model.safetensors`, `README.md` and `config.json` into a folder, which is made if need be.

    Each file is moved into its place as a whole, the config last: an interruption leaves a folder that is
    refused when it is loaded. Equal weights give equal bytes.

    Args:
        folder: where to; files of the same names are replaced, others are left alone.
        network: the module that `create_model(config.arch, **config.overrides)` builds, on any device.
        config: what to write; sha256, size and type of the weights are filled in.
        dtype: float32, float16 or bfloat16 for the stored weights; the config's by default.
        card: text of the model card; made from the config by default.

    Returns:
        The config as written.

    Raises:
        CheckpointError: the network is of another architecture, a weight is NaN or too large for the type,
            the type is not one of the three, or the folder cannot be written.
    """
    folder = Path(folder)
    name = config.dtype if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"weights are stored as {', '.join(DTYPES)}, not {name}")
    _check_same(network, config)
    data = serialise(network.state_dict(), getattr(torch, name))
    config = config.replace(
        weights_sha256=hashlib.sha256(data).hexdigest(), weights_bytes=len(data), dtype=name
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
    """Some overrides (windows, say) leave no trace in the weights' shapes: compare what was asked for."""
    arch, overrides = getattr(network, "arch", config.arch), getattr(network, "overrides", config.overrides)
    if arch != config.arch:
        raise CheckpointError(f"the network is a {arch!r}, the config says {config.arch!r}: make them agree")
    asked = ModelConfig(name=config.name, arch=arch, overrides=overrides).overrides
    for key in sorted((asked.keys() | config.overrides.keys()) - {"drop_path"}):  # it acts in training only
        ours, theirs = asked.get(key), config.overrides.get(key)
        if ours != theirs:
            raise CheckpointError(f"the network has {key}={ours}, the config {key}={theirs}: make them agree")


def _build(folder: Path, config: ModelConfig) -> nn.Module:
    from qmamba.models import create_model

    try:
        network = _build_empty(config)
        if network is None:
            # An untrained network draws its weights; the caller's random numbers must not notice.
            with torch.random.fork_rng(devices=[]):
                network = create_model(config.arch, **config.overrides)
    except (QMambaError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: this qmamba cannot build {config.arch!r} as described: {why}"
        ) from error
    return network


def _build_empty(config: ModelConfig) -> nn.Module | None:
    """The network without memory: a config with absurd widths costs nothing before its weights are compared.

    None for an architecture that computes with tensors while it is built, or keeps some outside its state.
    """
    from qmamba.models import create_model

    try:
        with torch.device("meta"):
            network = create_model(config.arch, **config.overrides)
    except (NotImplementedError, RuntimeError):
        return None
    buffers = {name for name, _ in network.named_buffers()}
    return network if buffers <= network.state_dict().keys() else None


def _check_fit(folder: Path, config: ModelConfig, network: nn.Module, found: Shapes) -> None:
    """Refuse weights that are not exactly those of the network, with the first names that differ."""
    own = network.state_dict()
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
            problems.append(f"{name!r} has shape {list(found[name][1])} where {list(expected[name])} is due")
            break
    if problems:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: not the weights of {config.arch!r} as the config describes it: "
            f"{'; '.join(problems)}: use the config that they were saved with"
        )
    for name, (dtype, _) in found.items():
        stored = _FLOATS.get(dtype, dtype)
        if stored != config.dtype and (own[name].is_floating_point() or dtype in _FLOATS):
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE}: {name!r} is {stored} where {config.dtype} is due: "
                "use the config that they were saved with"
            )
