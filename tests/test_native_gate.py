"""The route gate's C against the formula in float64: every variant, odd sizes, threads; a whole model."""

from __future__ import annotations

import pytest
import torch

from qmamba import create_model
from qmamba.errors import BackendError
from qmamba.ops import native, route_gate
from qmamba.ops.native import gate
from test_route_gate import ours, plain

pytestmark = pytest.mark.usefixtures("library")


def make(grid, *, batch=2, routes=4, channels=16, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    D, H = channels, max(1, channels // 8)
    shapes = [(batch, routes, *grid, D), (D,), (D,), (H, D), (H,), (D, H), (D,)]
    y, *weights = (torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes)
    y = y * 3 + 5  # a mean that is not small beside the deviation
    return [t.to(dtype).requires_grad_() for t in (y, *weights)]


def run(tensors, function=ours):
    """The output and all gradients for one random cotangent."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]


def check(tensors, tolerance=3e-5):
    got, want = run(tensors), run([t.double() for t in tensors], plain)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a.double() - b).abs().max() <= tolerance * max(b.abs().max().item(), 1.0), i


@pytest.mark.parametrize("routes", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grid", [(1, 1), (1, 16), (7, 13), (23, 29)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_value_and_gradients(grid, batch, routes, poisoned):
    check(make(grid, batch=batch, routes=routes, channels=24))


@pytest.mark.parametrize("variant", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("channels", [4, 5, 16, 17, 64, 100, 200])
def test_every_variant_and_width(variant, channels, library, monkeypatch, poisoned):
    if variant not in library.variants:
        pytest.skip(f"this processor does not run {variant}")
    monkeypatch.setenv("QMAMBA_NATIVE_ISA", variant)
    for grid in [(1, 1), (4, 4), (17, 19)]:
        check(make(grid, channels=channels))


def test_a_mean_far_from_zero():
    tensors = make((9, 9))
    tensors[0] = tensors[0] + 1000  # the spread is 3: squares would leave nothing of it
    check(tensors, 1e-4)


def test_a_constant_row_has_finite_gradients():
    tensors = make((5, 5))
    tensors[0] = torch.full_like(tensors[0], 0.3)
    assert all(v.isfinite().all() for v in run(tensors))


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
    tensors = make(grid, batch=batch, channels=channels)
    y = tensors[0].detach().flatten(2, 3)
    g_out, gates, g_norm = y[:, 0] + 1, y[:, :, 0] / 5, y[:, :, 1] / 7

    def passes():
        mean, rstd, pooled = gate.moments(y)
        gradients = gate.gates_gradient(y, g_out), gate.routes_gradient(y, mean, rstd, gates, g_out, g_norm)
        return mean, rstd, pooled, gate.gated_sum(y, gates), *gradients

    threads(1)
    want = passes()
    for count in (1, 2, 2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(passes(), want, strict=True)), count


def test_views_are_taken_as_they_are(poisoned):
    """Routes and cotangents out of order in memory, or the same memory over and over."""
    tensors = make((7, 5))
    want = run(tensors)
    tensors[0] = tensors[0].detach().permute(0, 4, 2, 3, 1).contiguous().permute(0, 4, 2, 3, 1)
    assert all(torch.equal(a, b) for a, b in zip(run(tensors), want, strict=True))
    y, *weights = tensors
    y.requires_grad_()
    swapped = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(1)).permute(0, 3, 2, 1)
    for cotangent in (swapped, torch.ones(()).expand(2, 7, 5, 16)):
        (got,) = torch.autograd.grad(ours(y, *weights), y, cotangent)
        (want,) = torch.autograd.grad(plain(y, *weights), y, cotangent)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gates_in_float32(dtype):
    tensors = make((8, 9), dtype=dtype)
    got, want = run(tensors), run([t.float() for t in tensors])
    assert all(v.dtype == dtype for v in got)
    assert torch.equal(got[0], want[0].to(dtype))


def test_nan_in_is_nan_out_of_that_image():
    y, *weights = (t.detach() for t in make((3, 3)))
    y[0, 1, 1, 1, 0] = float("nan")
    out = ours(y, *weights)
    assert out[0].isnan().all() and not out[1].isnan().any()


def test_what_it_does_not_take_goes_to_torch(monkeypatch, tmp_path):
    calls, moments = [], route_gate.passes.moments
    monkeypatch.setattr(route_gate.passes, "moments", lambda y: calls.append(y.dtype) or moments(y))
    for dtype in (torch.float32, torch.bfloat16):
        ours(*make((2, 2), dtype=dtype))
    assert calls == [torch.float32, torch.float32]
    ours(*make((2, 2), dtype=torch.float64))
    assert ours(*make((0, 2))).shape == (2, 0, 2, 16)
    for name in ("torch", "reference"):
        monkeypatch.setenv("QMAMBA_BACKEND", name)
        ours(*make((2, 2)))
    monkeypatch.delenv("QMAMBA_BACKEND")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    ours(*make((2, 2)))
    assert len(calls) == 2
    for name, message in [("native", "not built"), ("gpu", "unknown")]:
        monkeypatch.setenv("QMAMBA_BACKEND", name)
        with pytest.raises(BackendError, match=message):
            ours(*make((2, 2)))


def test_export_holds_torch_operations():
    class Gate(torch.nn.Module):
        def forward(self, tensors):
            return ours(*tensors)

    tensors = [t.detach() for t in make((3, 5))]
    exported = torch.export.export(Gate(), (tensors,)).module()
    torch.testing.assert_close(exported(tensors), ours(*tensors))


def test_a_whole_model_is_the_same_as_torch_has_it(monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("lqmamba-n").eval()  # nothing is dropped at random
        images = torch.randn(3, 3, 64, 96)
    results = {}
    for name in ("torch", "native"):
        monkeypatch.setenv("QMAMBA_BACKEND", name)
        scores, features = model.forward_with_features(images)
        loss = scores.square().sum() + sum(f.square().mean() for f in features)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        results[name] = [scores.detach(), *(f.detach() for f in features), *grads]
    for got, want in zip(results["native"], results["torch"], strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()
