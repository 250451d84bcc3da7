"""Linear, GELU, Linear with gradients, on a processor some positions at a time.

Fresh memory costs more there than a GELU does: of what is made between the two products only what the GELU
takes is kept, and what it gives is made once more by the backward. Forward and backward of ``lqmamba-t`` took
0.9 of the time so (ten crops, one thread), and an MLP keeps about half as much.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .matmul import linear, plain

HIDDEN = 2**20  # numbers between the two products that are made together


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """``linear(F.gelu(linear(x, weight1, bias1)), weight2, bias2)``, whatever computes it.

    Shapes: x (…, C), weights (H, C) and (O, H), biases (H) and (O) → (…, O).
    """
    tensors = (x, weight1, bias1, weight2, bias2)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not wanted or not plain(tensors, (torch.float32, torch.float64)) or x.numel() == 0:
        return _composed(*tensors)
    out: Tensor = _MLP.apply(*tensors)  # type: ignore[no-untyped-call]
    return out


def _composed(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return linear(F.gelu(linear(x, weight1, bias1)), weight2, bias2)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        weight1, bias1, weight2, bias2 = weights
        rows = x.reshape(-1, x.shape[-1])
        count = _count(weight1)
        hidden = [linear(part, weight1, bias1) for part in torch.split(rows, count)]
        out = rows.new_empty(len(rows), len(weight2))
        for part, h in zip(torch.split(out, count), hidden, strict=True):
            part.copy_(linear(F.gelu(h), weight2, bias2))
        ctx.save_for_backward(x, *weights, *hidden)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing gives them out but once
        given, hidden = saved[:5], saved[5:]
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            return _differentiable(given, g, ctx.needs_input_grad)
        x, weight1, _, weight2, _ = given
        of_x, of_weight1, of_bias1, of_weight2, of_bias2 = ctx.needs_input_grad
        rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        g_x = torch.empty_like(rows) if of_x else None
        g_weight1, g_bias1, g_weight2 = (
            torch.zeros_like(t) if of else None
            for t, of in zip(given[1:4], (of_weight1, of_bias1, of_weight2), strict=True)
        )
        count = _count(weight1)
        parts = zip(hidden, torch.split(rows, count), torch.split(g_rows, count), strict=True)
        for i, (h, part, g_part) in enumerate(parts):
            if g_weight2 is not None:
                g_weight2.addmm_(g_part.t(), F.gelu(h))
            g_h = torch.ops.aten.gelu_backward(linear(g_part, weight2.t()), h)
            if g_weight1 is not None:
                g_weight1.addmm_(g_h.t(), part)
            if g_bias1 is not None:
                g_bias1 += g_h.sum(0)
            if g_x is not None:
                g_x[i * count : (i + 1) * count] = linear(g_h, weight1.t())
        return (
            None if g_x is None else g_x.view_as(x),
            g_weight1,
            g_bias1,
            g_weight2,
            g_rows.sum(0) if of_bias2 else None,
        )


def _count(weight1: Tensor) -> int:
    """The positions that are done together."""
    return max(HIDDEN // len(weight1), 1)


def _differentiable(
    given: tuple[Tensor, ...], g: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients by torch, which knows those of them."""
    leaves = [t for t, w in zip(given, wanted, strict=True) if w]
    found = iter(torch.autograd.grad(_composed(*given), leaves, g, create_graph=True))
    return tuple(next(found) if w else None for w in wanted)
