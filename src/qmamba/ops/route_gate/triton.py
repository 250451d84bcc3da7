"""The route gate's passes over all routes on a GPU, in Triton; the small network between them is torch's.

They are what ``native/gate.py`` has for processors. Sums over positions are made in chunks of a fixed size
and added up in a fixed order: same input, same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..scan.triton import power
from .reference import EPS

CHUNK = 128  # positions that a program goes through
NUMBERS = 4096  # that it holds at once of a tensor


def moments(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and 1/σ over the channels (B, K, L) of routes (B, K, L, D), and the mean over positions of the
    routes so normalised (B, K, D), all in float32."""
    from . import triton_kernels as kernels

    B, K, L, D = y.shape
    mean = y.new_empty(B, K, L, dtype=torch.float32)
    rstd, sums = torch.empty_like(mean), y.new_empty(B, K, -(-L // CHUNK), D, dtype=torch.float32)
    kernels.moments_kernel[(B * K, sums.shape[2])](
        y, mean, rstd, sums, L, D, EPS, CHUNK=CHUNK, ROWS=rows(D), CHANNELS=power(D)
    )
    return mean, rstd, sums.sum(2) / L


def gated_sum(y: Tensor, gates: Tensor, out: Tensor) -> None:
    """Routes (B, K, L, D) times their gates (B, K, D), summed: written to out (B, L, D)."""
    from . import triton_kernels as kernels

    B, K, L, D = y.shape
    kernels.sum_kernel[(B, -(-L // rows(D)))](
        y, gates.contiguous(), out, L, D, K=K, ROWS=rows(D), CHANNELS=power(D)
    )


def gates_gradient(y: Tensor, g_out: Tensor) -> Tensor:
    """(B, K, D): the products of routes (B, K, L, D) and cotangent (B, L, D), summed over positions."""
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
    """Write over the routes (B, K, L, D) their gradient, where the normalised row of every position of a
    route has the same cotangent ``g_norm`` (B, K, D)."""
    from . import triton_kernels as kernels

    B, K, L, D = y.shape
    g_norm = g_norm - g_norm.mean(-1, keepdim=True)  # a constant in it has no effect on a normalised row
    kernels.routes_gradient_kernel[(B * K, -(-L // rows(D)))](
        y, mean, rstd, gates.contiguous(), g_out, g_norm, y, L, D, K=K, ROWS=rows(D), CHANNELS=power(D)
    )


def rows(D: int) -> int:
    """Positions that fit in, with all their channels."""
    return max(1, min(CHUNK, NUMBERS // power(D)))
