"""The scan against the plain loop: forward, every gradient, odd sizes, all routes."""

from __future__ import annotations

import importlib

import pytest
import torch

from qmamba.errors import BackendError
from qmamba.ops import Route, cross_scan_routes, local_scan_routes, precision, selective_scan

GRIDS = [(1, 1), (1, 13), (13, 1), (2, 2), (7, 13), (9, 6), (11, 24), (5, 30)]
ROUTES = {
    "cross": cross_scan_routes(),
    "local-2": local_scan_routes(2),
    "local-7": local_scan_routes(7),
    "one": (Route("row"),),
    "reversed only": (Route("column", 3, reverse=True),),
}
NAMES = ("x", "dt", "B", "C", "dt_weight", "dt_bias", "A", "D")


def make_inputs(height, width, routes, *, batch=2, channels=5, rank=2, n=1, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    k = len(routes)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    tensors = {
        "x": draw(batch, height, width, channels),
        "dt": draw(batch, height, width, k, rank),
        "B": draw(batch, height, width, k, n),
        "C": draw(batch, height, width, k, n),
        "dt_weight": draw(k, channels, rank),
        "dt_bias": draw(k, channels),
        "A": -draw(k, channels, n).exp(),
        "D": draw(k, channels),
    }
    return {name: t.requires_grad_() for name, t in tensors.items()}


def run(inputs, routes, backend, *, merge, seed=1):
    """Output and all gradients for one random cotangent."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    y = selective_scan(**leaves, routes=routes, merge=merge, backend=backend)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grads = torch.autograd.grad(y, list(leaves.values()), cotangent.to(y.dtype))
    return {"y": y.detach(), **{f"grad of {name}": g for name, g in zip(leaves, grads, strict=True)}}


def assert_same(got, want, tolerance):
    for name in want:
        error = (got[name].double() - want[name].double()).abs().max().item()
        scale = max(want[name].double().abs().max().item(), 0.1)
        assert error <= tolerance * scale, f"{name}: off by {error / scale:.1e} of its largest magnitude"


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0]}x{g[1]}")
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "stacked"])
def test_matches_reference_in_float64(grid, routes, merge):
    inputs = make_inputs(*grid, routes)
    got = run(inputs, routes, "torch", merge=merge)
    want = run(inputs, routes, "reference", merge=merge)
    assert_same(got, want, 1e-10)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0]}x{g[1]}")
def test_matches_reference_in_float32(grid):
    routes = local_scan_routes(4)
    inputs = make_inputs(*grid, routes, dtype=torch.float32, channels=16)
    truth = {name: t.double() for name, t in inputs.items()}
    assert_same(run(inputs, routes, "torch", merge=True), run(truth, routes, "reference", merge=True), 2e-5)


@pytest.mark.parametrize("n", [2, 3, 16])
def test_any_number_of_states(n):
    routes = cross_scan_routes()
    inputs = make_inputs(5, 7, routes, n=n)
    assert_same(run(inputs, routes, "torch", merge=True), run(inputs, routes, "reference", merge=True), 1e-10)


def test_many_images_are_tiled_without_a_seam(monkeypatch):
    implementation = importlib.import_module("qmamba.ops.scan.torch")

    routes = local_scan_routes(3)
    inputs = make_inputs(6, 5, routes, batch=5)
    whole = run(inputs, routes, "torch", merge=False)
    monkeypatch.setattr(implementation, "TILE", 2 * 6 * 5 * 5)  # two images a tile, the last one alone
    assert_same(run(inputs, routes, "torch", merge=False), whole, 1e-12)


def test_gradcheck():
    routes = local_scan_routes(2)
    inputs = make_inputs(3, 4, routes, batch=1, channels=2, n=2)

    def op(*tensors):
        return selective_scan(**dict(zip(NAMES, tensors, strict=True)), routes=routes)

    assert torch.autograd.gradcheck(op, [inputs[name] for name in NAMES])


@pytest.mark.parametrize("magnitude", [1.0, 40.0])
def test_strong_decay_over_a_long_route_stays_finite_and_right(magnitude):
    """A = -4 and Δ up to 1 (and far beyond) for 4,096 steps: Π exp(ΔA) underflows, 1/Π would overflow."""
    routes = (Route("row"), Route("row", reverse=True))
    inputs = make_inputs(64, 64, routes, batch=1, channels=3, dtype=torch.float32)
    with torch.no_grad():
        inputs["A"].fill_(-4.0)
        inputs["dt_weight"].fill_(0.0)
        inputs["dt_bias"].fill_(0.5413 * magnitude)  # softplus(0.5413) = 1
    got = run(inputs, routes, "torch", merge=True)
    assert all(v.isfinite().all() for v in got.values())
    truth = {name: t.double() for name, t in inputs.items()}
    assert_same(got, run(truth, routes, "reference", merge=True), 2e-5)


def test_weak_decay_over_a_long_route_keeps_its_memory():
    routes = (Route("column"),)
    inputs = make_inputs(64, 64, routes, batch=1, channels=3, dtype=torch.float32)
    with torch.no_grad():
        inputs["A"].fill_(-1e-3)
    truth = {name: t.double() for name, t in inputs.items()}
    assert_same(run(inputs, routes, "torch", merge=True), run(truth, routes, "reference", merge=True), 2e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scans_in_float32(dtype):
    """The only rounding is that of the inputs and of the result."""
    routes = cross_scan_routes()
    inputs = {k: v.detach() for k, v in make_inputs(8, 9, routes, dtype=dtype).items()}
    got = selective_scan(**inputs, routes=routes)
    want = selective_scan(**{k: v.float() for k, v in inputs.items()}, routes=routes)
    assert got.dtype == dtype
    assert torch.equal(got, want.to(dtype))


def test_autocast_does_not_lower_the_scan():
    routes = cross_scan_routes()
    inputs = make_inputs(8, 9, routes, dtype=torch.float32)
    plain = run(inputs, routes, "torch", merge=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(inputs, routes, "torch", merge=True)
    assert_same(cast, plain, 1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0]}x{g[1]}")
@pytest.mark.parametrize("window", [None, 2, 4, 7])
def test_every_route_is_a_permutation_and_its_reverse_runs_backwards(grid, window):
    height, width = grid
    for axis in ("row", "column"):
        order = Route(axis, window).order(height, width)
        assert sorted(order.tolist()) == list(range(height * width))
        backwards = Route(axis, window, reverse=True).order(height, width)
        assert torch.equal(backwards, order.flip(0))


def test_routes_visit_what_the_paper_says():
    assert Route("row").order(2, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert Route("column").order(2, 3).tolist() == [0, 3, 1, 4, 2, 5]
    assert Route("row", 2).order(3, 3).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert Route("column", 2).order(3, 3).tolist() == [0, 3, 1, 4, 6, 7, 2, 5, 8]
    kinds = [(r.axis, r.reverse) for r in local_scan_routes(7)]
    assert kinds == [("row", False), ("column", False), ("row", True), ("column", True)]


def test_wrong_calls_name_what_is_wrong():
    routes = cross_scan_routes()
    inputs = make_inputs(3, 3, routes)
    with pytest.raises(BackendError, match="choose one of auto"):
        selective_scan(**inputs, routes=routes, backend="cuda")
    with pytest.raises(ValueError, match="dt_bias must have shape"):
        selective_scan(**{**inputs, "dt_bias": inputs["D"][:, :2]}, routes=routes)
    with pytest.raises(ValueError, match="axis"):
        Route("diagonal")
    with pytest.raises(ValueError, match="window"):
        Route("row", 0)


@pytest.mark.parametrize("place", ["fake tensors", "default device", "inference mode"])
def test_nothing_of_a_foreign_mode_is_remembered(place):
    """Routes are kept between calls; one that was made while a graph was traced must not be met again."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    height = {"fake tensors": 17, "default device": 18, "inference mode": 19}[place]  # seen nowhere else
    routes = local_scan_routes(3)
    inputs = make_inputs(height, 23, routes)
    if place == "fake tensors":
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            selective_scan(**{name: mode.from_tensor(t) for name, t in inputs.items()}, routes=routes)
    else:
        with torch.device("meta") if place == "default device" else torch.inference_mode():
            selective_scan(**inputs, routes=routes)
    got, want = (run(inputs, routes, backend, merge=True) for backend in ("torch", "reference"))
    assert_same(got, want, 1e-10)


def test_devices_that_know_no_autocast_are_served(monkeypatch):
    """As Apple's under torch 2.4, where even switching it off is an error."""

    def refuse(kind, **options):
        raise RuntimeError(f"unsupported autocast device_type {kind}")

    monkeypatch.setattr(precision, "USUAL", ())
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", refuse)
    routes = cross_scan_routes()
    assert run(make_inputs(3, 4, routes), routes, "torch", merge=True)["y"].isfinite().all()


def test_the_device_without_data_knows_no_autocast():
    with pytest.raises(RuntimeError), torch.autocast("meta", enabled=False):
        pass
    with precision.without_autocast(torch.device("meta")):
        pass
