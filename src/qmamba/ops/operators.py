"""The scans as operators of torch's library: ``torch.compile`` takes each of them whole, without looking
inside, and runs in its place what eager mode would run, the native kernel or torch's loop over rows.

Routes go through an operator's schema as numbers, three a route. The backward is an operator of its own, and
nothing but inputs is kept for it: that of the gated scan makes its forward once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, List  # noqa: UP035

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
    """What an ``autograd.Function`` keeps for its backward: within an operator there is no autograd."""

    needs_input_grad = (True,)
    saved_tensors: tuple[Tensor, ...] = ()
    routes: tuple[Route, ...] = ()
    merge: bool = True

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


def _run(function: Any, *args: Any) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """The forward of an ``autograd.Function``, and its backward as a function of the cotangent."""
    context = _Context()
    out: Tensor = function.forward(context, *args)
    return out, lambda g: _gradients(function, context, g)


def _gradients(function: Any, context: _Context, g_out: Tensor) -> list[Tensor]:
    return [g.contiguous() for g in function.backward(context, g_out) if g is not None]


def _function(tensors: Sequence[Tensor], backend: str) -> Any:
    """The ``autograd.Function`` of the backend for these tensors."""
    name = choose(tensors, backend)
    if name == "native" and usable(tensors):
        return NativeScan
    return TritonScan if name == "triton" else TorchScan


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in tensors]


@library.custom_op("qmamba::selective_scan", mutates_args=())
def scan_operator(tensors: Sequence[Tensor], routes: Sequence[int], merge: bool, backend: str) -> Tensor:
    """:func:`selective_scan`."""
    return _scan(tensors, routes, merge, backend).contiguous()


@library.custom_op("qmamba::selective_scan_backward", mutates_args=())
def scan_backward_operator(
    g_out: Tensor, tensors: Sequence[Tensor], routes: Sequence[int], merge: bool, backend: str
) -> List[Tensor]:  # noqa: UP006  # torch 2.5 knows it by this name only
    """Its gradients of all tensors."""
    context = _Context()  # as its forward leaves it, which keeps nothing but inputs
    context.save_for_backward(*tensors)
    context.routes, context.merge = _routes_of(routes), merge
    return _gradients(_function(tensors, backend), context, g_out)


@library.custom_op("qmamba::gated_scan", mutates_args=())
def gated_operator(tensors: Sequence[Tensor], routes: Sequence[int]) -> Tensor:
    """:func:`gated_scan`."""
    return _gated(tensors, routes).contiguous()


@library.custom_op("qmamba::gated_scan_backward", mutates_args=())
def gated_backward_operator(g_out: Tensor, tensors: Sequence[Tensor], routes: Sequence[int]) -> List[Tensor]:  # noqa: UP006
    """Its gradients of all tensors."""
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
