"""Triton's kernels against the plain loop, run by its interpreter. test_triton.py starts this in a process of
its own, since Triton asks only once, when it is imported, whether it is to interpret."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl

import interpreter_of_triton  # noqa: F401  (mends and hastens the interpreter)
from qmamba import create_model
from qmamba.ops import Route, cross_scan_routes, local_scan_routes, selective_scan
from qmamba.ops.route_gate import triton as triton_gate
from qmamba.ops.scan.triton import TritonScan
from qmamba.ops.scan.triton_steps import divided, reciprocal, softplus
from test_gated_scan import check as check_gated
from test_gated_scan import make as make_gated
from test_selective_scan import assert_same, make_inputs, run

launcher = sys.modules["qmamba.ops.scan.triton"]
slow = pytest.mark.slow  # left to `make test-slow`: the interpreter needs seconds for each case


@pytest.fixture(autouse=True)
def poison():
    """Outputs are NaN where they are not written."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """The interpreter takes its time for every element of a tile."""
    monkeypatch.setattr(launcher, "LANES", 32)
    monkeypatch.setattr(launcher, "SHORTEST", 16)
    monkeypatch.setattr(launcher, "CARRIES", (4, 16))


CASES = {
    "cross": (cross_scan_routes(), (7, 13), {"batch": 1}, True),
    "cross, apart": (cross_scan_routes(), (5, 8), {"batch": 1}, False),
    "windows": (local_scan_routes(3), (4, 11), {"batch": 1}, True),
    "windows, apart": (local_scan_routes(3), (8, 7), {"batch": 1}, False),
    "one position": (cross_scan_routes(), (1, 1), {}, True),
    "reversed only": ((Route("column", 3, reverse=True),), (4, 9), {}, True),
    "the same twice": ((Route("row"), Route("row"), Route("row", reverse=True)), (4, 9), {"batch": 1}, True),
    "three states": (local_scan_routes(2), (3, 7), {"batch": 1, "n": 3, "rank": 3}, True),
    "two groups of channels": ((Route("row"),), (2, 5), {"batch": 1, "channels": 70}, True),
}

SAMPLE = {  # of every run: the usual cases, the smallest, and odd ones
    ("cross", False),
    ("windows", False),
    ("one position", True),
    ("three states", True),
    ("two groups of channels", True),
    ("two groups of channels", False),
}


@pytest.mark.parametrize(
    ("case", "chunked"),
    [
        pytest.param(
            case,
            chunked,
            id=f"{case}-{'chunks' if chunked else 'whole'}",
            marks=[] if (case, chunked) in SAMPLE else [slow],
        )
        for case in CASES
        for chunked in (True, False)
    ],
)
def test_forward_and_gradients(monkeypatch, case, chunked):
    routes, grid, sizes, merge = CASES[case]
    monkeypatch.setattr(launcher, "PROGRAMS", 10**6 if chunked else 1)
    monkeypatch.setattr(launcher, "GROUP", 64)
    inputs = make_inputs(*grid, routes, **sizes)
    want = run(inputs, routes, "reference", merge=merge)
    got = run({name: t.float() for name, t in inputs.items()}, routes, "triton", merge=merge)
    assert_same(got, want, 2e-6)


@pytest.mark.parametrize("old", [pytest.param(False, marks=slow), True])
def test_tiles_as_a_gpu_gets_them(monkeypatch, old):
    monkeypatch.undo()
    kind = launcher.Problem.kind
    monkeypatch.setattr(launcher.Problem, "kind", property(lambda p: kind.func(p)._replace(old=old)))
    routes = (Route("column"), Route("column", reverse=True))
    inputs = make_inputs(5, 17, routes, batch=1)  # two chunks, tiles of 16, the last of them with spare steps
    got = run({name: t.float() for name, t in inputs.items()}, routes, "triton", merge=True)
    assert_same(got, run(inputs, routes, "reference", merge=True), 2e-6)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=slow), torch.bfloat16])
def test_half_precision_goes_in_and_out_and_the_state_is_float32(monkeypatch, dtype):
    monkeypatch.setattr(launcher, "PROGRAMS", 10**6)
    routes = cross_scan_routes()
    inputs = make_inputs(5, 9, routes, batch=1, dtype=dtype)
    got = run(inputs, routes, "triton", merge=True)
    assert got["y"].dtype == dtype and got["grad of dt"].dtype == dtype
    want = run({name: t.double() for name, t in inputs.items()}, routes, "reference", merge=True)
    assert_same(got, want, 2 * torch.finfo(dtype).eps)


def test_strided_arguments_and_cotangents():
    routes = cross_scan_routes()
    inputs = make_inputs(3, 5, routes, batch=1)
    packed = torch.cat([inputs[name] for name in ("dt", "B", "C")], -1).detach().float().requires_grad_()
    dt, B, C = torch.split(packed, [2, 1, 1], -1)
    weights = {name: inputs[name].detach().float() for name in ("dt_weight", "dt_bias", "A", "D")}
    x = inputs["x"].detach().float().transpose(1, 2).contiguous().transpose(1, 2)
    grads = []
    for name in ("triton", "reference"):
        y = selective_scan(x, dt, B, C, **weights, routes=routes, backend=name)
        grads.append(torch.autograd.grad(y.sum(), packed)[0])  # the cotangent has no strides
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


@slow
def test_a_backward_that_kept_nothing_makes_the_states_once_more():
    """As within an operator of torch's library, where only inputs are kept."""
    routes = local_scan_routes(3)
    tensors = [t.detach().float() for t in make_inputs(5, 8, routes, batch=1).values()]
    problem = launcher.Problem.of(tensors, routes, True)
    assert torch.equal(problem.entering(), problem.forward(keep=True)[1])
    context = SimpleNamespace(saved_tensors=tensors, routes=routes, merge=True)
    gy = torch.randn(1, 5, 8, 5)
    alone = TritonScan.backward(context, gy)[:8]
    kept = SimpleNamespace(saved_tensors=[*tensors, problem.entering()], routes=routes, merge=True)
    assert all(map(torch.equal, alone, TritonScan.backward(kept, gy)[:8]))


def test_an_empty_batch():
    routes = cross_scan_routes()
    got = run(
        {k: v.float() for k, v in make_inputs(3, 4, routes, batch=0).items()}, routes, "triton", merge=True
    )
    assert got["y"].shape == (0, 3, 4, 5)
    assert all((v == 0).all() for name, v in got.items() if name.startswith("grad"))


@pytest.mark.parametrize("case", [pytest.param("windows", marks=slow), "three", "one"])
def test_scan_and_gate_together(monkeypatch, case):
    routes, grid = {
        "windows": (local_scan_routes(2), (4, 5)),
        "three": (local_scan_routes(3)[:3], (3, 4)),
        "one": ((Route("row"),), (1, 1)),
    }[case]
    monkeypatch.setenv("QMAMBA_BACKEND", "triton")
    monkeypatch.setattr(triton_gate, "CHUNK", 8)  # several chunks, of several rows
    monkeypatch.setattr(triton_gate, "ELEMENTS", 64)
    check_gated(make_gated(grid, routes), routes)


@slow
def test_a_whole_model(monkeypatch):
    torch.manual_seed(0)
    net = create_model("lqmamba-n", widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), drop_path=0.0)
    x = torch.rand(1, 3, 32, 40)
    results = []
    for name in ("torch", "triton"):
        monkeypatch.setenv("QMAMBA_BACKEND", name)
        net.zero_grad()
        score = net(x)
        score.sum().backward()
        with torch.no_grad():
            repeated = net(x)
        results.append([score, repeated, *(p.grad for p in net.parameters())])
    assert_same(dict(enumerate(results[1])), dict(enumerate(results[0])), 1e-4)


@pytest.mark.parametrize("exact, tolerance", [(True, 1e-6), (False, 1e-5)])
def test_the_polynomials_of_softplus(exact, tolerance):
    @triton.jit
    def kernel(x, y, N: tl.constexpr, EXACT: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(y + i, softplus(tl.load(x + i), EXACT))

    x = torch.linspace(-24, 60, 2**14)
    y = torch.empty_like(x)
    kernel[(1,)](x, y, N=2**14, EXACT=exact)
    want = torch.nn.functional.softplus(x.double() * math.log(2), threshold=100) / math.log(2)
    assert ((y.double() - want).abs() / want).max() < tolerance


def test_division_by_a_product_is_exact():
    @triton.jit
    def kernel(n, d, quotient, rest, N: tl.constexpr):
        i = tl.arange(0, N)
        of = tl.load(d + i)
        q, r = divided(tl.load(n + i), of, reciprocal(of))
        tl.store(quotient + i, q)
        tl.store(rest + i, r)

    g, most = torch.Generator().manual_seed(0), 2**31 - 1
    d = torch.cat([torch.arange(1, 1025), torch.randint(1, 2**30, (1024,), generator=g)])
    drawn = torch.randint(0, most, (2048,), generator=g)
    whole = drawn // d * d
    for n in (drawn, whole, (whole - 1).clamp(min=0), torch.full_like(d, most)):
        numbers = [t.to(torch.int32) for t in (n, d)]
        q, r = torch.empty_like(numbers[0]), torch.empty_like(numbers[0])
        kernel[(1,)](*numbers, q, r, N=2048)
        assert torch.equal(q, (n // d).int()) and torch.equal(r, (n % d).int())
