"""Translate the selective scan to ONNX operators, for torch's exporter.

The order of each route is computed at run time from the height and width of the input. The recurrence is
evaluated by recursive doubling: a loop of log2(H·W) iterations, each over all positions at once, since ONNX
runtimes are slow at one step per position.

Arguments and results are the exporter's values; the functions of ``op`` add nodes to its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import FLOAT, script
from onnxscript.onnx_opset import opset18 as op
from onnxscript.values import Opset


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the translation of each custom operator."""
    operators = torch.ops.qmamba
    return {operators.selective_scan.default: selective, operators.gated_scan.default: gated}


@script(Opset("qmamba", 1), default_opset=op)  # type: ignore[untyped-decorator]
def recurrence(a: FLOAT, b: FLOAT) -> FLOAT:
    """Compute h_t = a_t h_{t-1} + b_t along the middle axis of (B, L, D)."""
    length = op.Shape(a, start=1, end=2)
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    shift = op.Constant(value_ints=[1])
    is_shorter = op.Squeeze(op.Less(shift, length))
    while is_shorter:
        pads = op.Concat(zero, shift, zero, zero, zero, zero, axis=0)
        kept = op.Sub(length, shift)
        earlier_b = op.Pad(op.Slice(b, zero, kept, one), pads)
        earlier_a = op.Pad(op.Slice(a, zero, kept, one), pads)
        b = op.Add(b, op.Mul(a, earlier_b))
        a = op.Mul(a, earlier_a)
        shift = op.Add(shift, shift)
        is_shorter = op.Squeeze(op.Less(shift, length))
    return b


def selective(tensors: Sequence[Any], routes: Sequence[int], merge: bool, backend: str) -> Any:
    """Return the routes' outputs, summed (B, H, W, D) or stacked (B, K, H, W, D)."""
    outputs, shape = _outputs(tensors, routes)
    if not merge:
        return op.Concat(*(op.Unsqueeze(op.Reshape(y, shape), _ints(1)) for y in outputs), axis=1)
    return op.Reshape(op.Sum(*outputs), shape)


def gated(tensors: Sequence[Any], routes: Sequence[int]) -> Any:
    """Return the sum of the routes' gated outputs (B, H, W, D)."""
    norm_weight, norm_bias, *linears = tensors[8:]
    outputs, shape = _outputs(tensors[:8], routes)
    gated = []
    for y in outputs:
        normed, *_ = op.LayerNormalization(y, norm_weight, norm_bias, axis=-1, epsilon=1e-5)
        hidden = _gelu(_linear(op.ReduceMean(normed, _ints(1)), *linears[:2]))
        gated.append(op.Mul(y, op.Sigmoid(_linear(hidden, *linears[2:]))))
    return op.Reshape(op.Sum(*gated), shape)


def _outputs(tensors: Sequence[Any], routes: Sequence[int]) -> tuple[list[Any], Any]:
    """Return y (B, L, D) of each route in row-major order, and the shape (B, H, W, D)."""
    x, dt, B, C, dt_weight, dt_bias, A, D = tensors
    shape = op.Shape(x)
    height, width = op.Shape(x, start=1, end=2), op.Shape(x, start=2, end=3)
    rows = op.Reshape(x, _ints(0, -1, x.shape[3]))
    outputs = []
    for k in range(len(routes) // 3):
        order = _order(routes[3 * k : 3 * k + 3], height, width)
        route = _scalar(k)
        weight, bias, a, d = (op.Gather(v, route, axis=0) for v in (dt_weight, dt_bias, A, D))
        walked = [op.Gather(rows, order, axis=1)]
        for v in (dt, B, C):
            of_route = op.Gather(v, route, axis=3)  # (B, H, W, ·)
            walked.append(op.Gather(op.Reshape(of_route, _ints(0, -1, v.shape[4])), order, axis=1))
        y = _walk(walked, weight, bias, a, d, states=B.shape[4])
        positions = op.Range(_scalar(0), op.Size(order), _scalar(1))
        inverse = op.ScatterElements(positions, order, positions, axis=0)
        outputs.append(op.Gather(y, inverse, axis=1))
    return outputs, shape


def _walk(walked: Sequence[Any], weight: Any, bias: Any, a: Any, d: Any, *, states: int) -> Any:
    """Return y (B, L, D) of one route from x, dt, B, C in route order."""
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
    """Return a route as a permutation (L,) of row-major positions: by window, then within each window."""
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
    """Return column n: (…, N) → (…, 1)."""
    return op.Slice(v, _ints(n), _ints(n + 1), _ints(-1))


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _scalar(value: int) -> Any:
    return op.Constant(value_int=value)
