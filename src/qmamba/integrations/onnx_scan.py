"""The scan in ONNX's operations, for torch's exporter to put in the place of our operators.

The orders of the routes are worked out from the height and width that come in at run time. The recurrence
is made by doubling, h_t from h_{t-1}, then from h_{t-2}, h_{t-4}, …, in a loop of log2(H·W) turns: each acts
on all positions at once, where a step for each position would be slow everywhere.

Values in and out are the exporter's; the functions of ``op`` add operations to its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import FLOAT, script
from onnxscript.onnx_opset import opset18 as op
from onnxscript.values import Opset


def translations() -> dict[Any, Callable[..., Any]]:
    """Our operators, and what makes each of them in ONNX."""
    operators = torch.ops.qmamba
    return {operators.selective_scan.default: selective, operators.gated_scan.default: gated}


@script(Opset("qmamba", 1), default_opset=op)  # type: ignore[untyped-decorator]
def recurrence(a: FLOAT, b: FLOAT) -> FLOAT:
    """h_t = a_t h_{t-1} + b_t along the middle axis of (B, L, D)."""
    length = op.Shape(a, start=1, end=2)
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    shift = op.Constant(value_ints=[1])
    more = op.Squeeze(op.Less(shift, length))
    while more:
        pads = op.Concat(zero, shift, zero, zero, zero, zero, axis=0)
        kept = op.Sub(length, shift)
        earlier_b = op.Pad(op.Slice(b, zero, kept, one), pads)
        earlier_a = op.Pad(op.Slice(a, zero, kept, one), pads)
        b = op.Add(b, op.Mul(a, earlier_b))
        a = op.Mul(a, earlier_a)
        shift = op.Add(shift, shift)
        more = op.Squeeze(op.Less(shift, length))
    return b


def selective(tensors: Sequence[Any], routes: Sequence[int], merge: bool, backend: str) -> Any:
    """Routes' outputs (B, H, W, D), summed, or (B, K, H, W, D)."""
    outputs, shape = _outputs(tensors, routes)
    if not merge:
        return op.Concat(*(op.Unsqueeze(op.Reshape(y, shape), _ints(1)) for y in outputs), axis=1)
    return op.Reshape(op.Sum(*outputs), shape)


def gated(tensors: Sequence[Any], routes: Sequence[int]) -> Any:
    """Routes' outputs times their gates, summed (B, H, W, D)."""
    norm_weight, norm_bias, *linears = tensors[8:]
    outputs, shape = _outputs(tensors[:8], routes)
    gated = []
    for y in outputs:
        normed, *_ = op.LayerNormalization(y, norm_weight, norm_bias, axis=-1, epsilon=1e-5)
        hidden = _gelu(_linear(op.ReduceMean(normed, _ints(1)), *linears[:2]))
        gated.append(op.Mul(y, op.Sigmoid(_linear(hidden, *linears[2:]))))
    return op.Reshape(op.Sum(*gated), shape)


def _outputs(tensors: Sequence[Any], routes: Sequence[int]) -> tuple[list[Any], Any]:
    """y of every route (B, L, D), on the grid, and the shape (B, H, W, D)."""
    x, dt, B, C, dt_weight, dt_bias, A, D = tensors
    shape = op.Shape(x)
    height, width = op.Shape(x, start=1, end=2), op.Shape(x, start=2, end=3)
    rows = op.Reshape(x, _ints(0, -1, x.shape[3]))
    outputs = []
    for k in range(len(routes) // 3):
        order = _order(routes[3 * k : 3 * k + 3], height, width)
        one = _scalar(k)
        weight, bias, a, d = (op.Gather(v, one, axis=0) for v in (dt_weight, dt_bias, A, D))
        walked = [op.Gather(rows, order, axis=1)]
        for v in (dt, B, C):
            of_route = op.Gather(v, one, axis=3)  # (B, H, W, ·)
            walked.append(op.Gather(op.Reshape(of_route, _ints(0, -1, v.shape[4])), order, axis=1))
        y = _walk(walked, weight, bias, a, d, states=B.shape[4])
        places = op.Range(_scalar(0), op.Size(order), _scalar(1))
        inverse = op.ScatterElements(places, order, places, axis=0)
        outputs.append(op.Gather(y, inverse, axis=1))
    return outputs, shape


def _walk(walked: Sequence[Any], weight: Any, bias: Any, a: Any, d: Any, *, states: int) -> Any:
    """y (B, L, D) of one route from x, dt, B, C in its order."""
    x, dt, B, C = walked
    delta = op.Softplus(_linear(dt, weight, bias))
    y = op.Mul(x, d)
    for n in range(states):
        a_n, b_n, c_n = (_column(v, n) for v in (a, B, C))
        decay = op.Exp(op.Mul(delta, op.Squeeze(a_n, _ints(-1))))
        h = recurrence(decay, op.Mul(op.Mul(delta, x), b_n))
        y = op.Add(y, op.Mul(h, c_n))
    return y


def _order(route: Sequence[int], height: Any, width: Any) -> Any:
    """The route as a permutation (L,) of the row-major positions: sorted by window, then within it."""
    by_columns, window, reverse = route
    zero, one = _scalar(0), _scalar(1)
    line = op.Unsqueeze(op.Range(zero, op.Squeeze(height), one), _ints(1))
    across = op.Unsqueeze(op.Range(zero, op.Squeeze(width), one), _ints(0))
    if by_columns:
        line, across, width = across, line, height
    if window:
        w = _scalar(window)
        inner = op.Add(op.Mul(op.Mod(line, w), w), op.Mod(across, w))
        windows = op.Div(op.Add(width, _scalar(window - 1)), w)
        outer = op.Add(op.Mul(op.Div(line, w), windows), op.Div(across, w))
        key = op.Add(op.Mul(outer, _scalar(window * window)), inner)
    else:
        key = op.Add(op.Mul(line, width), across)
    key = op.Reshape(key, _ints(-1))
    _, order = op.TopK(key, op.Reshape(op.Size(key), _ints(1)), largest=reverse, sorted=1)
    return order


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    return op.Add(op.MatMul(x, op.Transpose(weight, perm=[1, 0])), bias)


def _gelu(x: Any) -> Any:
    half, root = op.Constant(value_float=0.5), op.Constant(value_float=2**-0.5)
    return op.Mul(op.Mul(x, half), op.Add(op.Erf(op.Mul(x, root)), op.Constant(value_float=1.0)))


def _column(v: Any, n: int) -> Any:
    """(…, N) → (…, 1)."""
    return op.Slice(v, _ints(n), _ints(n + 1), _ints(-1))


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _scalar(value: int) -> Any:
    return op.Constant(value_int=value)
