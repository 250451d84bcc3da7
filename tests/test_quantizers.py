"""Quantizers against recorded outputs and gradients, and what differs from the recorded public version."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from qmamba.quantization import DLS, LSQ, RFA, Grid, LSQPlus
from qmamba.quantization.calibration import sample
from qmamba.quantization.grid import fit_range, fit_weights
from qmamba.quantization.rounding import check_bits

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# The recording's names of our learnables; DLS has scalars where we have vectors.
LEARNABLES = {
    "RFA": {"a": ["a"], "alpha": ["alpha"], "beta": ["beta"]},
    "LSQ_W": {"alpha": ["alpha"]},
    "LSQ_A": {"alpha": ["alpha"], "beta": ["beta"]},
    "DLS": {"w": [f"weight{i}" for i in (1, 2, 3, 4)], "v": [f"weight2{i}" for i in (1, 2, 3, 4)]},
}
CASES = [
    (kind, bits, sign)
    for kind in LEARNABLES
    for bits in (2, 4, 8)
    for sign in (("s",) if kind in ("RFA", "LSQ_W") else ("s", "u"))
]


def made(kind, bits):
    if kind in ("RFA", "DLS"):
        return (RFA if kind == "RFA" else DLS)(bits, public=True)
    return LSQ(bits) if kind == "LSQ_W" else LSQPlus(bits, public=True)


@pytest.fixture(scope="module")
def recorded(data_dir):
    return load_file(data_dir / "quantizers.safetensors")


def tensors(recorded, kind, bits, sign):
    prefix = f"{kind}.{bits}b.{sign}."
    return {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("kind", "bits", "sign"), CASES)
def test_outputs_and_every_gradient_are_those_recorded(recorded, kind, bits, sign):
    case = tensors(recorded, kind, bits, sign)
    quantizer, x = made(kind, bits), case["x"].clone().requires_grad_()
    quantizer.initialise(x)
    torch.testing.assert_close(quantizer(x), case["y_init"], **CLOSE)
    names = LEARNABLES[kind]
    with torch.no_grad():
        for ours, theirs in names.items():
            getattr(quantizer, ours).copy_(torch.cat([case[f"state.{name}"] for name in theirs]))
    y = quantizer(x)
    y.backward(case["cot"])
    torch.testing.assert_close(y, case["y"], **CLOSE)
    torch.testing.assert_close(x.grad, case["gx"], **CLOSE)
    for ours, theirs in names.items():
        wanted = torch.cat([case[f"grad.{name}"] for name in theirs])
        torch.testing.assert_close(getattr(quantizer, ours).grad, wanted, **CLOSE)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rfa_with_gaps_is_rfa_with_the_same_breakpoints(recorded, bits):
    case = tensors(recorded, "RFA", bits, "s")
    ours, public = RFA(bits), RFA(bits, public=True)
    for quantizer in (ours, public):
        quantizer.initialise(case["x"])
    torch.testing.assert_close(ours.breakpoints, public.a, rtol=0, atol=2e-4)  # sums of up to 255 gaps
    with torch.no_grad():
        public.a.copy_(ours.breakpoints)
    x = case["x"].clone().requires_grad_()
    torch.testing.assert_close(ours(x), public(x))
    ours(x).backward(case["cot"])
    public(x).backward(case["cot"])
    # By the chain rule: the first breakpoint moves them all.
    torch.testing.assert_close(ours.first.grad, public.a.grad.sum()[None], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        ours.gaps.uniform_(-60, 5)  # however training moves them
    assert bool((ours.breakpoints.diff() > 0).all())


def test_codes_stand_for_what_the_quantizer_returns():
    w = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for bits in (2, 4, 8):
        for quantizer in (RFA(bits), LSQ(bits)):
            quantizer.initialise(w)
            with torch.no_grad():
                quantizer.alpha.mul_(1.3)
                if isinstance(quantizer, RFA):
                    quantizer.beta.fill_(0.07)
                    quantizer.gaps.add_(0.3)
            codes, grid = quantizer.codes(w), quantizer.grid()
            torch.testing.assert_close(grid.values(codes), quantizer(w).detach(), rtol=0, atol=1e-6)
            assert torch.equal(grid.codes(grid.values(codes)), codes)


def test_dls_does_not_look_at_batch_mates():
    x = (
        torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 9.0, 0.1])[:, None, None]
    )
    ours, public = DLS(4), DLS(4, public=True)
    public.initialise(x)
    one_by_one = torch.cat([ours(x[i : i + 1]) for i in range(3)])
    assert torch.equal(ours(x), one_by_one)
    assert not torch.allclose(public(x), torch.cat([public(x[i : i + 1]) for i in range(3)]))


def test_dls_passes_constant_tensors_through_with_finite_gradients():
    x = torch.stack([torch.full((4, 4), -1.0), torch.linspace(-2, 2, 16).view(4, 4)]).requires_grad_()
    quantizer = DLS(4)
    y = quantizer(x)
    y.square().sum().backward()
    assert torch.equal(y[0], x[0])
    assert all(bool(torch.isfinite(g).all()) for g in (x.grad, quantizer.w.grad, quantizer.v.grad))
    public = DLS(4, public=True)
    assert bool(public(torch.full((4, 4), -1.0)).isnan().any())  # the published behaviour, behind its flag


def test_dls_stays_signed_where_nothing_is_negative():
    x = torch.rand(2, 64, generator=torch.Generator().manual_seed(2)) + 1
    ours, public = DLS(4), DLS(4, public=True)
    ours.initialise(x)
    public.initialise(x)
    error, public_error = ((q(x) - x).square().mean() for q in (ours, public))
    assert bool(ours.signed)
    assert not bool(public.signed)
    assert error < public_error / 4  # half of the values lie below the mean, which unsigned codes lose


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_search_fits_dls_better_than_its_start(bits):
    rows = torch.randn(4, 500, generator=torch.Generator().manual_seed(3))
    rows[:, 7] = 25.0  # an outlier, as scan inputs have
    rows = sample(rows)
    start, full, searched = DLS(bits), DLS(bits), DLS(bits)
    full.fit(rows, search=False)
    searched.fit(rows, search=True)
    errors = [float((q(rows) - rows)[:, 2:].detach().square().mean()) for q in (start, full, searched)]
    assert errors[2] <= errors[1]
    assert errors[2] < errors[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ranges_are_spanned_or_searched(bits):
    x = torch.randn(2, 2000, generator=torch.Generator().manual_seed(4))
    x[0, 9] = 30.0
    x = sample(x)
    whole, searched = fit_range(x, bits, search=False), fit_range(x, bits, search=True)
    assert abs(float(whole.rounded(x)[0, 1]) - 30.0) < 1e-4
    assert abs(float(whole.rounded(x.min())) - float(x.min())) < 1e-4
    error = [float((grid.rounded(x) - x)[:, 2:].square().mean()) for grid in (whole, searched)]
    assert error[1] <= error[0]
    constant = torch.full((1, 5), 3.0)
    assert float((fit_range(constant, bits, search=True).rounded(constant) - 3.0).abs().max()) < 0.2


def test_weights_have_a_step_for_each_channel():
    w = (
        torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(5))
        * torch.tensor([1.0, 50.0, 0.0])[:, None, None]
    )
    grid = fit_weights(w, 4, search=False)
    assert grid.scale.shape == (3, 1, 1)
    assert bool(((grid.rounded(w) - w).abs() <= grid.scale / 2 + 1e-6).all())
    shared = fit_weights(w, 4, search=False, per_channel=False)
    assert shared.scale.shape == ()
    searched = fit_weights(w, 2, search=True)
    assert float((searched.rounded(w) - w).square().sum()) <= float(
        (fit_weights(w, 2, search=False).rounded(w) - w).square().sum()
    )
    assert bool((grid.rounded(w)[2] == 0).all())


def test_bits_are_2_4_or_8():
    for bits in (3, 16, True, "8"):
        with pytest.raises(ValueError, match="bits must be one of 2, 4, 8"):
            check_bits(bits)
    with pytest.raises(ValueError, match="bits must be one of"):
        fit_weights(torch.ones(2, 2), 5, search=False)


def test_a_grid_holds_signed_codes():
    grid = Grid(2, torch.tensor(0.5), torch.tensor(0.1))
    assert grid.codes(torch.tensor([-9.0, -0.1, 9.0])).tolist() == [-2, 0, 1]
    torch.testing.assert_close(grid.values(torch.tensor([-2, 1])), torch.tensor([-1.1, 0.4]))


def test_lsq_plus_returns_the_type_it_is_given():
    quantizer = LSQPlus(8)
    quantizer.fit(sample(torch.linspace(-1, 3, 100).view(1, -1)), search=False)
    x = torch.linspace(-1, 3, 7, dtype=torch.bfloat16)
    assert quantizer(x).dtype == torch.bfloat16
