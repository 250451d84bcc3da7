"""The route gate's passes over all routes on a GPU, in Triton; the small network between them is torch's.

``native.py`` has the same for CPUs. Sums over positions are computed in chunks of a fixed size and added
in a fixed order: same input, same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..scan.triton import power
from .reference import EPS

CHUNK = 128  # positions of a program
ELEMENTS = 4096  # of a tensor that a program holds at once


def moments(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return LayerNorm's statistics of routes (B, K, L, D), in float32.

    Mean and 1/σ over the channels, (B, K, L) each, and the normalised routes' mean over positions (B, K, D).
    """
    from . import triton_kernels as kernels

    B, K, L, D = y.shape
    mean = y.new_empty(B, K, L, dtype=torch.float32)
    rstd, sums = torch.empty_like(mean), y.new_empty(B, K, -(-L // CHUNK), D, dtype=torch.float32)
    kernels.moments_kernel[(B * K, sums.shape[2])](
        y, mean, rstd, sums, L, D, EPS, CHUNK=CHUNK, ROWS=rows(D), CHANNELS=power(D)
    )
    return mean, rstd, sums.sum(2) / L


def gated_sum(y: Tensor, gates: Tensor, out: Tensor) -> None:
    """Write the sum of routes (B, K, L, D) times their gates (B, K, D) to out (B, L, D)."""
    from . import triton_kernels as kernels

    B, K, L, D = y.shape
    kernels.sum_kernel[(B, -(-L // rows(D)))](
        y, gates.contiguous(), out, L, D, K=K, ROWS=rows(D), CHANNELS=power(D)
    )


def gates_gradient(y: Tensor, g_out: Tensor) -> Tensor:
    """Return routes (B, K, L, D) times cotangent (B, L, D), summed over positions: (B, K, D)."""
    from . import triton_kernels as kernels

    B, K, L, D = y.shape
    sums = y.new_empty(B, K, -(-L // CHUNK), D, dtype=torch.float32)
    kernels.gates_gradient_kernel[(B * K, sums.shape[2])](
        y, g_out, sums, L, D, K=K, CHUNK=CHUNK, ROWS=rows(D), CHANNELS=power(D)
    )
    return sums.sum(2)


def routes_gradient_(
    y: Tensor, mean: Tensor, rstd: Tensor, gates: Tensor, g_out: Tensor, g_norm: Tensor
) -> None:
    """Overwrite the routes (B, K, L, D) with their gradient.

    The normalised rows of all positions of a route have the same cotangent ``g_norm`` (B, K, D).
    """
    from . import triton_kernels as kernels

    B, K, L, D = y.shape
    g_norm = g_norm - g_norm.mean(-1, keepdim=True)  # a constant in it has no effect on a normalised row
    kernels.routes_gradient_kernel[(B * K, -(-L // rows(D)))](
        y, mean, rstd, gates.contiguous(), g_out, g_norm, y, L, D, K=K, ROWS=rows(D), CHANNELS=power(D)
    )


def rows(D: int) -> int:
    """Return how many positions a program holds, with all their channels."""
    return max(1, min(CHUNK, ELEMENTS // power(D)))
