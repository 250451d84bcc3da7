"""Training and test folds, drawn as published protocols draw them, and kept in files."""

from __future__ import annotations

import csv
import io
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import DataSetError
from ._tables import read_csv
from .ratings import Rated

TRAIN_PART = 0.8


@dataclass(frozen=True)
class Convention:
    """How a protocol draws its splits.

    Attributes:
        name: what it is called by.
        seed: its own seed.
        cumulative: one generator shuffles the same list again for each split; otherwise split `i` shuffles
            the list in its original order with the seed `seed + i`.
        source: where it comes from.
    """

    name: str
    seed: int
    cumulative: bool
    source: str


CONVENTIONS = {
    each.name: each
    for each in (
        Convention(
            "deiqt", 0, False, "DEIQT (AAAI 2023), which the QMamba paper follows; the seeds are ours"
        ),
        Convention("loda", 3407, True, "LoDa (CVPR 2024)"),
    )
}
"""The named ways to draw splits."""


@dataclass(frozen=True)
class Split:
    """One division of a list of photographs.

    Attributes:
        name: convention, seed and number, as in ``loda-3407-00``.
        by: "reference" where all photographs of a reference are in one fold, "image" where there are none.
        folds: "train" or "test" for each photograph, in their order.
    """

    name: str
    by: Literal["image", "reference"]
    folds: tuple[str, ...]

    def of(self, ratings: Sequence[Rated]) -> list[Rated]:
        """The photographs that it was drawn for, with their folds."""
        return [replace(r, fold=fold) for r, fold in zip(ratings, self.folds, strict=True)]


def make_splits(
    ratings: Sequence[Rated], convention: str = "deiqt", *, count: int = 10, seed: int | None = None
) -> list[Split]:
    """Divide photographs into 80 % for training and 20 % for testing, several times.

    By reference where every photograph has one, else by image. The same photographs in the same order, the
    same convention and seed give the same splits on every machine; a smaller count gives the first of them.

    Args:
        ratings: the photographs.
        convention: a key of ``CONVENTIONS``.
        count: how many splits.
        seed: another seed than the convention's own.

    Raises:
        DataSetError: an unknown convention, or fewer than two references or images.

    >>> photos = [Rated(Path(f"{i}.png"), i / 9) for i in range(10)]
    >>> first, second = make_splits(photos, "loda", count=2)
    >>> first.name, first.by, first.folds.count("train")
    ('loda-3407-00', 'image', 8)
    """
    if convention not in CONVENTIONS:
        raise DataSetError(f"no splits are called {convention!r}: choose from {', '.join(CONVENTIONS)}")
    way = CONVENTIONS[convention]
    start = way.seed if seed is None else seed
    by: Literal["image", "reference"] = "reference" if all(r.reference for r in ratings) else "image"
    # Images keep the order of the label files, references are sorted: what is shuffled is part of a protocol.
    keys = [r.reference if by == "reference" else str(i) for i, r in enumerate(ratings)]
    units = sorted(set(keys)) if by == "reference" else keys
    if len(units) < 2:
        raise DataSetError(f"a split takes two {by}s at least, and here is {len(units)}")
    most = min(max(round(TRAIN_PART * len(units)), 1), len(units) - 1)
    generator, order, splits = random.Random(start), list(units), []
    for i in range(count):
        if not way.cumulative:
            generator, order = random.Random(start + i), list(units)
        generator.shuffle(order)
        train = set(order[:most])
        folds = tuple("train" if key in train else "test" for key in keys)
        splits.append(Split(f"{way.name}-{start}-{i:02d}", by, folds))
    return splits


def save_split(split: Split, ratings: Sequence[Rated], root: str | Path, path: str | Path) -> None:
    """Write a split as CSV with the columns ``image`` and ``fold``; images by their path from ``root``.

    Raises:
        DataSetError: another split is there already.
    """
    path = Path(path)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "fold"])
    writer.writerows(zip((_name(r, root) for r in ratings), split.folds, strict=True))
    content = text.getvalue().encode()
    if path.is_file():
        if path.read_bytes() == content:
            return
        raise DataSetError(f"{path} holds another split: choose another folder, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all.
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def read_split(path: str | Path, ratings: Sequence[Rated], root: str | Path) -> list[Rated]:
    """Photographs with the folds that a file gives them, in their own order.

    Args:
        path: a CSV file with the columns ``image`` and ``fold``, such as :func:`save_split` writes.
        ratings: the photographs of the data set.
        root: the folder that the file's paths start at.

    Raises:
        DataSetError: the file cannot be read, or does not name the same photographs.
    """
    path = Path(path)
    folds = {row["image"]: row["fold"] for row in read_csv(path, ("image", "fold"))}
    names = [_name(r, root) for r in ratings]
    if missing := [name for name in names if name not in folds]:
        raise DataSetError(f"{path} is a split of other photographs: it lacks {missing[0]}")
    if extra := sorted(set(folds) - set(names)):
        raise DataSetError(f"{path} is a split of other photographs: {extra[0]} is not among these")
    return [replace(r, fold=folds[name]) for r, name in zip(ratings, names, strict=True)]


def _name(rated: Rated, root: str | Path) -> str:
    # Not Path.relative_to: a manifest may name images beside its folder.
    try:
        return Path(os.path.relpath(rated.path, root)).as_posix()
    except ValueError:  # another drive, on Windows
        return rated.path.as_posix()
