"""Ratings of several sets at once: one scale for all, and a share of every batch for each.

People who rated different sets used different scales, on images of different ranges of quality, so that
their scores cannot be compared. A set's scores are mapped to those of one set by their quantiles: each set
keeps its order, and sets do not fight about units. Sampling by set keeps a small one from drowning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..data import Rated
from ..errors import RecipeError
from .sampling import epoch_indices


def by_set(ratings: Sequence[Rated], names: Sequence[str]) -> dict[str, list[Rated]]:
    """Return the ratings of each named set, in their order.

    Raises:
        RecipeError: a set has no ratings.
    """
    members: dict[str, list[Rated]] = {name: [] for name in names}
    for rated in ratings:
        if rated.set in members:
            members[rated.set].append(rated)
    empty = [name for name, found in members.items() if not found]
    if empty:
        known = ", ".join(sorted({r.set for r in ratings} - {""})) or "none"
        raise RecipeError(f"the ratings have none of the set {empty[0]!r}; their column set has {known}")
    return members


def on_one_scale(
    ratings: Sequence[Rated], names: Sequence[str], scale: str, as_is: Sequence[str] = ()
) -> list[Rated]:
    """Return the ratings of some sets with all opinion scores on the scale of one of them.

    A score becomes the score of the reference set at the same quantile, both taken within the fold "train".

    Args:
        ratings: of several sets, higher is better.
        names: of the sets to keep.
        scale: name of the reference set.
        as_is: sets that are on its scale already.

    Raises:
        RecipeError: a set has no ratings, or none in the fold "train".
    """
    members = by_set(ratings, names)
    training = {name: np.sort([r.mos for r in rated if r.fold == "train"]) for name, rated in members.items()}
    for name, mos in training.items():
        if not len(mos):
            raise RecipeError(f"the set {name!r} must have images in the fold 'train', got none; add some")
    mapped: list[Rated] = []
    for name, rated in members.items():
        if name == scale or name in as_is:
            mapped += rated
            continue
        shares = quantiles(training[name], np.array([r.mos for r in rated]))
        scores = np.quantile(training[scale], shares)
        mapped += [replace(r, mos=float(score)) for r, score in zip(rated, scores, strict=True)]
    return mapped


def quantiles(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return where values (n,) lie among ordered ones (m,), from 0 to 1; equal ones share the middle.

    >>> quantiles(np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 9.0]))
    array([0.5, 1. ])
    """
    below, upto = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    shares: np.ndarray = (below + upto) / (2 * len(ordered))
    return shares


def mixed_choice(
    members: Mapping[str, Sequence[Rated]], counts: Mapping[str, int], seed: int, step: int
) -> list[Rated]:
    """Return a step's ratings: ``counts[name]`` of each set, drawn in shuffled epochs of that set."""
    chosen: list[Rated] = []
    for stream, (name, count) in enumerate(counts.items(), start=1):
        rated = members[name]
        indices = epoch_indices(len(rated), seed, step * count, count, stream)
        chosen += [rated[index] for index in indices]
    return chosen
