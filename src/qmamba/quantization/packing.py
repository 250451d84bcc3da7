"""Quantized weights in files: b-bit codes packed into bytes, with their scales and offsets.

A weight ``NAME`` becomes ``NAME.codes`` (uint8, ⌈elements · b / 8⌉), ``NAME.scale`` (one for each channel in
bfloat16, or one for all in float32) and ``NAME.offset`` (float32). A code is stored without its sign, as
code + 2^(b-1); the first code lies in the lowest bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .base import Quantizer
from .grid import Grid
from .network import grids_of
from .planning import Plan

CODES, SCALE, OFFSET = ".codes", ".scale", ".offset"
MOST_OFF = 0.3  # of a step: maximum distance of a weight from its grid, for networks in float16


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return signed codes as bytes.

    >>> pack(torch.tensor([-2, 1, 0, -1, 1]), 2).tolist()
    [108, 3]
    """
    each = 8 // bits
    flat = (codes.flatten() + (1 << (bits - 1))).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % each)).view(-1, each)
    packed = torch.zeros(len(padded), dtype=torch.uint8)
    for i in range(each):
        packed |= padded[:, i] << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return the signed codes in bytes, int16 of a shape; the inverse of :func:`pack`.

    >>> unpack(torch.tensor([108, 3], dtype=torch.uint8), 2, (5,)).tolist()
    [-2, 1, 0, -1, 1]
    """
    each, mask = 8 // bits, 2**bits - 1
    parts = [(packed >> (bits * i)) & mask for i in range(each)]
    flat = torch.stack(parts, dim=1).flatten()[: elements(shape)]
    return (flat.to(torch.int16) - (1 << (bits - 1))).view(shape)


def elements(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape."""
    count = 1
    for side in shape:
        count *= side
    return count


def packed_state(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which weights on grids are replaced by codes, scales and offsets.

    Raises:
        CheckpointError: a weight no longer lies on its grid.
    """
    grids, packed = grids_of(network), dict[str, Tensor]()
    for name, tensor in state.items():
        grid = grids.get(name)
        if grid is None:
            packed[name] = tensor
            continue
        w = tensor.detach().float().cpu()
        codes = grid.codes(w)
        if bool(((grid.values(codes) - w).abs() > MOST_OFF * grid.scale).any()):
            raise CheckpointError(
                f"weight {name!r} was changed since it was quantized: quantize the changed model instead"
            )
        packed[name + CODES] = pack(codes, grid.bits)
        packed[name + SCALE] = grid.scale.bfloat16() if grid.scale.ndim else grid.scale
        packed[name + OFFSET] = grid.offset
    return packed


def own_types(network: nn.Module, held: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Return the types of the tensors in a file that keep their own, whatever that of the other weights.

    These are scales, offsets and the learnables of quantizers.

    Args:
        network: with its quantizers.
        held: what the file holds, by name: of :func:`packed_state` or :func:`layout`.
    """
    within = {name for name, module in network.named_modules() if isinstance(module, Quantizer)}
    return {
        name: tensor.dtype
        for name, tensor in held.items()
        if name.rpartition(".")[0] in within
        or any(name.endswith(end) and name.removesuffix(end) + CODES in held for end in (SCALE, OFFSET))
    }


def layout(own: Mapping[str, Tensor], made: Plan) -> dict[str, Tensor]:
    """Return tensors on the device "meta" of the shapes and types in a file, for a state dict and a plan."""
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        entry = made.weights.get(name)
        if entry is None:
            found[name] = tensor
            continue
        bytes_ = -(-tensor.numel() * entry.bits // 8)
        shape = (tensor.shape[0],) + (1,) * (tensor.ndim - 1) if entry.per_channel else ()
        found[name + CODES] = torch.empty(bytes_, dtype=torch.uint8, device="meta")
        of_scale = torch.bfloat16 if entry.per_channel else torch.float32
        found[name + SCALE] = torch.empty(shape, dtype=of_scale, device="meta")
        found[name + OFFSET] = torch.empty((), device="meta")
    return found


def unpacked(
    state: dict[str, Tensor], own: Mapping[str, Tensor], made: Plan
) -> tuple[dict[str, Tensor], dict[str, Grid]]:
    """Return a network's state dict, and the grids of its weights, from what a file holds.

    Args:
        state: tensors by name, of the names and shapes of :func:`layout`.
        own: the network's state dict, for the shapes.
        made: the plan.

    Raises:
        CheckpointError: a scale is not above zero.
    """
    state, grids = dict(state), dict[str, Grid]()
    for name, entry in made.weights.items():
        codes, scale, offset = (state.pop(name + end) for end in (CODES, SCALE, OFFSET))
        if not bool((scale > 0).all()):
            raise CheckpointError(f"{name + SCALE!r} must be above 0: quantize the model again")
        grid = grids[name] = Grid(entry.bits, scale, offset)
        state[name] = grid.values(unpack(codes, entry.bits, tuple(own[name].shape)))
    return state, grids
