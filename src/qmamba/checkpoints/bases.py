"""Base weights: frozen tensors that a checkpoint names by Hub id and digest, and does not store."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from qmamba.checkpoints.config import ModelConfig
from qmamba.checkpoints.hub import fetch_file
from qmamba.errors import CheckpointError, HubError
from qmamba.models.registry import BaseWeights, TokenizerFile, get_architecture
from qmamba.quantization.packing import packed_state

_BLOCK = 1 << 20

Fetch = Callable[[BaseWeights | TokenizerFile], Path]
NamesOf = Callable[[str], Sequence[str]]
P = TypeVar("P", BaseWeights, TokenizerFile)


def is_stored(config: ModelConfig) -> Callable[[str], bool]:
    """Return whether a checkpoint stores the tensor of a name: all of them, unless it names bases.

    Raises:
        CheckpointError: the config names bases, and its architecture has no frozen weights.
    """
    if not config.bases:
        return lambda name: True
    trained = get_architecture(config.arch).trained
    if trained is None:
        raise CheckpointError(f"config: bases must be empty, since {config.arch!r} has no frozen weights")
    return trained


def stored_state(network: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors of a network that its checkpoint stores, by name; quantized weights as codes.

    Raises:
        CheckpointError: a weight was changed since it was quantized.
    """
    stored = is_stored(config)
    state = {name: value for name, value in network.state_dict().items() if stored(name)}
    return state if config.quantization is None else packed_state(network, state)


def fetcher(
    *,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Fetch:
    """Return a function that finds the file of base weights in the Hub's cache, or downloads it."""

    def fetch(base: BaseWeights | TokenizerFile) -> Path:
        try:
            return fetch_file(
                base.repo, base.filename, revision=base.revision, local_files_only=local_files_only,
                cache_dir=cache_dir, token=token,
            )  # fmt: skip
        except HubError as error:
            what = "base weights" if isinstance(base, BaseWeights) else "tokenizer"
            raise HubError(f"{what}: {error}") from error

    return fetch


def pin_cached(bases: Sequence[P], fetch: Fetch | None = None) -> tuple[P, ...]:
    """Fill in the digests that bases lack, from files in the Hub's cache; bases that are not there stay.

    Args:
        bases: of a checkpoint; or its tokenizers.
        fetch: of `fetcher`; by default it looks in the standard cache and never uses the network.
    """
    fetch = fetcher(local_files_only=True) if fetch is None else fetch
    pinned = []
    for base in bases:
        try:
            digest = base.sha256 or _digest(fetch(base))
        except HubError:
            digest = ""
        pinned.append(dataclasses.replace(base, sha256=digest))
    return tuple(pinned)


def load_bases(
    network: nn.Module,
    bases: Sequence[BaseWeights],
    fetch: Fetch | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    assign: bool = False,
) -> tuple[BaseWeights, ...]:
    """Load base weights into an untrained network: what is frozen, and what the files hold beside it.

    Statistics of batch norms, which a training may change and a checkpoint stores, start from the base's.

    Args:
        network: of `create_model`, changed in place.
        bases: such as those of its architecture.
        fetch: of `fetcher`; by default it downloads what is not in the Hub's cache.
        dtype: of the tensors, where floating.
        assign: whether the network takes the tensors themselves, as one on the device "meta" must.

    Returns:
        The bases with their digests.

    Raises:
        HubError, CheckpointError: as `base_tensors`; the network is as it was.
    """
    fetch = fetcher() if fetch is None else fetch
    architecture = get_architecture(str(getattr(network, "arch", None)))
    trained = architecture.trained or (lambda name: True)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    frozen = {name: shape for name, shape in shapes.items() if not trained(name)}
    tensors = base_tensors(bases, frozen, fetch, optional=shapes, names_of=architecture.names_of, dtype=dtype)
    network.load_state_dict(tensors, strict=False, assign=assign)
    return pin_cached(bases, fetch)


def base_tensors(
    bases: Sequence[BaseWeights],
    shapes: Mapping[str, tuple[int, ...]],
    fetch: Fetch,
    optional: Mapping[str, tuple[int, ...]] | None = None,
    *,
    names_of: NamesOf | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return a network's frozen tensors from the files of its bases, on the CPU.

    Other tensors of the files, such as the head of a classifier, are left out.

    Args:
        bases: of the checkpoint.
        shapes: names and shapes of the frozen tensors of the network.
        fetch: of `fetcher`.
        optional: names and shapes of more tensors, which are returned where the files hold them.
        names_of: of the architecture.
        dtype: of floating tensors.

    Raises:
        HubError: a file is neither in the cache nor can be downloaded.
        CheckpointError: a file has another digest than its base names, or the files do not hold exactly
            these tensors.
    """
    found: dict[str, Tensor] = {}
    wanted = {**(optional or {}), **shapes}
    for base in bases:
        path = fetch(base)
        check_digest(path, base)
        for name, tensor in _tensors(path, base, wanted, names_of):
            if name in found:
                raise CheckpointError(f"bases: two of them hold {name!r}; name one of them")
            if tuple(tensor.shape) != wanted[name]:
                raise CheckpointError(
                    f"{base.repo}: {name!r} must be of shape {list(wanted[name])}, got "
                    f"{list(tensor.shape)}; name the base that the checkpoint was trained on"
                )
            found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if missing := sorted(shapes.keys() - found.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"bases: {missing[0]!r}{more} must be in one of them, got none that holds it")
    return found


def check_unchanged(network: nn.Module, config: ModelConfig) -> None:
    """Refuse a network whose frozen weights are no longer those of its bases, which would be lost.

    Only bases in the standard Hub cache are compared, and frozen weights that are not on the device "meta".

    Raises:
        CheckpointError: a frozen weight differs from its base.
    """
    stored = is_stored(config)
    state = network.state_dict().items()
    frozen = {name: value for name, value in state if not (stored(name) or value.is_meta)}
    fetch, names_of = fetcher(local_files_only=True), get_architecture(config.arch).names_of
    for base in config.bases:
        try:
            path = fetch(base)
        except HubError:
            continue
        for name, tensor in _tensors(path, base, frozen, names_of):
            ours = frozen[name]
            if not torch.equal(tensor.to(ours.dtype), ours.cpu()):
                raise CheckpointError(
                    f"frozen weight {name!r} differs from its base {base.repo}: save all weights, with "
                    "config.replace(bases=())"
                )


def check_digest(path: Path, base: BaseWeights | TokenizerFile) -> None:
    """Refuse a file whose digest is not the one that a checkpoint names.

    Raises:
        CheckpointError: it differs.
    """
    if base.sha256 and (found := _digest(path)) != base.sha256:
        raise CheckpointError(
            f"{path}: sha256 must be {base.sha256[:8]}…, got {found[:8]}…: the download is damaged, or "
            f"{base.repo} has changed; delete the file and load it again"
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _tensors(
    path: Path, base: BaseWeights, names: Mapping[str, object], names_of: NamesOf | None
) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                full = base.prefix + key
                for name in (full,) if names_of is None else names_of(full):
                    if name in names:
                        yield name, file.get_tensor(key)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not valid safetensors ({error}); delete and load it again") from error
