"""LQMamba's scan with its route gate as one operation: Σ_k y_k ⊙ g_k over the routes' outputs y_k.

As two operations they keep the outputs of all K routes of a batch, K times the features. The fused one needs
them for a few images at a time in C, in memory that is reused, and in Triton only during the operation. The
backward recomputes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import native
from .backend import choose, transformed, usable
from .compile import compiling, traced_gated_scan
from .precision import without_autocast
from .route_gate import GateWeights, gate_routes
from .route_gate import native as native_gate
from .route_gate import triton as triton_gate
from .route_gate.torch import gate_routes_composed, gates_backward, route_gates
from .routes import Route
from .scan import selective_scan
from .scan.composed import selective_scan_composed
from .scan.native import Problem
from .scan.tensors import ScanTensors
from .scan.triton import Problem as TritonProblem
from .scratch import KEPT, Scratch
from .second_order import differentiable_gradients


def gated_scan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    gate: GateWeights,
    routes: Sequence[Route],
    out: Tensor | None = None,
) -> Tensor:
    """Return :func:`gate_routes` of the unmerged outputs of :func:`selective_scan`.

    Args:
        x, dt, B, C, dt_weight, dt_bias, A, D, routes: as for :func:`selective_scan`.
        gate: the weights of the route gate.
        out: a contiguous tensor (B, H, W, D) that the result is written to; it is not differentiable.

    Returns:
        ``out``, or (B, H, W, D) in the dtype of ``x``. Forward and backward run in C or in Triton where that
        backend takes these tensors, unless ``QMAMBA_BACKEND`` names another.

    Raises:
        BackendError: ``QMAMBA_BACKEND`` names an unknown backend, or one that cannot be used here.
    """
    tensors = (x, dt, B, C, dt_weight, dt_bias, A, D, *gate)
    if compiling():
        return traced_gated_scan(tensors, routes)
    backend = choose(tensors) if x.numel() and not x.is_meta and not transformed() else "torch"
    if backend == "native":
        native.load()
    if backend == "native" and usable(tensors):
        if out is not None:
            wide = (
                out
                if out.dtype == torch.float32
                else Scratch(out.new_empty(0, dtype=torch.float32))("wide", out.shape)
            )
            _forward(tensors, tuple(routes), wide.flatten(1, 2))
            return out if wide is out else out.copy_(wide)
        y: Tensor = NativeGatedScan.apply(*tensors, tuple(routes))  # type: ignore[no-untyped-call]
    elif backend == "triton":
        y = TritonGatedScan.apply(*tensors, tuple(routes))  # type: ignore[no-untyped-call]
    else:
        y = selective_scan(
            x, dt, B, C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D, routes=routes, merge=False
        )
        y = gate_routes(y, gate)
    return y if out is None else out.copy_(y)


def _forward(
    tensors: Sequence[Tensor], routes: tuple[Route, ...], out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gated sum to out (B, L, D); return what the backward needs.

    That is mean and 1/σ of LayerNorm's rows, (B, K, L) each, and the mean of the normalised rows (B, K, D).
    """
    x, gate, K = tensors[0], tensors[8:], len(routes)
    mean = out.new_empty(x.shape[0], K, out.shape[1])
    rstd, pooled = torch.empty_like(mean), out.new_empty(x.shape[0], K, x.shape[-1])
    weights = [w.detach().to(torch.float32) for w in gate]
    for images in _groups_of_images(x, K):
        for group in _groups_of_routes(x, K):
            y = _routes_of(tensors, routes, images, group)
            mean[images, group], rstd[images, group], pooled[images, group] = native_gate.moments(y)
            with without_autocast(x.device):
                gates = route_gates(pooled[images, group], weights)
            native_gate.gated_sum(y, gates, out[images], onto=group.start > 0)
    return mean, rstd, pooled


class NativeGatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        tensors, routes = args[:14], args[14]
        x = tensors[0]
        out = x.new_empty(x.shape, dtype=torch.float32)
        ctx.save_for_backward(*tensors, *_forward(tensors, routes, out.flatten(1, 2)))
        ctx.routes = routes
        result: Tensor = out.to(x.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once: activation checkpointing recomputes them then
        if torch.is_grad_enabled():
            return _second_order_gradients(ctx, saved[:14], g_out)
        tensors, gate = saved[:8], saved[8:14]
        mean, rstd, pooled = saved[14:]
        g_out = g_out.to(torch.float32).flatten(1, 2).contiguous()
        rows: list[tuple[Tensor, ...]] = []  # gradients of x, dt, B, C, for a few images each
        sums: list[tuple[Tensor, ...]] = []  # gradients of all weights, from the same images
        for images in _groups_of_images(tensors[0], len(ctx.routes)):
            y = _routes_of(tensors, ctx.routes, images, slice(None))
            with without_autocast(y.device):
                gates, g_pooled, g_gate = gates_backward(
                    pooled[images], gate, native_gate.gates_gradient(y, g_out[images])
                )
            g_norm = g_pooled / y.shape[2]
            native_gate.routes_gradient(y, mean[images], rstd[images], gates, g_out[images], g_norm, out=y)
            grads = _problem(tensors, ctx.routes, images, slice(None)).gradients(y)
            rows.append(grads[:4])
            sums.append((*grads[4:], *g_gate))
        together = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*rows, strict=True)]
        added = [
            parts[0] if len(parts) == 1 else torch.stack(parts).sum(0) for parts in zip(*sums, strict=True)
        ]
        grads = (*together, *added)
        return (*(g.to(t.dtype) for g, t in zip(grads, (*tensors, *gate), strict=True)), None)


class TritonGatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        tensors, routes = args[:14], args[14]
        ctx.routes = routes
        with torch.cuda.device_of(tensors[0]), without_autocast(tensors[0].device):  # type: ignore[no-untyped-call]
            y, _ = TritonProblem.of(tensors[:8], routes, False).forward()
            out, y = y.new_empty(tensors[0].shape), y.flatten(2, 3)
            mean, rstd, pooled = triton_gate.moments(y)
            gates = route_gates(pooled, [w.detach().to(torch.float32) for w in tensors[8:]])
            triton_gate.gated_sum(y, gates, out)
        ctx.save_for_backward(*tensors, mean, rstd, pooled)
        return out

    @staticmethod
    def backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        tensors, (mean, rstd, pooled) = saved[:14], saved[14:]
        if torch.is_grad_enabled():
            return _second_order_gradients(ctx, tensors, g_out)
        with torch.cuda.device_of(g_out), without_autocast(g_out.device):  # type: ignore[no-untyped-call]
            problem = TritonProblem.of(tensors[:8], ctx.routes, False)
            routes, entering = problem.forward(keep=True)
            assert entering is not None
            y, g_out = routes.flatten(2, 3), g_out.contiguous()
            gates, g_pooled, g_gate = gates_backward(
                pooled, tensors[8:], triton_gate.gates_gradient(y, g_out)
            )
            triton_gate.routes_gradient_(y, mean, rstd, gates, g_out, g_pooled / y.shape[2])
            grads = (*problem.backward(routes, entering), *g_gate)
        return (*(g.to(t.dtype) for g, t in zip(grads, tensors, strict=True)), None)


def _second_order_gradients(ctx: Any, tensors: Sequence[Tensor], g_out: Tensor) -> tuple[Any, ...]:
    """Return what the backward does, in a way that can be differentiated again."""

    def scan(*tensors: Tensor) -> Tensor:
        y = selective_scan_composed(ScanTensors(*tensors[:8]), ctx.routes, merge=False)
        return gate_routes_composed(y, *tensors[8:])

    return (*differentiable_gradients(scan, tensors, g_out, ctx.needs_input_grad[:14]), None)


def _groups_of_images(x: Tensor, routes: int) -> Iterator[slice]:
    """Yield slices of images whose routes' outputs fit the memory that is kept."""
    count = max(1, KEPT // (routes * x[0].numel()))
    return (slice(i, i + count) for i in range(0, x.shape[0], count))


def _groups_of_routes(x: Tensor, routes: int) -> Iterator[slice]:
    """Yield slices of routes: all at once, or pairs for large images. A gate depends on its route only."""
    count = routes if routes * x[0].numel() <= KEPT else 2
    return (slice(k, min(k + count, routes)) for k in range(0, routes, count))


def _problem(tensors: Sequence[Tensor], routes: tuple[Route, ...], images: slice, group: slice) -> Problem:
    x, dt, B, C, *weights = tensors[:8]
    grids = (x[images], *(v[images, :, :, group] for v in (dt, B, C)))
    return Problem.of((*grids, *(w[group] for w in weights)), routes[group], merge=False)


def _routes_of(tensors: Sequence[Tensor], routes: tuple[Route, ...], images: slice, group: slice) -> Tensor:
    """Return the outputs of a group of routes (b, k, L, D), float32, valid until the next call."""
    p = _problem(tensors, routes, images, group)
    batch, height, width, channels = p.x.shape
    y = Scratch(p.x)("routes", (batch, len(p.routes), height * width, channels))
    p.call("forward", y=y)
    return y
