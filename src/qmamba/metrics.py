"""Agreement of predictions with mean opinion scores: SRCC, PLCC, KRCC, RMSE, and the logistic fit.

Every function takes predictions and mean opinion scores as two sequences of the same length n ≥ 2: lists,
tuples, numpy arrays, pandas columns or tensors (any device, any dtype), of shape (n,) or (n, 1). They are
computed in float64. NaN, infinities and unequal lengths raise `MetricError`. A correlation is undefined when
one side is constant and then is `nan`, without a warning: an untrained network must not stop an evaluation.
Only the logistic fit needs scipy (`pip install scipy`, or the `train` extra).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qmamba.errors import QMambaError

Array = npt.NDArray[np.float64]
Metric = Callable[[Array, Array], float]


class MetricError(QMambaError, ValueError):
    """Numbers that cannot be compared: NaN, unequal lengths, too few, or not numbers."""


def _column(values: Any, name: str) -> Array:
    if isinstance(values, torch.Tensor):
        # Converted by torch, since numpy has no bfloat16.
        values = values.detach().to("cpu", torch.float64).numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MetricError(f"{name} must be numbers in one dimension: {error}") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise MetricError(f"{name} must have shape (n,), got {array.shape}")
    if array.size < 2:
        raise MetricError(f"{name} must hold at least 2 values, got {array.size}")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise MetricError(f"{name} holds {array[bad]} at index {bad}: drop such pairs first")
    return array


def _pair(pred: Any, mos: Any) -> tuple[Array, Array]:
    x, y = _column(pred, "pred"), _column(mos, "mos")
    if x.size != y.size:
        raise MetricError(f"pred and mos must have the same length, got {x.size} and {y.size}")
    return x, y


def _pearson(x: Array, y: Array) -> float:
    if x.min() == x.max() or y.min() == y.max():
        return math.nan
    # Scaled before squaring, so that values near the ends of float64's range neither overflow nor vanish.
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip((x @ y) / math.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _ranks(x: Array) -> Array:
    """Return one-based ranks; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]
    return ranks


def srcc(pred: Any, mos: Any) -> float:
    """Return Spearman's rank correlation, in [-1, 1]; ties get average ranks; nan when one side is constant.

    >>> round(srcc([1, 2, 3, 4], [10, 20, 40, 30]), 6)
    0.8
    """
    x, y = _pair(pred, mos)
    return _pearson(_ranks(x), _ranks(y))


def plcc(pred: Any, mos: Any) -> float:
    """Return Pearson's linear correlation of the raw values, in [-1, 1]; nan when one side is constant.

    >>> plcc([0, 1, 2], [5, 7, 9])
    1.0
    """
    return _pearson(*_pair(pred, mos))


def krcc(pred: Any, mos: Any) -> float:
    """Return Kendall's rank correlation (tau-b), in [-1, 1]; nan when one side is constant.

    Counts discordant pairs by their ranks' bits: O(n log² n) time, O(n) memory.

    >>> round(krcc([1, 2, 3, 4], [10, 20, 40, 30]), 6)
    0.666667
    """
    x, y = _pair(pred, mos)
    rank_x = np.unique(x, return_inverse=True)[1].reshape(-1)
    rank_y = np.unique(y, return_inverse=True)[1].reshape(-1)
    pairs = x.size * (x.size - 1) // 2
    tied_x, tied_y = _tied_pairs(rank_x), _tied_pairs(rank_y)
    tied_both = _tied_pairs(rank_x * (int(rank_y.max()) + 1) + rank_y)
    if tied_x == pairs or tied_y == pairs:
        return math.nan
    discordant = _inversions(rank_y[np.lexsort((rank_y, rank_x))])
    concordant = pairs - tied_x - tied_y + tied_both - discordant
    tau = (concordant - discordant) / math.sqrt((pairs - tied_x) * (pairs - tied_y))
    return min(1.0, max(-1.0, tau))


def _tied_pairs(ranks: npt.NDArray[np.intp]) -> int:
    counts = np.unique(ranks, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(ranks: npt.NDArray[np.intp]) -> int:
    """Count pairs i < j with ranks[i] > ranks[j], by the first bit that differs."""
    total = 0
    for bit in range(int(ranks.max()).bit_length()):
        order = np.argsort(ranks >> (bit + 1), kind="stable")
        prefix, one = ranks[order] >> (bit + 1), (ranks[order] >> bit) & 1
        before = np.cumsum(one) - one
        first = np.concatenate(([True], prefix[1:] != prefix[:-1]))
        in_group = before - before[first][np.cumsum(first) - 1]
        total += int(in_group[one == 0].sum())
    return total


def rmse(pred: Any, mos: Any) -> float:
    """Return the root mean squared difference, in the units of `mos`; both must be on the same scale.

    >>> rmse([1, 2, 3], [1, 2, 6])
    1.7320508075688772
    """
    x, y = _pair(pred, mos)
    return float(np.sqrt(np.mean((x - y) ** 2)))


def logistic4(x: Any, params: Sequence[float] | Array) -> Array:
    """Return the four-parameter logistic β2 + (β1 - β2) / (1 + exp(-(x - β3) / |β4|)), elementwise, float64.

    >>> logistic4([0.0], (4.0, 2.0, 0.0, 1.0)).tolist()
    [3.0]
    """
    if isinstance(x, torch.Tensor):
        x = x.detach().to("cpu", torch.float64).numpy()
    values = np.asarray(x, dtype=np.float64)
    top, bottom, middle, width = (float(value) for value in params)
    with np.errstate(over="ignore"):  # exp(-z) may reach infinity, and 1 / infinity is the right answer
        curve: Array = bottom + (top - bottom) / (1 + np.exp(-(values - middle) / abs(width)))
    return curve


def fit_logistic4(pred: Any, mos: Any) -> tuple[float, float, float, float]:
    """Fit β1, β2, β3, β4 of `logistic4` from `pred` to `mos` by least squares; needs scipy and n ≥ 4.

    Uses MINPACK from (max mos, min mos, mean pred, 0.5), as published results do. A width of 0.5 is far too
    narrow for predictions in [0, 100], for example. A logistic can approximate any straight line, so a fit
    that is worse than the best line is stuck; only then is it restarted from the spread of `pred`.
    Deterministic. If one side is constant, the curve is the constant mean of `mos`.

    Raises:
        MetricError: scipy is not installed, fewer than four pairs, or no fit was found.
    """
    x, y = _pair(pred, mos)
    if x.min() == x.max() or y.min() == y.max():
        return float(y.mean()), float(y.mean()), float(x.mean()), 1.0
    if x.size < 4:
        raise MetricError(f"fitting four parameters needs at least 4 pairs, got {x.size}")
    correlation = _pearson(x, y)
    line = float(((y - y.mean()) ** 2).sum()) * (1 - correlation**2)
    starts = ([y.max(), y.min(), x.mean(), width] for width in (0.5, x.std(), 0.1 * x.std()))
    best: tuple[float, Array | None] = (math.inf, None)
    for start in starts:
        params, error = _least_squares(x, y, np.array(start))
        if error < best[0]:
            best = error, params
        if best[0] <= line * (1 + 1e-6) + 1e-12 * float(y @ y):
            break
    if best[1] is None:
        raise MetricError(
            "the four-parameter logistic could not be fitted; check the range of the predictions"
        )
    top, bottom, middle, width = (float(value) for value in best[1])
    return top, bottom, middle, abs(width)


def _least_squares(x: Array, y: Array, start: Array) -> tuple[Array, float]:
    try:
        from scipy.optimize import leastsq
    except ImportError as error:
        raise MetricError(
            "fitting the logistic needs scipy: pip install scipy, or ask for the raw metrics only"
        ) from error

    def residual(params: Array) -> Array:
        # A width of zero is invalid; the smallest number keeps MINPACK running.
        width = params[3] if params[3] != 0 else np.finfo(np.float64).tiny
        return logistic4(x, (params[0], params[1], params[2], width)) - y

    # `leastsq` instead of `curve_fit`: the same MINPACK without a warning about an unused covariance.
    params = leastsq(residual, start, maxfev=10_000, full_output=True)[0]
    squares = float((residual(params) ** 2).sum())
    return params, squares if math.isfinite(squares) and params[3] != 0 else math.inf


def plcc_fitted(pred: Any, mos: Any) -> float:
    """Return Pearson's correlation of `mos` and predictions after the fitted `logistic4`; nan if flat."""
    x, y = _pair(pred, mos)
    return _pearson(logistic4(x, fit_logistic4(x, y)), y)


def rmse_fitted(pred: Any, mos: Any) -> float:
    """Return the root mean squared error after mapping by the fitted `logistic4`, in the units of `mos`."""
    x, y = _pair(pred, mos)
    return rmse(logistic4(x, fit_logistic4(x, y)), y)


METRICS: dict[str, Metric] = {
    "srcc": srcc,
    "plcc": plcc,
    "plcc_fitted": plcc_fitted,
    "krcc": krcc,
    "rmse": rmse,
    "rmse_fitted": rmse_fitted,
}


def evaluate(
    pred: Any,
    mos: Any,
    *,
    metrics: Sequence[str] = ("srcc", "plcc", "plcc_fitted", "krcc", "rmse", "rmse_fitted"),
    resamples: int = 0,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, float]:
    """Return all metrics in one flat dict, the form of a checkpoint's `results`.

    With `resamples` > 0, each metric `m` has a bootstrap interval, `m_low` and `m_high`. `n` is the number of
    images.

    >>> evaluate([1, 2, 3, 4], [1, 2, 3, 4], metrics=["srcc", "krcc"])
    {'n': 4, 'srcc': 1.0, 'krcc': 1.0}
    """
    x, y = _pair(pred, mos)
    if unknown := [name for name in metrics if name not in METRICS]:
        raise MetricError(f"metrics must be among {', '.join(METRICS)}, got {unknown[0]!r}")
    results: dict[str, float] = {"n": x.size}
    for name in metrics:
        results[name] = METRICS[name](x, y)
        if resamples:
            low, high = bootstrap_interval(METRICS[name], x, y, n=resamples, seed=seed, level=level)
            results[f"{name}_low"], results[f"{name}_high"] = low, high
    return results


def bootstrap_interval(
    metric: Metric, pred: Any, mos: Any, n: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a metric, from `n` resamples of the pairs with replacement.

    Deterministic for a seed; the global random state is untouched. Resamples with an undefined metric are
    dropped; (nan, nan) if all are.

    >>> low, high = bootstrap_interval(srcc, range(50), range(50), n=20)
    >>> (low, high)
    (1.0, 1.0)
    """
    x, y = _pair(pred, mos)
    if n < 1 or not 0 < level < 1:
        raise MetricError(f"a bootstrap needs n ≥ 1 and 0 < level < 1, got n={n} and level={level}")
    generator = np.random.default_rng(seed)
    draws = (generator.integers(x.size, size=x.size) for _ in range(n))
    values = np.array([metric(x[draw], y[draw]) for draw in draws])
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
