"""Weights of the public LoDa implementation, turned into ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..converted import ConvertedState
from .network import LoDa, is_stored

# Beginning of a public name → of ours, in full.
_NAMES = (
    (re.compile(r"learner\.conv\.(\d+)\."), r"extractor.convs.\1."),
    (re.compile(r"learner\.down_proj\.(\d+)\."), r"injectors.\1.down."),
    (re.compile(r"learner\.cross_attn\.(\d+)\."), r"injectors.\1.attention."),
    (re.compile(r"learner\.up_proj\.(\d+)\."), r"injectors.\1.up."),
    (re.compile(r"learner\.scale_factor$"), "scale"),
    (re.compile(r"learner\.head\."), "head."),
    (re.compile(r"feature_model\."), "cnn."),
    (re.compile(r"(cls_token|pos_embed)$|(?=(?:patch_embed|blocks|norm)\.)"), r"vit.\1"),
)
_PARTS = {
    "learner": "learner.",
    "bn_buffer": "feature_model.",
}  # of a public checkpoint, and where they belong
_PARALLEL = "module."  # what DistributedDataParallel puts before every name


def from_loda(state_dict: Mapping[str, Any]) -> ConvertedState:
    """Turn a state dict of the public LoDa implementation into one of :class:`LoDa`'s.

    Args:
        state_dict: tensors under their public names, or a public checkpoint, ``{"learner": …, "bn_buffer":
            …}``, with what is trained and the CNN's batch-norm statistics only. The names inside the two may
            begin with ``learner.`` and ``feature_model.`` or not, and all names with ``module.`` or not.

    Returns:
        Tensors under our names; ``renamed`` maps the public names to them. Complete ones are what
        ``model.load_state_dict`` takes; for the others, see :func:`load_loda`. Counters of batches, which
        change no output, are set to zero where they are missing.

    Raises:
        CheckpointError: not a mapping of tensors, no tensors, or a name that is not LoDa's.
    """
    converted = ConvertedState()
    for name, tensor in _flat(state_dict):
        ours = _rename(name)
        if ours in converted:
            raise CheckpointError(f"not a LoDa state dict: two of its tensors are {ours!r} in ours")
        converted[ours] = tensor
        converted.renamed[name] = ours
    if not converted:
        raise CheckpointError("not a LoDa state dict: it holds no tensors")
    for name in [name for name in converted if name.endswith(".running_mean")]:
        converted.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return converted


def load_loda(model: LoDa, state_dict: Mapping[str, Any]) -> ConvertedState:
    """Load public weights into a network.

    All that is trained and the CNN's batch-norm statistics must be there. Each frozen tower must be there as
    a whole, or not at all: then it keeps what it had.

    Args:
        model: of the sizes of the weights, changed in place; a network on the meta device takes the tensors.
        state_dict: as :func:`from_loda` takes it.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape; nothing is loaded.
    """
    converted, own = from_loda(state_dict), model.state_dict()
    optional: set[str] = set()
    for tower in ("vit.", "cnn."):
        frozen = {name for name in own if name.startswith(tower) and not is_stored(name)}
        if frozen.isdisjoint(converted):
            optional |= frozen
    missing = sorted(own.keys() - converted.keys() - optional)
    unknown = sorted(converted.keys() - own.keys())
    wrong = sorted(n for n in converted.keys() & own.keys() if converted[n].shape != own[n].shape)
    for problem, names in (("lacks", missing), ("has, and the network lacks,", unknown)):
        if names:
            raise CheckpointError(
                f"the LoDa state dict {problem} {names[0]!r} (and {len(names) - 1} more): use a whole file, "
                "and a network of its sizes"
            )
    if wrong:
        raise CheckpointError(
            f"{wrong[0]!r} must be {tuple(own[wrong[0]].shape)} for this network, got "
            f"{tuple(converted[wrong[0]].shape)} (and {len(wrong) - 1} more): build the network with the "
            "sizes of the file"
        )
    on_meta = any(tensor.is_meta for tensor in own.values())
    model.load_state_dict(converted, strict=False, assign=on_meta)
    return converted


def _flat(state_dict: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Public names and tensors, each part of a checkpoint under its full names."""
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"a LoDa state dict must be a mapping, got {type(state_dict).__name__}; use torch.load"
        )
    for key, value in state_dict.items():
        if key in _PARTS and isinstance(value, Mapping):
            for name, tensor in _flat(value):
                yield name if name.startswith(_PARTS[key]) else _PARTS[key] + name, tensor
        elif isinstance(value, Tensor):
            yield str(key).removeprefix(_PARALLEL), value
        else:
            raise CheckpointError(
                f"not a LoDa state dict: {key!r} must be a tensor, got {type(value).__name__}"
            )


def _rename(name: str) -> str:
    for beginning, ours in _NAMES:
        if match := beginning.match(name):
            return match.expand(ours) + name[match.end() :]
    raise CheckpointError(f"not a LoDa state dict: no tensor of that model is called {name!r}")
