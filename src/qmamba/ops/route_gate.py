"""LQMamba's route gate: weigh each route by channel gates drawn from its own mean, and sum the routes.

The gate needs LayerNorm's mean over all positions of every route, and nothing else of it, so the normalised
tensors (K times the features) are never made: forward and backward work block by block with a few sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native
from .backend import choose, usable
from .native import gate as passes
from .precision import without_autocast
from .scratch import Scratch

EPS = 1e-5


def gate_routes(
    y: Tensor,
    *,
    norm_weight: Tensor,
    norm_bias: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
) -> Tensor:
    """Σ_k y_k ⊙ g_k with ``g_k = sigmoid(expand(GELU(reduce(mean over positions of LN(y_k)))))``.

    Args:
        y: (B, K, H, W, D) routes, on the grid.
        norm_weight, norm_bias: (D,) of the LayerNorm (eps 1e-5).
        reduce_weight: (D/8, D);  reduce_bias: (D/8,);  expand_weight: (D, D/8);  expand_bias: (D,).

    Returns:
        (B, H, W, D) in the dtype of ``y``; gates and sums are made in float32 at least. The passes over
        the routes are in C where the native backend is built and takes these tensors, unless the variable
        ``QMAMBA_BACKEND`` names another.

    Raises:
        BackendError: ``QMAMBA_BACKEND`` names no backend, or the native one and that is not built.
    """
    weights = (norm_weight, norm_bias, reduce_weight, reduce_bias, expand_weight, expand_bias)
    if y.is_meta:
        return y[:, 0]
    gate: type[torch.autograd.Function] = _GateRoutes
    if choose((y, *weights)) == "native":
        native.load()
        if y.numel() and usable((y, *weights)):
            gate = _NativeGate
    out: Tensor = gate.apply(y, *weights)  # type: ignore[no-untyped-call]
    return out


def route_gates(pooled: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The gates g (…, D) from ``pooled`` (…, D), the mean over positions of LN(y) before its affine part."""
    norm_weight, norm_bias, reduce_weight, reduce_bias, expand_weight, expand_bias = weights
    mean = pooled * norm_weight + norm_bias  # an affine map commutes with the mean
    return F.linear(F.gelu(F.linear(mean, reduce_weight, reduce_bias)), expand_weight, expand_bias).sigmoid()


class _GateRoutes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, *weights: Tensor) -> Tensor:
        B, K, H, W, D = y.shape
        dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
        routes = y.to(dtype).flatten(2, 3)  # (B, K, L, D)
        mean = routes.new_empty(B, K, H * W)
        rstd, pooled = torch.empty_like(mean), routes.new_empty(B, K, D)
        centred = Scratch(routes)("gate", (H * W, D))
        out = routes.new_empty(B, H * W, D)
        with without_autocast(y.device):
            for b in range(B):
                for k in range(K):
                    torch.mean(routes[b, k], -1, out=mean[b, k])
                    torch.sub(routes[b, k], mean[b, k, :, None], out=centred)
                    variance = torch.linalg.vector_norm(centred, dim=-1).square_().div_(D)
                    torch.rsqrt(variance.add_(EPS), out=rstd[b, k])
                    pooled[b, k] = rstd[b, k] @ centred / (H * W)
                gates = route_gates(pooled[b], [w.to(dtype) for w in weights])  # (K, D)
                torch.mul(routes[b, 0], gates[0], out=out[b])
                for k in range(1, K):
                    out[b].addcmul_(routes[b, k], gates[k])
        ctx.save_for_backward(y, mean, rstd, pooled, *weights)
        return out.view(B, H, W, D).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Tensor, ...]:
        y, mean, rstd, pooled, *weights = ctx.saved_tensors
        B, K, H, W, D = y.shape
        L, dtype = H * W, mean.dtype
        routes, g_out = y.to(dtype).flatten(2, 3), g_out.to(dtype).reshape(B, L, D)
        g_y, block = torch.empty_like(routes), Scratch(routes)("gate", (L, D))
        with without_autocast(y.device):
            g_gates = torch.stack([
                torch.stack([torch.mul(g_out[b], routes[b, k], out=block).sum(0) for k in range(K)])
                for b in range(B)
            ])  # fmt: skip
            gates, g_pooled, g_weights = _gates_backward(pooled, weights, g_gates)
            for b in range(B):
                for k in range(K):
                    # LayerNorm's backward, where every position has the same cotangent c
                    c, r = g_pooled[b, k] / L, rstd[b, k]
                    centred = torch.sub(routes[b, k], mean[b, k, :, None], out=block)
                    along = (centred @ c).mul_(r.pow(3)).div_(-D)
                    torch.mul(g_out[b], gates[b, k], out=g_y[b, k])
                    g_y[b, k].addr_(r, c - c.mean())
                    g_y[b, k].addcmul_(centred, along[:, None])
        return (g_y.view(y.shape).to(y.dtype), *g_weights)


class _NativeGate(torch.autograd.Function):
    """The same, its passes over the routes in C."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *weights: Tensor) -> Tensor:
        routes = _routes(y)
        mean, rstd, pooled = passes.moments(routes)
        with without_autocast(y.device):
            gates = route_gates(pooled, [w.to(torch.float32) for w in weights])
        ctx.save_for_backward(y, mean, rstd, pooled, *weights)
        return passes.gated_sum(routes, gates).view(y[:, 0].shape).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Tensor, ...]:
        y, mean, rstd, pooled, *weights = ctx.saved_tensors
        routes, g_out = _routes(y), g_out.to(torch.float32).flatten(1, 2).contiguous()
        with without_autocast(y.device):
            gates, g_pooled, g_weights = _gates_backward(
                pooled, weights, passes.gates_gradient(routes, g_out)
            )
            g_norm = g_pooled / mean.shape[-1]
        g_y = passes.routes_gradient(routes, mean, rstd, gates, g_out, g_norm)
        return (g_y.view(y.shape).to(y.dtype), *g_weights)


def _routes(y: Tensor) -> Tensor:
    """(B, K, H, W, D) → (B, K, L, D) as the native passes take them."""
    return y.detach().to(torch.float32).flatten(2, 3).contiguous()


def _gates_backward(
    pooled: Tensor, weights: Sequence[Tensor], g_gates: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The gates again, and the gradients of ``pooled`` and of the weights: K small vectors an image."""
    with torch.enable_grad():
        leaves = [v.detach().to(pooled.dtype).requires_grad_() for v in (pooled, *weights)]
        gates = route_gates(leaves[0], leaves[1:])
        g_pooled, *g_weights = torch.autograd.grad(gates, leaves, g_gates)
    return gates.detach(), g_pooled, [g.to(w.dtype) for g, w in zip(g_weights, weights, strict=True)]
