"""Metrics against the oracle, against scipy, and on everything that is not a plain pair of arrays."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmamba.errors import QMambaError
from qmamba.metrics import (
    METRICS,
    MetricError,
    bootstrap_interval,
    evaluate,
    fit_logistic4,
    krcc,
    logistic4,
    plcc,
    plcc_fitted,
    rmse,
    rmse_fitted,
    srcc,
)

ORACLE = Path(__file__).parent / "data" / "metrics_pair.npz"


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(ORACLE) as data:
        return data["pred"], data["mos"], data["fit"]


def test_oracle(pair: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    pred, mos, fit = pair
    assert srcc(pred, mos) == pytest.approx(0.961377, abs=5e-7)
    assert plcc(pred, mos) == pytest.approx(0.971309, abs=5e-7)
    assert krcc(pred, mos) == pytest.approx(0.833367, abs=5e-7)
    assert plcc_fitted(pred, mos) == pytest.approx(0.971494, abs=5e-7)
    assert rmse_fitted(pred, mos) == pytest.approx(7.14396, abs=5e-6)
    np.testing.assert_allclose(logistic4(pred, fit_logistic4(pred, mos)), fit, atol=1e-3)


values = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=40)


@settings(max_examples=200, deadline=None)
@given(values)
def test_ties_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    if x.min() == x.max() or y.min() == y.max():
        assert all(math.isnan(metric(x, y)) for metric in (srcc, plcc, krcc))
        return
    assert srcc(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)
    assert plcc(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-12)
    assert krcc(x, y) == pytest.approx(scipy.stats.kendalltau(x, y)[0], abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-3])
def test_logistic_fit_agrees_with_curve_fit(scale: float) -> None:
    generator = np.random.default_rng(3)
    x = np.sort(generator.uniform(-1, 1, 150))
    y = logistic4(x, (80.0, 10.0, 0.2, 0.15)) + generator.normal(0, 4, x.size)

    def curve(x: np.ndarray, top: float, bottom: float, middle: float, width: float) -> np.ndarray:
        return bottom + (top - bottom) / (1 + np.exp(-(x - middle) / abs(width)))

    start = [y.max(), y.min(), x.mean(), 0.5]
    expected = scipy.optimize.curve_fit(curve, x, y, start, maxfev=10_000)[0]
    found = fit_logistic4(scale * x, y)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-4)
    np.testing.assert_allclose(np.array(found[2:]) / scale, np.abs(expected[2:]), rtol=1e-3)
    assert rmse_fitted(scale * x, y) == pytest.approx(
        np.sqrt(np.mean((curve(x, *expected) - y) ** 2)), rel=1e-6
    )


def test_fit_of_a_falling_relation_and_of_a_step() -> None:
    x = np.linspace(0, 1, 50)
    assert plcc(x, -x) == pytest.approx(-1)
    assert rmse_fitted(x, -3 * x) < 1e-3
    assert rmse_fitted([0, 0, 0, 1, 1, 1], [2, 2, 2, 7, 7, 7]) < 1e-6


def test_rmse() -> None:
    assert rmse([1, 2, 3, 4], [1, 2, 3, 8]) == 2.0


@pytest.mark.parametrize("name", METRICS)
def test_kinds_of_input_agree(name: str, pair: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    pred, mos, _ = pair
    metric = METRICS[name]
    expected = metric(pred, mos)
    others: list[tuple[Any, Any]] = [
        (pred.tolist(), tuple(mos)),
        (torch.tensor(pred, requires_grad=True), torch.tensor(mos)[:, None]),
        (pd.Series(pred, index=range(7, 207)), pd.Series(mos)),
        (pred[:, None], mos.astype(object)),
    ]
    assert all(metric(*other) == expected for other in others)


def test_low_precision_and_integer_tensors() -> None:
    x = torch.tensor([0.5, 1.0, 2.0, 4.0])
    expected = srcc(x, [1, 3, 2, 4])
    assert srcc(x.bfloat16(), torch.tensor([1, 3, 2, 4])) == srcc(x.half(), [1, 3, 2, 4]) == expected


@pytest.mark.parametrize("metric", METRICS.values())
@pytest.mark.parametrize(
    ("pred", "mos", "line"),
    [
        ([1.0, math.nan, 3.0], [1, 2, 3], "pred holds nan at index 1"),
        ([1.0, 2.0, 3.0], [1, 2, math.inf], "mos holds inf at index 2"),
        ([1, 2, 3], [1, 2], "same length, got 3 and 2"),
        ([1], [1], "at least 2 values"),
        ([], [], "at least 2 values"),
        ([[1, 2], [3, 4]], [1, 2], "shape"),
        (["a", "b"], [1, 2], "numbers"),
        ([[1, 2], [3]], [1, 2], "numbers"),
        (None, [1, 2], "pred"),
    ],
)
def test_refusals(metric: Any, pred: Any, mos: Any, line: str) -> None:
    with pytest.raises(MetricError, match=line) as caught:
        metric(pred, mos)
    assert isinstance(caught.value, QMambaError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.filterwarnings("error")
def test_constant_sides_are_nan_without_a_warning() -> None:
    for name in ("srcc", "plcc", "krcc", "plcc_fitted"):
        assert math.isnan(METRICS[name]([3, 3, 3, 3], [1, 2, 3, 4]))
        assert math.isnan(METRICS[name]([1, 2, 3, 4], [3, 3, 3, 3]))
    assert rmse_fitted([3, 3, 3, 3], [1, 2, 3, 4]) == pytest.approx(np.std([1, 2, 3, 4]))
    assert rmse_fitted([1, 2, 3, 4], [3, 3, 3, 3]) == 0


@pytest.mark.filterwarnings("error")
def test_extreme_magnitudes() -> None:
    x = np.array([1.0, 2.0, 3.0, 5.0])
    assert plcc(x * 1e200, x * 1e-200) == pytest.approx(1)
    assert np.isfinite(logistic4([-1e9, 0, 1e9], (1.0, 0.0, 0.0, 1e-3))).all()


def test_large_input_is_quick_and_right() -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 500, 20_000)
    y = x + generator.integers(0, 300, 20_000)
    assert krcc(x, y) == pytest.approx(scipy.stats.kendalltau(x, y)[0], abs=1e-12)


def test_fit_without_scipy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MetricError, match="pip install scipy"):
        plcc_fitted([1, 2, 3, 4], [1, 2, 4, 3])
    assert srcc([1, 2, 3], [1, 2, 3]) == 1


def test_too_few_pairs_for_the_fit() -> None:
    with pytest.raises(MetricError, match="at least 4 pairs"):
        rmse_fitted([1, 2, 3], [1, 2, 4])


def test_evaluate_is_flat_and_complete(pair: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    pred, mos, _ = pair
    plain = evaluate(pred, mos)
    assert plain == {"n": 200, **{name: metric(pred, mos) for name, metric in METRICS.items()}}
    both = evaluate(pred, mos, metrics=("srcc",), resamples=50, seed=4)
    assert list(both) == ["n", "srcc", "srcc_low", "srcc_high"]
    assert both["srcc_low"] < both["srcc"] < both["srcc_high"]
    with pytest.raises(MetricError, match=r"must be among .* got 'scrr'"):
        evaluate(pred, mos, metrics=("scrr",))


def test_bootstrap(pair: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    pred, mos, _ = pair
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = bootstrap_interval(plcc, pred, mos, n=100, seed=1)
    assert (np.random.get_state()[1] == before).all()
    assert first == bootstrap_interval(plcc, pred, mos, n=100, seed=1)
    assert first != bootstrap_interval(plcc, pred, mos, n=100, seed=2)
    narrow = bootstrap_interval(plcc, pred, mos, n=100, seed=1, level=0.5)
    assert first[0] < narrow[0] < plcc(pred, mos) < narrow[1] < first[1]
    assert all(math.isnan(end) for end in bootstrap_interval(plcc, [1, 1], [1, 2], n=5))
    with pytest.raises(MetricError, match="level"):
        bootstrap_interval(plcc, pred, mos, level=95)


def test_bootstrap_covers() -> None:
    """The 90 % interval of Pearson's r of 80 bivariate normal pairs holds the true r about 9 times in 10."""
    generator = np.random.default_rng(5)
    hits = 0
    for trial in range(100):
        x = generator.normal(size=80)
        y = 0.6 * x + 0.8 * generator.normal(size=80)
        low, high = bootstrap_interval(plcc, x, y, n=100, seed=trial, level=0.9)
        hits += low <= 0.6 <= high
    assert 78 <= hits <= 98
