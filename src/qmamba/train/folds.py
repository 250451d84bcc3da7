"""The parts of a set of rated photographs: those that train, those that select, those that test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from ..data import Rated
from ..errors import RecipeError

FOLDS = ("train", "val", "test")
Folds = Mapping[str, Sequence[Rated]]


def by_fold(ratings: Sequence[Rated], folds: Sequence[str] = FOLDS) -> dict[str, list[Rated]]:
    """Return the ratings of each fold."""
    return {fold: [r for r in ratings if r.fold == fold] for fold in folds}


def check_folds(folds: Folds) -> None:
    """Refuse folds that cannot train and select.

    Raises:
        RecipeError: fewer than two photographs in "train" or "val", or MOS outside [0, 1].
    """
    for fold in ("train", "val"):
        if len(folds[fold]) < 2:
            raise RecipeError(
                f"the fold {fold!r} must have two photographs or more, got {len(folds[fold])}; add some"
            )
    if not all(0.0 <= r.mos <= 1.0 for rated in folds.values() for r in rated):
        raise RecipeError("MOS must be in [0, 1], higher is better; use qmamba.data.rescaled")


def split_folds(ratings: Sequence[Rated], held_out: float, seed: int) -> dict[str, list[Rated]]:
    """Return the folds train, val and test; val is drawn, whole references at a time, where there is none.

    Args:
        ratings: with MOS in [0, 1].
        held_out: share of the references, or of photographs without one, that is drawn.
        seed: of the draw.

    Raises:
        RecipeError: as :func:`check_folds`.
    """
    folds = by_fold(ratings)
    if not folds["val"]:
        rest = folds["train"] or [r for r in ratings if not r.fold]
        keys = [r.reference or f"image {i}" for i, r in enumerate(rest)]
        names = sorted(set(keys))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        held = {names[i] for i in order[: round(held_out * len(names))]}
        folds["val"] = [r for r, key in zip(rest, keys, strict=True) if key in held]
        folds["train"] = [r for r, key in zip(rest, keys, strict=True) if key not in held]
    check_folds(folds)
    return folds


def digest_of(folds: Folds) -> str:
    """Return a digest of the names and MOS of rated photographs; folders may move."""
    rows = "\n".join(f"{fold},{r.path.name},{r.mos}" for fold, rated in folds.items() for r in rated)
    return hashlib.sha256(rows.encode()).hexdigest()
