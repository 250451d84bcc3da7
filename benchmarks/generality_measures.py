"""Agreement of scores with a domain's opinions or orders, with bootstrap intervals over contents."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from generality_domains import Domain, contents, opinions, parts
from qmamba.data import Rated
from qmamba.metrics import srcc

RESAMPLES = 1000
LEAST_IN_PART = 10  # images, for an agreement within a part to be stated


def agreement(scores: np.ndarray, ratings: Sequence[Rated], pairs: bool) -> float:
    """Return SRCC, or for pairs 2·share - 1 with the share in which the better image scores higher.

    A tie counts as half a pair in the right order.
    """
    mos = opinions(ratings)
    return float(signs(scores, ratings).mean()) if pairs else srcc(scores, mos)


def signs(scores: np.ndarray, ratings: Sequence[Rated]) -> np.ndarray:
    """Return (pairs,): 1 where the better image of a pair scores higher, -1 where lower, 0 for a tie."""
    by_pair: dict[str, dict[float, float]] = {}
    for rated, score in zip(ratings, scores.tolist(), strict=True):
        by_pair.setdefault(rated.reference, {})[rated.mos] = score
    return np.sign([pair[1.0] - pair[0.0] for pair in by_pair.values()])


def draws(scores: np.ndarray, domain: Domain) -> np.ndarray:
    """Return the agreement on all of a domain's images, then on each resample of its contents.

    Equal domains have equal resamples, so that the draws of two models can be subtracted.

    Returns:
        (1 + RESAMPLES,) float64.
    """
    if domain.pairs:
        won = signs(scores, domain.test)
        picks = np.random.default_rng(0).integers(len(won), size=(RESAMPLES, len(won)))
        return np.concatenate([[won.mean()], won[picks].mean(axis=1)])
    mos = opinions(domain.test)
    found = [srcc(scores[pick], mos[pick]) for pick in resamples(domain.test)]
    return np.array([srcc(scores, mos), *found])


@functools.lru_cache(maxsize=8)
def resamples(ratings: tuple[Rated, ...]) -> list[np.ndarray]:
    """Return the image indices of each resample: as many contents as there are, drawn with replacement."""
    rng = np.random.default_rng(0)
    names, group = np.unique(contents(ratings), return_inverse=True)
    members = [np.flatnonzero(group == index) for index in range(len(names))]
    size = (RESAMPLES, len(names))
    return [np.concatenate([members[i] for i in drawn]) for drawn in rng.integers(len(names), size=size)]


def by_part(scores: np.ndarray, domain: Domain) -> dict[str, float]:
    """Return the agreement within each generator or kind of distortion of a domain."""
    names = parts(domain.test)
    found = {}
    for name in np.unique(names).tolist():
        chosen = np.flatnonzero(names == name)
        ratings = [domain.test[index] for index in chosen]
        if name and len(chosen) >= LEAST_IN_PART and len(set(opinions(ratings))) > 1:
            found[name] = round(agreement(scores[chosen], ratings, domain.pairs), 4)
    return found


def summary(drawn: np.ndarray, base: np.ndarray | None) -> dict[str, float]:
    """Return an agreement with its 95 % interval, and its gain over a base with the interval of that.

    Args:
        drawn: (1 + RESAMPLES,) from `draws`, or a mean of such over domains.
        base: the same of the model to compare with; None leaves the gain out.
    """
    found = _interval("srcc", drawn)
    return found if base is None else found | _interval("gain", drawn - base)


def mean_draws(drawn: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray | None:
    """Return the mean of the domains' draws, or None if one of them is missing."""
    if not names or any(name not in drawn for name in names):
        return None
    mean: np.ndarray = np.mean([drawn[name] for name in names], axis=0)
    return mean


def _interval(name: str, drawn: np.ndarray) -> dict[str, Any]:
    low, high = np.nanpercentile(drawn[1:], [2.5, 97.5])
    values = {name: drawn[0], f"{name}_low": low, f"{name}_high": high}
    return {key: round(float(value), 4) for key, value in values.items()}
