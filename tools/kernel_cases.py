"""Cases for run_kernel.c: arguments of the native kernel, and the reference's results in float64."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qmamba.ops import Route, cross_scan_routes, local_scan_routes, selective_scan
from qmamba.ops.route_gate import native as gate
from qmamba.ops.scan import native as scan

NUMBER, COUNTER, NOTHING, FLOATS, INT32S, EXPECTED = range(6)
SCAN, GATE = range(2)
FORWARD, BACKWARD = range(2)
SCAN_TOLERANCE, GATE_TOLERANCE = 2e-5, 3e-5  # as in the tests of either
CHUNK = 16  # positions of a task of the gate: several tasks in a small case
EPS = 1e-5


def write(path: Path) -> int:
    """Write all cases; return how many there are."""
    cases = [*_scans(), *_gates()]
    path.write_bytes(struct.pack("<q", len(cases)) + b"".join(cases))
    return len(cases)


def _case(
    name: str, tolerance: float, function: int, passes: tuple[int, ...], arguments: list[bytes]
) -> bytes:
    head = struct.pack("<63sf", name.encode(), tolerance) + struct.pack("<qq", function, len(passes))
    return head + struct.pack(f"<{len(passes)}qq", *passes, len(arguments)) + b"".join(arguments)


def _number(value: int) -> bytes:
    return struct.pack("<qq", NUMBER, value)


def _array(kind: int, tensor: Tensor) -> bytes:
    data = tensor.detach().to(torch.int32 if kind == INT32S else torch.float32).contiguous()
    return struct.pack("<qq", kind, data.numel()) + data.numpy().tobytes()


# --- the scan ---


def _scans() -> Iterator[bytes]:
    """Widths below, at and above a block of every variant; one and several states; merged and stacked."""
    cross, windows, single = cross_scan_routes(), local_scan_routes(3), (Route("column", 3, reverse=True),)
    for height, width, channels, rank, states, routes in [
        (1, 1, 1, 1, 1, cross),
        (7, 13, 5, 2, 3, windows),
        (9, 11, 64, 3, 1, windows),
        (6, 7, 100, 5, 2, cross),
        (37, 41, 33, 1, 1, single),  # several chunks of the backward
        (8, 8, 200, 11, 1, windows),
    ]:
        shape = (2, height, width, channels, rank, states)
        for merge in (True, False):
            name = f"{height}x{width}, {channels} channels, {'merged' if merge else 'stacked'}"
            yield from _scan(name, shape, tuple(routes), merge)


def _scan(
    name: str, shape: tuple[int, int, int, int, int, int], routes: tuple[Route, ...], merge: bool
) -> Iterator[bytes]:
    inputs = _scan_inputs(shape, routes)
    truth = {key: tensor.double().requires_grad_() for key, tensor in inputs.items()}
    y = selective_scan(**truth, routes=routes, merge=merge, backend="reference")
    gy = _draw(torch.Generator().manual_seed(1), *y.shape)
    g_x, g_dt, g_B, g_C, g_weight, g_bias, g_A, g_D = torch.autograd.grad(
        y, list(truth.values()), gy.double()
    )
    problem = scan.Problem.of(tuple(inputs.values()), routes, merge)
    strides = [s for v in (problem.dt, problem.B, problem.C) for s in (v.stride(0), v.stride(2), v.stride(3))]
    numbers = [*problem.sizes, int(merge), 1, 1, 1]  # one group of images, of channels and of routes
    head = [*map(_number, numbers), struct.pack("<q", COUNTER), *map(_number, strides)]
    order = torch.from_numpy(scan._orders(routes, *shape[1:3]).copy())
    arrays = {
        "order": _array(INT32S, order),
        **{key: _array(FLOATS, getattr(problem, key)) for key in scan._ARRAYS[1:9]},
    }
    forward = arrays | {"y": _array(EXPECTED, y)}
    gradients = {
        "g_x": g_x, "g_dt": g_dt, "g_B": g_B, "g_C": g_C, "g_weight": g_weight.transpose(1, 2),
        "g_bias": g_bias, "g_A": g_A.transpose(1, 2), "g_D": g_D,
    }  # fmt: skip
    backward = arrays | {"gy": _array(FLOATS, gy)} | {k: _array(EXPECTED, v) for k, v in gradients.items()}
    for which, given in ((FORWARD, forward), (BACKWARD, backward)):
        words = [given.get(key, struct.pack("<q", NOTHING)) for key in scan._ARRAYS]
        direction = ("forward", "backward")[which]
        yield _case(f"scan {direction}, {name}", SCAN_TOLERANCE, SCAN, (which,), head + words)


def _scan_inputs(shape: tuple[int, int, int, int, int, int], routes: tuple[Route, ...]) -> dict[str, Tensor]:
    batch, height, width, channels, rank, states = shape
    K, generator = len(routes), torch.Generator().manual_seed(0)
    grid = (batch, height, width)
    return {
        "x": _draw(generator, *grid, channels),
        "dt": _draw(generator, *grid, K, rank),
        "B": _draw(generator, *grid, K, states),
        "C": _draw(generator, *grid, K, states),
        "dt_weight": _draw(generator, K, channels, rank),
        "dt_bias": _draw(generator, K, channels),
        "A": -_draw(generator, K, channels, states).exp(),
        "D": _draw(generator, K, channels),
    }


# --- the route gate ---


def _gates() -> Iterator[bytes]:
    for routes, length, channels in [(1, 1, 1), (4, 35, 5), (4, 50, 64), (3, 19, 100)]:
        yield from _gate(2, routes, length, channels)


def _gate(B: int, K: int, L: int, D: int) -> Iterator[bytes]:
    generator = torch.Generator().manual_seed(0)
    y = _draw(generator, B, K, L, D) * 3 + 5  # a mean that is not small beside the deviation
    gates, g_norm = _draw(generator, B, K, D), _draw(generator, B, K, D)
    g_out = _draw(generator, B, L, D)

    exact = y.double().requires_grad_()
    mean = exact.mean(-1)  # (B, K, L)
    rstd = (exact.var(-1, unbiased=False) + EPS).rsqrt()
    norm = (exact - mean[..., None]) * rstd[..., None]  # (B, K, L, D)
    out = (exact * gates.double()[:, :, None]).sum(1)  # (B, L, D)
    loss = (out * g_out.double()).sum() + (norm * g_norm.double()[:, :, None]).sum()
    (g_y,) = torch.autograd.grad(loss, exact)
    centred = g_norm - g_norm.mean(-1, keepdim=True)

    inputs = {"y": y}
    yield _gate_case((gate.MOMENTS, gate.ADD_UP), inputs,
                     {"mean": mean, "rstd": rstd, "sums": _first_chunk(norm.sum(2), L)})  # fmt: skip
    yield _gate_case((gate.OUT,), inputs | {"gates": gates}, {"out": out})
    g_gates = (exact * g_out.double()[:, None]).sum(2)  # (B, K, D)
    yield _gate_case((gate.G_GATES, gate.ADD_UP), inputs | {"g_out": g_out},
                     {"sums": _first_chunk(g_gates, L)})  # fmt: skip
    known = {"mean": mean, "rstd": rstd, "gates": gates, "g_out": g_out, "g_norm": centred}
    yield _gate_case((gate.G_Y,), inputs | known, {"g_y": g_y})


def _first_chunk(sums: Tensor, length: int) -> Tensor:
    """(B, chunks, K, D): the first chunk ends as the sum of all (B, K, D); the others are open."""
    B, K, D = sums.shape
    wanted = sums.new_full((B, -(-length // CHUNK), K, D), float("nan"))
    wanted[:, 0] = sums
    return wanted


def _gate_case(passes: tuple[int, ...], inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> bytes:
    B, K, L, D = inputs["y"].shape
    head = [*map(_number, (B, K, L, D, CHUNK)), struct.pack("<q", COUNTER), _number(0)]
    arrays = {k: _array(FLOATS, v) for k, v in inputs.items()}
    arrays |= {k: _array(EXPECTED, v) for k, v in outputs.items()}
    words = [arrays.get(key, struct.pack("<q", NOTHING)) for key in gate._ARRAYS]
    name = f"gate passes {passes}, {K} routes, {L} positions, {D} channels"
    return _case(name, GATE_TOLERANCE, GATE, passes, head + words)


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).float()
