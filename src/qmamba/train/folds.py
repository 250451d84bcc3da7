"""The parts of a set of rated photographs: those that train, those that select, those that test."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data import Rated
from ..errors import RecipeError


def split_folds(ratings: Sequence[Rated], held_out: float, seed: int) -> dict[str, list[Rated]]:
    """Return the folds train, val and test; val is drawn, whole references at a time, where there is none.

    Args:
        ratings: with MOS in [0, 1].
        held_out: share of the references, or of photographs without one, that is drawn.
        seed: of the draw.

    Raises:
        RecipeError: too few photographs, or MOS outside [0, 1].
    """
    if not all(0.0 <= r.mos <= 1.0 for r in ratings):
        raise RecipeError("MOS must be in [0, 1], higher is better; use qmamba.data.rescaled")
    folds = {fold: [r for r in ratings if r.fold == fold] for fold in ("train", "val", "test")}
    if not folds["val"]:
        rest = folds["train"] or [r for r in ratings if not r.fold]
        keys = [r.reference or f"image {i}" for i, r in enumerate(rest)]
        names = sorted(set(keys))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        held = {names[i] for i in order[: round(held_out * len(names))]}
        folds["val"] = [r for r, key in zip(rest, keys, strict=True) if key in held]
        folds["train"] = [r for r, key in zip(rest, keys, strict=True) if key not in held]
    for fold in ("train", "val"):
        if len(folds[fold]) < 2:
            raise RecipeError(
                f"adapting needs two photographs or more in the fold {fold!r}, got {len(folds[fold])} of "
                f"{len(ratings)}"
            )
    return folds
