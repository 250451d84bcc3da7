"""Ratings on any scale, in either direction, to [0, 1] with higher for better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import RecipeError
from .ratings import Rated

COMMON = ((0.0, 1.0), (1.0, 5.0), (0.0, 5.0), (1.0, 7.0), (1.0, 9.0), (0.0, 10.0), (0.0, 100.0))
"""Scales that ratings are usually given on, narrow ones first."""


def rating_scale(ratings: Sequence[Rated]) -> tuple[float, float]:
    """Return the worst and the best end of the scale that ratings are on, higher for better.

    This is the nominal scale of a data set, widened where ratings leave it; and otherwise the first of
    ``COMMON`` that holds all ratings, or else their own range. Which direction is the better one cannot be
    seen in ratings alone.

    Raises:
        RecipeError: no ratings, or all the same outside of every common scale.

    >>> from pathlib import Path
    >>> rating_scale([Rated(Path("a.png"), 1.5), Rated(Path("b.png"), 4.0)])
    (1.0, 5.0)
    >>> rating_scale([Rated(Path("a.png"), -2.0), Rated(Path("b.png"), 3.0)])
    (-2.0, 3.0)
    """
    if not ratings:
        raise RecipeError("there must be ratings, got none")
    low, high = min(r.mos for r in ratings), max(r.mos for r in ratings)
    nominal = {r.scale for r in ratings}
    if len(nominal) == 1 and (known := nominal.pop()) is not None:
        return min(low, *known), max(high, *known)
    for worst, best in COMMON:
        if worst <= low and high <= best:
            return worst, best
    if low == high:
        raise RecipeError(f"ratings must differ, got {low:g} for every image")
    return low, high


def rescaled(ratings: Sequence[Rated], scale: tuple[float, float] | None = None) -> list[Rated]:
    """Return ratings with MOS, and its standard deviation, on the scale [0, 1], higher for better.

    Args:
        ratings: on one scale.
        scale: its worst and its best end: (1, 5), or (100, 0) where lower is better; by default what
            :func:`rating_scale` returns.

    Raises:
        RecipeError: the ends are equal, or a rating lies outside.

    >>> from pathlib import Path
    >>> [r.mos for r in rescaled([Rated(Path("a.png"), 25.0)], (100, 0))]
    [0.75]
    """
    worst, best = rating_scale(ratings) if scale is None else scale
    if not abs(best - worst) > 0:  # written so that NaN fails
        raise RecipeError(f"a scale must have two different ends, got {worst:g} and {best:g}")
    low, high = min(worst, best), max(worst, best)
    for r in ratings:
        if not low <= r.mos <= high:
            raise RecipeError(
                f"{r.path}: a rating must be on the scale {worst:g} to {best:g}, got {r.mos:g}; "
                "give another scale"
            )
    span = best - worst
    return [
        replace(
            r, mos=(r.mos - worst) / span, std=None if r.std is None else r.std / abs(span), scale=(0.0, 1.0)
        )
        for r in ratings
    ]
