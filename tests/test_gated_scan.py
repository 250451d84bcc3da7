"""Scan and route gate as one operation, in C, against the plain loop and the formula in float64: every
variant, odd sizes, threads, chunks of images and routes; a whole model."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from qmamba import create_model
from qmamba.errors import BackendError
from qmamba.ops import GateWeights, Route, gated_scan, local_scan_routes, native, selective_scan
from qmamba.ops.route_gate import native as gate
from qmamba.ops.route_gate.torch import gates_backward
from test_route_gate import make as make_routes
from test_route_gate import plain
from test_selective_scan import make_inputs

pytestmark = pytest.mark.usefixtures("library")
module = sys.modules["qmamba.ops.fused_scan"]

ROUTES = {
    "local-2": local_scan_routes(2),
    "three": local_scan_routes(3)[:3],
    "one": (Route("row"),),
}


def make(grid, routes=ROUTES["local-2"], *, batch=2, channels=16, dtype=torch.float32, **options):
    """All tensors of the operation; the routes' means are not small beside their deviations."""
    inputs = make_inputs(*grid, routes, batch=batch, channels=channels, **options)
    g = torch.Generator().manual_seed(3)
    hidden = max(1, channels // 8)
    shapes = [(channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,)]
    inputs["x"] = inputs["x"].detach() + 3
    weights = [torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes]
    return [t.detach().to(dtype) for t in (*inputs.values(), *weights)]


def ours(routes, x, dt, B, C, dt_weight, dt_bias, A, D, *weights):
    return gated_scan(
        x, dt, B, C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D, gate=GateWeights(*weights), routes=routes
    )


def truth(routes, x, dt, B, C, dt_weight, dt_bias, A, D, *weights):
    y = selective_scan(
        x, dt, B, C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D, routes=routes, merge=False,
        backend="reference",
    )  # fmt: skip
    return plain(y, *weights)


def run(tensors, routes=ROUTES["local-2"], function=ours):
    """The output and all gradients for one random cotangent."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(routes, *leaves)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]


def check(tensors, routes=ROUTES["local-2"], tolerance=3e-5):
    got, want = run(tensors, routes), run([t.double() for t in tensors], routes, truth)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a.double() - b).abs().max() <= tolerance * max(b.abs().max().item(), 1.0), i
    with torch.no_grad():
        assert torch.equal(ours(routes, *tensors), got[0])


@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grid", [(1, 1), (1, 16), (7, 13)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_value_and_gradients(grid, batch, routes, poisoned):
    check(make(grid, routes, batch=batch, channels=24), routes)


@pytest.mark.parametrize("variant", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("channels", [4, 5, 16, 17, 64, 100, 200])
def test_every_variant_and_width(variant, channels, library, monkeypatch, poisoned):
    if variant not in library.variants:
        pytest.skip(f"this CPU does not run {variant}")
    monkeypatch.setenv("QMAMBA_NATIVE_ISA", variant)
    for grid in [(1, 1), (9, 7)]:
        check(make(grid, channels=channels))


@pytest.mark.parametrize("kept", [1, 3 * 4 * 35 * 20, 7 * 4 * 35 * 20])
def test_a_few_images_and_routes_at_a_time(kept, monkeypatch, poisoned):
    """Five images: one by one, routes in pairs; three at a time; all at once."""
    tensors = make((5, 7), batch=5, channels=20)
    monkeypatch.setattr(module, "KEPT", kept)
    check(tensors)


def test_a_mean_far_from_zero():
    tensors = make((9, 9))
    tensors[7] = tensors[7] + 300  # the spread is some hundreds less: squares would leave little of it
    tensors[0] = tensors[0] / 100 + 3
    check(tensors, tolerance=3e-4)


def by_passes(y, *weights):
    """The gate of routes (B, K, H, W, D) and its gradient of them for a cotangent of ones."""
    routes = y.flatten(2, 3)
    mean, rstd, pooled = gate.moments(routes)
    g_out = torch.ones_like(routes[:, 0])
    gates, g_pooled, _ = gates_backward(pooled, weights, gate.gates_gradient(routes, g_out))
    g_norm = g_pooled / routes.shape[2]
    g_y = gate.routes_gradient(routes, mean, rstd, gates, g_out, g_norm)
    out = torch.full_like(g_out, math.nan)
    gate.gated_sum(routes[:, :1].contiguous(), gates[:, :1].contiguous(), out)
    gate.gated_sum(routes[:, 1:].contiguous(), gates[:, 1:].contiguous(), out, onto=True)
    return out.view_as(y[:, 0]), g_y.view_as(y)


@pytest.mark.parametrize("offset", [5, 1000])  # the spread is 3: squares would leave nothing of it
@pytest.mark.parametrize("grid", [(1, 1), (9, 9), (23, 29)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_the_passes_alone(grid, offset, poisoned):
    y, *weights = (t.detach() for t in make_routes(grid, dtype=torch.float32))
    y = y + (offset - 5)
    leaf = y.double().requires_grad_()
    want = plain(leaf, *(w.double() for w in weights))
    (g_want,) = torch.autograd.grad(want.sum(), leaf)
    for got, true in zip(by_passes(y, *weights), (want, g_want), strict=True):
        assert (got.double() - true).abs().max() <= 1e-4 * max(true.abs().max().item(), 1.0)


def test_a_constant_row_has_finite_gradients():
    y, *weights = (t.detach() for t in make_routes((5, 5), dtype=torch.float32))
    assert all(v.isfinite().all() for v in by_passes(torch.full_like(y, 0.3), *weights))


SIZES = pytest.mark.parametrize(("batch", "grid", "channels"), [(3, (32, 32), 17), (12, (16, 16), 200)])


@SIZES
def test_same_bits_every_time(batch, grid, channels, threads):
    tensors = make(grid, batch=batch, channels=channels)
    for count in (1, 2, 3):
        threads(count)
        want = run(tensors)
        assert all(torch.equal(a, b) for a, b in zip(run(tensors), want, strict=True)), count


@SIZES
def test_passes_have_the_same_bits_with_any_number_of_threads(batch, grid, channels, threads):
    """The passes alone: the matrix products of torch between them are another matter."""
    y = make((*grid,), batch=4 * batch, channels=channels)[0].view(batch, 4, -1, channels)
    g_out, gates, g_norm = y[:, 0] + 1, y[:, :, 0] / 5, y[:, :, 1] / 7

    def passes():
        mean, rstd, pooled = gate.moments(y)
        gradients = gate.gates_gradient(y, g_out), gate.routes_gradient(y, mean, rstd, gates, g_out, g_norm)
        own = gate.routes_gradient(y, mean, rstd, gates, g_out, g_norm, out=y.clone())
        assert torch.equal(own, gradients[1])
        out = torch.empty_like(g_out)
        gate.gated_sum(y, gates, out)
        return mean, rstd, pooled, out, *gradients

    threads(1)
    want = passes()
    for count in (1, 2, 2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(passes(), want, strict=True)), count


def test_the_gradient_of_the_routes_may_take_their_place():
    y = make((5, 5), batch=8)[0].view(2, 4, -1, 16)
    mean, rstd, _ = gate.moments(y)
    given = (mean, rstd, y[:, :, 0] / 5, y[:, 0] + 1, y[:, :, 1] / 7)
    want = gate.routes_gradient(y, *given)
    assert torch.equal(gate.routes_gradient(y, *given, out=y), want)


def test_views_are_taken_as_they_are(poisoned):
    """Features and cotangents out of order in memory, or the same memory over and over."""
    tensors = make((7, 5))
    want = run(tensors)
    tensors[0] = tensors[0].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert all(torch.equal(a, b) for a, b in zip(run(tensors), want, strict=True))
    leaves = [t.requires_grad_() for t in tensors]
    swapped = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(1)).permute(0, 3, 2, 1)
    for cotangent in (swapped, torch.ones(()).expand(2, 7, 5, 16)):
        got = torch.autograd.grad(ours(ROUTES["local-2"], *leaves), leaves, cotangent)
        want = torch.autograd.grad(truth(ROUTES["local-2"], *leaves), leaves, cotangent)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    tensors = make((8, 9), dtype=dtype)
    got, want = run(tensors), run([t.float() for t in tensors])
    assert all(v.dtype == dtype for v in got)
    assert torch.equal(got[0], want[0].to(dtype))


def test_nan_in_is_nan_out_of_that_image():
    tensors = make((3, 3))
    tensors[0][0, 1, 1, 0] = float("nan")
    out = ours(ROUTES["local-2"], *tensors)
    assert out[0].isnan().all() and not out[1].isnan().any()


def test_what_it_does_not_take_goes_to_torch(monkeypatch, tmp_path):
    calls, moments, routes = [], gate.moments, ROUTES["local-2"]
    monkeypatch.setattr(gate, "moments", lambda y: calls.append(y.dtype) or moments(y))
    for dtype in (torch.float32, torch.bfloat16):
        ours(routes, *make((2, 2), dtype=dtype))
    assert calls == [torch.float32, torch.float32]
    ours(routes, *make((2, 2), dtype=torch.float64))
    for name in ("torch", "reference"):
        monkeypatch.setenv("QMAMBA_BACKEND", name)
        ours(routes, *make((2, 2)))
    monkeypatch.delenv("QMAMBA_BACKEND")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    ours(routes, *make((2, 2)))
    assert len(calls) == 2
    for name, message in [("native", "not built"), ("gpu", "unknown")]:
        monkeypatch.setenv("QMAMBA_BACKEND", name)
        with pytest.raises(BackendError, match=message):
            ours(routes, *make((2, 2)))


@pytest.mark.skipif(
    getattr(torch.compiler, "is_exporting", None) is None, reason="torch before 2.7 exports other programs"
)
def test_export_holds_torch_operations():
    class Gated(torch.nn.Module):
        def forward(self, tensors):
            return ours(ROUTES["local-2"], *tensors)

    tensors = make((3, 5))
    exported = torch.export.export(Gated(), (tensors,)).module()
    torch.testing.assert_close(exported(tensors), ours(ROUTES["local-2"], *tensors))


def test_a_whole_model_is_the_same_as_torch_has_it(monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("lqmamba-n").eval()  # nothing is dropped at random
        images = torch.randn(3, 3, 64, 96)
    results = {}
    for name in ("torch", "native"):
        monkeypatch.setenv("QMAMBA_BACKEND", name)
        scores, features = model.forward_features(images)
        loss = scores.square().sum() + sum(f.square().mean() for f in features)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        results[name] = [scores.detach(), *(f.detach() for f in features), *grads]
    for got, want in zip(results["native"], results["torch"], strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()
