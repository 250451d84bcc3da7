"""The steps that all quantizers share: ranges of codes, straight-through rounding, scaled gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BITS = (2, 4, 8)
SIGNED_BELOW = -1e-5  # a tensor with a value below this needs signed codes


def code_range(bits: int, signed: bool = True) -> tuple[int, int]:
    """Return the least and the greatest code, Qn and Qp.

    >>> code_range(4), code_range(4, signed=False)
    ((-8, 7), (0, 15))
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def check_bits(bits: int) -> int:
    """Return the number of bits.

    Raises:
        ValueError: it is none of 2, 4 and 8.
    """
    if isinstance(bits, bool) or bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}")
    return bits


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing were rounded (straight-through estimator)."""
    return x + (x.round() - x).detach()


def scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """Return x, with its gradient multiplied by a factor: G(α) of the learned steps (LSQ)."""
    return x.detach() + (x - x.detach()) * factor


def step_factor(elements: int, greatest: int | Tensor) -> float | Tensor:
    """Return the factor of a step's gradient, 1 / √(elements · Qp)."""
    factor: float | Tensor = (elements * greatest) ** -0.5
    return factor


def initial_step(x: Tensor, greatest: int, least: float = 1e-8) -> Tensor:
    """Return the step that LSQ starts from, 2 · mean|x| / √Qp, a scalar; `least` keeps it above zero."""
    return (2 * x.detach().abs().mean() / math.sqrt(greatest)).clamp(min=least)


def images_of(x: Tensor) -> tuple[int, ...]:
    """Return the dimensions of x (B, …) that lie within one image; a tensor (B,) has none but its values."""
    return tuple(range(1, x.ndim))


def affine(x: Tensor, step: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
    """Return round(clip((x + offset) / step, low, high)) · step - offset, without gradients of its own."""
    return torch.clamp((x + offset) / step, low, high).round() * step - offset
