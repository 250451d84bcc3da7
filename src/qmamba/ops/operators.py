"""The scans as operators of torch's library, for ``torch.compile``.

The compiler does not look inside an operator, and runs what eager mode would run: the native kernel, Triton's
or torch's loop. Routes pass through an operator's schema as three integers each. The backward is an operator
of its own, for which only inputs are kept: that of the gated scan recomputes its forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, List  # noqa: UP035

import torch
from torch import Tensor, library

from .backend import choose, usable
from .fused_scan import NativeGatedScan, TritonGatedScan, gated_scan
from .route_gate import GateWeights
from .route_gate.torch import GatedSum
from .routes import Route
from .scan import selective_scan
from .scan.native import NativeScan
from .scan.torch import TorchScan
from .scan.triton import TritonScan


def _routes_of(numbers: Sequence[int]) -> tuple[Route, ...]:
    threes = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return tuple(Route("column" if c else "row", window or None, bool(r)) for c, window, r in threes)


def _scan(tensors: Sequence[Tensor], numbers: Sequence[int], merge: bool, backend: str) -> Tensor:
    x, dt, B, C, dt_weight, dt_bias, A, D = tensors
    return selective_scan(
        x, dt, B, C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D, routes=_routes_of(numbers),
        merge=merge, backend=backend,
    )  # fmt: skip


def _gated(tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    x, dt, B, C, dt_weight, dt_bias, A, D, *gate = tensors
    return gated_scan(
        x, dt, B, C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D, gate=GateWeights(*gate),
        routes=_routes_of(numbers),
    )  # fmt: skip


class _Context:
    """Stand in for the context of an ``autograd.Function``: within an operator there is no autograd."""

    needs_input_grad = (True,)
    saved_tensors: tuple[Tensor, ...] = ()
    routes: tuple[Route, ...] = ()
    merge: bool = True

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


def _run(function: Any, *args: Any) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """Return the forward of an ``autograd.Function``, and its backward as a function of the cotangent."""
    context = _Context()
    out: Tensor = function.forward(context, *args)
    return out, lambda g: _gradients(function, context, g)


def _gradients(function: Any, context: _Context, g_out: Tensor) -> list[Tensor]:
    with torch.no_grad():  # as autograd calls it; with gradients a backward is one for second derivatives
        return [g.contiguous() for g in function.backward(context, g_out) if g is not None]


def _function(tensors: Sequence[Tensor], backend: str) -> Any:
    """Return the ``autograd.Function`` of the backend for these tensors."""
    name = choose(tensors, backend)
    if name == "native" and usable(tensors):
        return NativeScan
    return TritonScan if name == "triton" else TorchScan


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in tensors]


@library.custom_op("qmamba::selective_scan", mutates_args=())
def scan_operator(tensors: Sequence[Tensor], routes: Sequence[int], merge: bool, backend: str) -> Tensor:
    """Call :func:`selective_scan`."""
    return _scan(tensors, routes, merge, backend).contiguous()


@library.custom_op("qmamba::selective_scan_backward", mutates_args=())
def scan_backward_operator(
    g_out: Tensor, tensors: Sequence[Tensor], routes: Sequence[int], merge: bool, backend: str
) -> List[Tensor]:  # noqa: UP006  # the only name that torch 2.5 accepts
    """Return the gradients of all tensors."""
    context = _Context()  # as its forward leaves it: only inputs are kept
    context.save_for_backward(*tensors)
    context.routes, context.merge = _routes_of(routes), merge
    return _gradients(_function(tensors, backend), context, g_out)


@library.custom_op("qmamba::gated_scan", mutates_args=())
def gated_operator(tensors: Sequence[Tensor], routes: Sequence[int]) -> Tensor:
    """Call :func:`gated_scan`."""
    return _gated(tensors, routes).contiguous()


@library.custom_op("qmamba::gated_scan_backward", mutates_args=())
def gated_backward_operator(g_out: Tensor, tensors: Sequence[Tensor], routes: Sequence[int]) -> List[Tensor]:  # noqa: UP006
    """Return the gradients of all tensors."""
    together = {NativeScan: NativeGatedScan, TritonScan: TritonGatedScan}.get(_function(tensors, "auto"))
    if together is not None:
        return _run(together, *tensors, _routes_of(routes))[1](g_out)
    y, scan_backward = _run(TorchScan, *tensors[:8], _routes_of(routes), False)
    g_y, *g_gate = _run(GatedSum, y, *tensors[8:])[1](g_out)
    return [*scan_backward(g_y), *g_gate]


@scan_operator.register_fake
def _(tensors: Sequence[Tensor], routes: Sequence[int], merge: bool, backend: str) -> Tensor:
    x = tensors[0]
    return x.new_empty(x.shape if merge else (x.shape[0], len(routes) // 3, *x.shape[1:]))


@gated_operator.register_fake
def _(tensors: Sequence[Tensor], routes: Sequence[int]) -> Tensor:
    return tensors[0].new_empty(tensors[0].shape)


@scan_backward_operator.register_fake
def _(
    g_out: Tensor, tensors: Sequence[Tensor], routes: Sequence[int], merge: bool, backend: str
) -> list[Tensor]:
    return _like(tensors)


@gated_backward_operator.register_fake
def _(g_out: Tensor, tensors: Sequence[Tensor], routes: Sequence[int]) -> list[Tensor]:
    return _like(tensors)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, *ctx.rest = inputs
    ctx.save_for_backward(*tensors)


def _scan_backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
    return scan_backward_operator(g_out, ctx.saved_tensors, *ctx.rest), None, None, None


def _gated_backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
    return gated_backward_operator(g_out, ctx.saved_tensors, *ctx.rest), None


scan_operator.register_autograd(_scan_backward, setup_context=_keep)
gated_operator.register_autograd(_gated_backward, setup_context=_keep)
