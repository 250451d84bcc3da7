"""Uniform grids: the values that b-bit codes stand for, and how to choose them without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .rounding import affine, check_bits, code_range

SHRUNK = torch.linspace(1.0, 0.2, 33)
"""Shares of a range whose squared errors are compared."""
COMPARED = 2**17  # maximum number of activations


@dataclass(frozen=True)
class Grid:
    """Values scale · code - offset of signed b-bit codes.

    Args:
        bits: 2, 4 or 8.
        scale: step, float32: () for the whole tensor, or (O, 1, …) for each index of its first dimension.
        offset: () float32.
    """

    bits: int
    scale: Tensor
    offset: Tensor

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes of values, int64; exact for values that are on the grid."""
        return torch.clamp((x.float() + self.offset) / self.scale, *code_range(self.bits)).round().long()

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of codes, float32."""
        return codes.to(torch.float32) * self.scale - self.offset

    def rounded(self, x: Tensor) -> Tensor:
        """Return the values on the grid that are nearest to x, float32."""
        return self.values(self.codes(x))


@torch.no_grad()
def fit_weights(w: Tensor, bits: int, *, search: bool, per_channel: bool = True) -> Grid:
    """Choose a symmetric grid for weights, one for each index of their first dimension.

    Steps have no more digits than bfloat16, which files store them in; weights are rounded to these steps.

    Args:
        w: (O, …).
        bits: 2, 4 or 8.
        search: take the step of least squared error; otherwise the largest value decides (minmax).
        per_channel: a step for each index of the first dimension; otherwise one for all.
    """
    high = code_range(check_bits(bits))[1]
    rows = (w.flatten(1) if per_channel and w.ndim > 1 else w.reshape(1, -1)).float()
    largest = rows.abs().amax(dim=1, keepdim=True)
    scale = _short(torch.where(largest > 0, largest / high, torch.ones_like(largest)))
    zero = torch.zeros((), device=w.device)
    if search:
        best = torch.full_like(scale, float("inf"))
        chosen = scale
        low = code_range(bits)[0]
        for part in SHRUNK.tolist():
            step = _short(scale * part)
            error = (affine(rows, step, zero, low, high) - rows).square().sum(1, keepdim=True)
            chosen = torch.where(error < best, step, chosen)
            best = torch.minimum(error, best)
        scale = chosen
    shape = (-1,) + (1,) * (w.ndim - 1) if per_channel and w.ndim > 1 else ()
    return Grid(bits, scale.reshape(shape).clone(), zero)


def _short(step: Tensor) -> Tensor:
    return step.bfloat16().float()


@torch.no_grad()
def fit_range(x: Tensor, bits: int, search: bool) -> Grid:
    """Choose a grid for activations from their range, or the part of it with the least squared error.

    The two ends of the range are moved in turn.

    Args:
        x: values (n, m) of n images, float32; the first two of an image are its least and its greatest, which
            are too rare for their share of the error to be counted.
        bits: 2, 4 or 8.
        search: move the ends; otherwise the grid spans all values (minmax).
    """
    low, high = float(x.min()), float(x.max())
    x = x[:, 2:].flatten()
    x = x[:: -(-len(x) // COMPARED)] if len(x) > COMPARED else x
    if not high - low > 1e-12:
        low, high = low - 0.5, high + 0.5
    best = _spanning(low, high, bits, x.device)
    if not search:
        return best
    least = float("inf")
    ends = (low, high)
    for end in (0, 1, 0, 1):
        fixed = ends
        for part in SHRUNK.tolist():
            moved = (fixed[0] * part, fixed[1]) if end == 0 else (fixed[0], fixed[1] * part)
            if not moved[1] - moved[0] > 1e-12:
                continue
            grid = _spanning(moved[0], moved[1], bits, x.device)
            error = float((affine(x, grid.scale, grid.offset, *code_range(bits)) - x).square().mean())
            if error < least:
                least, best, ends = error, grid, moved
    return best


def _spanning(low: float, high: float, bits: int, device: torch.device) -> Grid:
    """Return the grid whose first code stands for `low` and whose last stands for `high`."""
    first, last = code_range(bits)
    step = torch.tensor((high - low) / (last - first), device=device)
    return Grid(bits, step, first * step - low)
