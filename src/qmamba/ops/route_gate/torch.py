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

from ..precision import without_autocast
from ..scratch import Scratch
from .reference import EPS, GateWeights


def gate_routes(y: Tensor, gate: GateWeights) -> Tensor:
    """Σ_k y_k ⊙ g_k with ``g_k = sigmoid(expand(GELU(reduce(mean over positions of LN(y_k)))))``.

    Args:
        y: (B, K, H, W, D) routes, on the grid.
        gate: the weights.

    Returns:
        (B, H, W, D) in the dtype of ``y``; gates and sums are made in float32 at least.
    """
    if y.is_meta:
        return y[:, 0]
    out: Tensor = GatedSum.apply(y, *gate)  # type: ignore[no-untyped-call]
    return out


def route_gates(pooled: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The gates g (…, D) from ``pooled`` (…, D), the mean over positions of LN(y) before its affine part."""
    norm_weight, norm_bias, reduce_weight, reduce_bias, expand_weight, expand_bias = weights
    mean = pooled * norm_weight + norm_bias  # an affine map commutes with the mean
    return F.linear(F.gelu(F.linear(mean, reduce_weight, reduce_bias)), expand_weight, expand_bias).sigmoid()


class GatedSum(torch.autograd.Function):
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
            gates, g_pooled, g_weights = gates_backward(pooled, weights, g_gates)
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


def gates_backward(
    pooled: Tensor, weights: Sequence[Tensor], g_gates: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The gates (…, D) again, and the gradients of ``pooled`` and of the weights, step by step: within an
    operator of torch's library nothing is recorded."""
    norm_weight, norm_bias, reduce_weight, reduce_bias, expand_weight, expand_bias = (
        w.detach().to(pooled.dtype) for w in weights
    )
    shape, pooled = pooled.shape, pooled.detach().flatten(0, -2)
    mean = pooled * norm_weight + norm_bias
    hidden = F.linear(mean, reduce_weight, reduce_bias)
    active = F.gelu(hidden)
    gates = F.linear(active, expand_weight, expand_bias).sigmoid()
    g_logits = g_gates.flatten(0, -2) * gates * (1 - gates)
    g_hidden = torch.ops.aten.gelu_backward(g_logits @ expand_weight, hidden)
    g_mean = g_hidden @ reduce_weight
    g_weights = (
        (g_mean * pooled).sum(0), g_mean.sum(0), g_hidden.T @ mean, g_hidden.sum(0),
        g_logits.T @ active, g_logits.sum(0),
    )  # fmt: skip
    converted = [g.to(w.dtype) for g, w in zip(g_weights, weights, strict=True)]
    return gates.view(shape), (g_mean * norm_weight).view(shape), converted
