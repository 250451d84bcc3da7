"""LQMamba's scan with its route gate as one operation: Σ_k y_k ⊙ g_k over the routes' outputs y_k.

Apart, the two need the outputs of all K routes of a batch, K times the features, again and again. Together,
in C, they need them for a few images at a time, in memory that stays; together in Triton, only while the
operation lasts. The backward makes them once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native
from .backend import choose, usable
from .compile import compiling, traced_gated_scan
from .native import gate as passes
from .precision import without_autocast
from .route_gate import GateWeights, gate_routes
from .route_gate import triton as triton_gate
from .route_gate.torch import gates_backward, route_gates
from .routes import Route
from .scan import selective_scan
from .scan.native import Problem
from .scan.triton import Problem as TritonProblem
from .scratch import KEPT, Scratch


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
    """The outputs of :func:`selective_scan`, not merged, through :func:`gate_routes`.

    Args:
        x, dt, B, C, dt_weight, dt_bias, A, D, routes: as :func:`selective_scan` takes them.
        gate: the weights of the route gate.
        out: where to write the result, of which then no gradient is to be had: (B, H, W, D), contiguous.

    Returns:
        ``out``, or (B, H, W, D) in the dtype of ``x``. Made in C or in Triton, forward and backward, where
        that backend can be used and takes these tensors, unless ``QMAMBA_BACKEND`` names another.

    Raises:
        BackendError: ``QMAMBA_BACKEND`` names no backend, or one that cannot be used here.
    """
    tensors = (x, dt, B, C, dt_weight, dt_bias, A, D, *gate)
    if compiling():
        return traced_gated_scan(tensors, routes)
    backend = choose(tensors) if x.numel() and not x.is_meta else "torch"
    if backend == "native":
        native.load()
    if backend == "native" and usable(tensors):
        if out is not None and out.dtype == torch.float32:
            _forward(tensors, tuple(routes), out.flatten(1, 2))
            return out
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
    """Write the gated sum to out (B, L, D); what the backward needs of LayerNorm, (B, K, L) twice, and the
    mean of its rows (B, K, D)."""
    x, gate, K = tensors[0], tensors[8:], len(routes)
    mean = out.new_empty(x.shape[0], K, out.shape[1])
    rstd, pooled = torch.empty_like(mean), out.new_empty(x.shape[0], K, x.shape[-1])
    weights = [w.detach().to(torch.float32) for w in gate]
    for some in _some_images(x, K):
        for few in _some_routes(x, K):
            y = _routes_of(tensors, routes, some, few)
            mean[some, few], rstd[some, few], pooled[some, few] = passes.moments(y)
            with without_autocast(x.device):
                gates = route_gates(pooled[some, few], weights)
            passes.gated_sum(y, gates, out[some], onto=few.start > 0)
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
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # asked for once: under activation checkpointing they are made then
        tensors, gate = saved[:8], saved[8:14]
        mean, rstd, pooled = saved[14:]
        g_out = g_out.to(torch.float32).flatten(1, 2).contiguous()
        rows: list[tuple[Tensor, ...]] = []  # gradients of x, dt, B, C of some images
        sums: list[tuple[Tensor, ...]] = []  # theirs of all weights
        for some in _some_images(tensors[0], len(ctx.routes)):
            y = _routes_of(tensors, ctx.routes, some, slice(None))
            with without_autocast(y.device):
                gates, g_pooled, g_gate = gates_backward(
                    pooled[some], gate, passes.gates_gradient(y, g_out[some])
                )
            g_norm = g_pooled / y.shape[2]
            passes.routes_gradient(y, mean[some], rstd[some], gates, g_out[some], g_norm, out=y)
            grads = _problem(tensors, ctx.routes, some, slice(None)).gradients(y)
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
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        tensors, (mean, rstd, pooled) = saved[:14], saved[14:]
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


def _some_images(x: Tensor, routes: int) -> Iterator[slice]:
    """As many images at a time as have their routes' outputs in the memory that is kept."""
    count = max(1, KEPT // (routes * x[0].numel()))
    return (slice(i, i + count) for i in range(0, x.shape[0], count))


def _some_routes(x: Tensor, routes: int) -> Iterator[slice]:
    """All at a time, but two for large images: a gate knows only its own route."""
    count = routes if routes * x[0].numel() <= KEPT else 2
    return (slice(k, min(k + count, routes)) for k in range(0, routes, count))


def _problem(tensors: Sequence[Tensor], routes: tuple[Route, ...], images: slice, some: slice) -> Problem:
    x, dt, B, C, *weights = tensors[:8]
    grids = (x[images], *(v[images, :, :, some] for v in (dt, B, C)))
    return Problem.of((*grids, *(w[some] for w in weights)), routes[some], merge=False)


def _routes_of(tensors: Sequence[Tensor], routes: tuple[Route, ...], images: slice, some: slice) -> Tensor:
    """The outputs of some routes of some images (b, k, L, D), float32, until they are asked for again."""
    p = _problem(tensors, routes, images, some)
    batch, height, width, channels = p.x.shape
    y = Scratch(p.x)("routes", (batch, len(p.routes), height * width, channels))
    p.call("forward", y=y)
    return y
