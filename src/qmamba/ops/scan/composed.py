"""The selective scan composed of differentiable operations, for whatever differentiates it by itself.

Transforms of ``torch.func``, forward-mode and second derivatives need operations that torch can differentiate
any number of times, and batch; the other implementations have a hand-written backward, which is a first
derivative. Nothing here is in place, and the recurrence takes log₂ L steps in place of L.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd import forward_ad

from ..precision import without_autocast
from ..routes import Route
from ..second_order import recomputed
from .tensors import ScanTensors


def selective_scan_composed(tensors: ScanTensors, routes: tuple[Route, ...], merge: bool) -> Tensor:
    """Compute :func:`qmamba.ops.selective_scan`."""
    x = tensors.x
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_, dt_, B_, C_, weight, bias, A_, D_ = (t.to(dtype) for t in tensors)
    per_route = []
    with without_autocast(x.device):
        for k, route in enumerate(routes):
            on_grid = (p[:, :, :, k] for p in (dt_, B_, C_))
            per_route.append(
                recomputed(partial(_walk, route), x_, *on_grid, weight[k], bias[k], A_[k], D_[k])
            )
    y = torch.stack(per_route, dim=1)  # (B, K, H, W, D)
    return (y.sum(1) if merge else y).to(x.dtype)


def _walk(
    route: Route, x: Tensor, dt: Tensor, B: Tensor, C: Tensor,
    weight: Tensor, bias: Tensor, A: Tensor, D: Tensor,
) -> Tensor:  # fmt: skip
    """Return the output (B, H, W, D) of one route, for dt (B, H, W, R), B and C (B, H, W, N)."""
    height, width = x.shape[1:3]
    order = route.order(height, width).to(x.device)
    x_k, dt_k, B_k, C_k = (rearrange(p, "b h w c -> b (h w) c")[:, order] for p in (x, dt, B, C))
    delta = F.softplus(dt_k @ weight.T + bias)  # (B, L, D)
    decay = torch.exp(delta[..., None] * A)  # (B, L, D, N), exp(Δ_t A)
    h = recurrence(decay, (delta * x_k)[..., None] * B_k[:, :, None])  # (B, L, D, N)
    y = (h * C_k[:, :, None]).sum(-1) + D * x_k  # (B, L, D)
    return rearrange(y[:, order.argsort()], "b (h w) d -> b h w d", h=height)


def recurrence(a: Tensor, b: Tensor) -> Tensor:
    """Return h_t = a_t h_{t-1} + b_t with h_0 = b_0; all (B, L, D, N)."""
    if forward_ad._current_level >= 0:  # which keeps nothing
        return _doubled(a, b)
    h: Tensor = _Recurrence.apply(a, b)  # type: ignore[no-untyped-call]
    return h


class _Recurrence(torch.autograd.Function):
    """The recurrence, which keeps two tensors for its backward: a recurrence from the other end."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _doubled(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        following = F.pad(a[:, 1:], (0, 0, 0, 0, 0, 1))  # the adjoint g_t + a_{t+1} g_{t+1}
        g_b = _Recurrence.apply(following.flip(1), g.flip(1)).flip(1)  # type: ignore[no-untyped-call]
        return g_b * F.pad(h[:, :-1], (0, 0, 0, 0, 1, 0)), g_b


def _doubled(a: Tensor, h: Tensor) -> Tensor:
    """Return the recurrence's states for its inputs h, by doubling.

    After the step of size s, h_t holds the terms of the last 2s positions, and a_t the product of their
    decays.
    """
    length, step = h.shape[1], 1
    while step < length:
        before = (0, 0, 0, 0, step, 0)  # zeros in front of the positions
        h = h + a * F.pad(h[:, :-step], before)
        a = a * F.pad(a[:, :-step], before)
        step *= 2
    return h
