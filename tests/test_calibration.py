"""The curve from raw quality to score: monotone, smooth, and fitted as least squares asks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from qmamba.calibration import Calibration
from qmamba.errors import CheckpointError, RecipeError


def sample(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    raw = rng.normal(3.0, 7.0, n)
    mos = 1 / (1 + np.exp(-(0.21 * raw - 0.4))) + rng.normal(0, 0.06, n)
    return torch.from_numpy(raw), torch.from_numpy(mos.clip(0, 1))


def test_values_and_types() -> None:
    curve = Calibration(slope=1.5, offset=-0.5)
    raw = torch.linspace(-5, 5, 101)
    assert torch.allclose(curve(raw), 1 / (1 + torch.exp(-(1.5 * raw - 0.5))))
    assert (curve(raw).diff() > 0).all()
    assert curve(raw.half()).dtype == curve(raw.bfloat16()).dtype == torch.float32
    assert curve(raw.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert curve(raw).dtype == torch.float32


def test_gradient_is_positive_and_finite() -> None:
    raw = torch.tensor([-80.0, -10.0, 0.0, 10.0], requires_grad=True)
    Calibration()(raw).sum().backward()
    assert raw.grad is not None and torch.isfinite(raw.grad).all() and (raw.grad[1:] > 0).all()


def test_fit_is_the_least_squares_of_another_solver() -> None:
    raw, mos = sample()
    fitted = Calibration.fit(raw, mos)
    x, y = raw.numpy(), mos.numpy()
    other = least_squares(
        lambda p: 1 / (1 + np.exp(-(p[0] * x + p[1]))) - y, [0.1, 0.0], xtol=1e-14, ftol=1e-14
    )
    assert fitted.slope == pytest.approx(other.x[0], rel=1e-5)
    assert fitted.offset == pytest.approx(other.x[1], rel=1e-4)


@pytest.mark.parametrize(("slope", "offset"), [(1e-3, 0.2), (1.0, -3.0), (500.0, 100.0)])
def test_fit_recovers_a_curve_at_any_scale(slope: float, offset: float) -> None:
    raw = (torch.linspace(-2, 2, 60, dtype=torch.float64) - offset) / slope
    fitted = Calibration.fit(raw, Calibration(slope, offset)(raw))
    assert fitted.slope == pytest.approx(slope, rel=1e-4)
    assert fitted.offset == pytest.approx(offset, abs=1e-4 * max(1.0, abs(offset)))


def test_fit_is_deterministic_and_takes_lists_and_grads() -> None:
    raw, mos = sample()
    state = torch.get_rng_state()
    fitted = Calibration.fit(raw, mos)
    assert Calibration.fit(raw.tolist(), mos.numpy()) == fitted
    with torch.inference_mode(False), torch.no_grad():
        assert Calibration.fit(raw.clone().requires_grad_(), mos) == fitted
    assert torch.equal(state, torch.get_rng_state())


def test_fit_of_extreme_scores() -> None:
    fitted = Calibration.fit([-1.0, -0.9, 0.9, 1.0], [0.0, 0.0, 1.0, 1.0])
    assert math.isfinite(fitted.slope) and fitted.slope > 1


@pytest.mark.parametrize(
    ("raw", "mos", "word"),
    [
        ([1.0], [0.5], "at least two pairs"),
        ([1.0, 2.0], [0.5], "2 raw values and 1 MOS"),
        ([1.0, float("nan")], [0.2, 0.5], "finite"),
        ([1.0, 2.0], [0.2, float("inf")], "finite"),
        ([1.0, 2.0], [20.0, 50.0], "scale"),
        ([1.0, 1.0], [0.2, 0.5], "rise"),
        ([1.0, 2.0], [0.5, 0.2], "rise"),
    ],
)
def test_bad_data(raw: list[float], mos: list[float], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Calibration.fit(raw, mos)


@pytest.mark.parametrize(
    "fields", [{"slope": 0.0}, {"slope": -1.0}, {"slope": math.nan}, {"offset": math.inf}]
)
@pytest.mark.parametrize("wrap", [False, True])
def test_bad_numbers(fields: dict[str, float], wrap: bool) -> None:
    with pytest.raises(CheckpointError, match=next(iter(fields))):
        Calibration.from_dict({"slope": 1.0, "offset": 0.0, **fields}) if wrap else Calibration(**fields)


def test_dict_round_trip() -> None:
    curve = Calibration(0.1 + 0.2, -1 / 3)
    assert Calibration.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve
    for bad in ({"slope": 1.0}, {"slope": 1.0, "offset": 0.0, "power": 2}, {"slope": "1", "offset": 0.0}, 3):
        with pytest.raises(CheckpointError):
            Calibration.from_dict(bad)  # type: ignore[arg-type]
