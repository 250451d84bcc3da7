"""Draw training and test folds by published protocols, and save and read them."""

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

By = Literal["image", "reference"]
"""What is divided into folds."""


@dataclass(frozen=True)
class Convention:
    """Published convention for drawing splits.

    Attributes:
        name: key in `CONVENTIONS`.
        seed: default seed.
        cumulative: if True, one generator reshuffles the same list for each split; otherwise split `i`
            shuffles the original list with the seed `seed + i`.
        source: publication.
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
"""Conventions by name."""


@dataclass(frozen=True)
class Split:
    """One division of a list of photographs.

    Attributes:
        name: convention, seed and number, as in ``loda-3407-00``.
        by: "reference" if all photographs of a reference are in one fold, else "image".
        folds: "train" or "test" of each photograph, in order.
    """

    name: str
    by: By
    folds: tuple[str, ...]

    def of(self, ratings: Sequence[Rated]) -> list[Rated]:
        """Return the photographs that the split was drawn for, with their folds."""
        return [replace(r, fold=fold) for r, fold in zip(ratings, self.folds, strict=True)]


def make_splits(
    ratings: Sequence[Rated],
    convention: str = "deiqt",
    *,
    count: int = 10,
    seed: int | None = None,
    by: By | None = None,
) -> list[Split]:
    """Draw random splits of photographs into 80 % for training and 20 % for testing.

    The same photographs in the same order,
    convention and seed give the same splits on every machine; a smaller count gives the first of them.

    Args:
        ratings: the photographs.
        convention: a key of ``CONVENTIONS``.
        count: number of splits.
        seed: random seed; by default the convention's.
        by: what is shuffled: "image", or "reference", so that all photographs of one are in one fold. By
            default references, if each photograph has one.

    Raises:
        DataSetError: an unknown convention, fewer than two references or images, or photographs without a
            reference that are to be split by it.

    >>> photos = [Rated(Path(f"{i}.png"), i / 9) for i in range(10)]
    >>> first, second = make_splits(photos, "loda", count=2)
    >>> first.name, first.by, first.folds.count("train")
    ('loda-3407-00', 'image', 8)
    """
    if convention not in CONVENTIONS:
        raise DataSetError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    rule = CONVENTIONS[convention]
    start = rule.seed if seed is None else seed
    has_references = all(r.reference for r in ratings)
    if by == "reference" and not has_references:
        raise DataSetError("splitting by reference needs a reference for each image; split by image")
    by = by or ("reference" if has_references else "image")
    # Images are shuffled in the order of the label files, references in sorted order: part of the protocol.
    keys = [r.reference if by == "reference" else str(i) for i, r in enumerate(ratings)]
    units = sorted(set(keys)) if by == "reference" else keys
    if len(units) < 2:
        raise DataSetError(f"a split needs at least two {by}s, got {len(units)}")
    train_count = min(max(round(TRAIN_PART * len(units)), 1), len(units) - 1)
    generator, order, splits = random.Random(start), list(units), []
    for i in range(count):
        if not rule.cumulative:
            generator, order = random.Random(start + i), list(units)
        generator.shuffle(order)
        train = set(order[:train_count])
        folds = tuple("train" if key in train else "test" for key in keys)
        splits.append(Split(f"{rule.name}-{start}-{i:02d}", by, folds))
    return splits


def save_split(split: Split, ratings: Sequence[Rated], root: str | Path, path: str | Path) -> None:
    """Write a split as CSV with the columns ``image`` (path relative to ``root``) and ``fold``.

    Raises:
        DataSetError: the file exists and holds another split.
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
        raise DataSetError(f"{path} holds another split; choose another folder, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written atomically.
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def read_split(path: str | Path, ratings: Sequence[Rated], root: str | Path) -> list[Rated]:
    """Return photographs with their folds from a file, in the order of `ratings`.

    Args:
        path: a CSV file with the columns ``image`` and ``fold``, as written by :func:`save_split`.
        ratings: the photographs of the data set.
        root: folder of the file's relative paths.

    Raises:
        DataSetError: the file cannot be read, or does not name the same photographs.
    """
    path = Path(path)
    folds = {row["image"]: row["fold"] for row in read_csv(path, ("image", "fold"))}
    names = [_name(r, root) for r in ratings]
    if missing := [name for name in names if name not in folds]:
        raise DataSetError(
            f"{path} must name the photographs given, but lacks {missing[0]}; draw the splits again"
        )
    if extra := sorted(set(folds) - set(names)):
        raise DataSetError(
            f"{path} must name the photographs given, but also has {extra[0]}; draw the splits again"
        )
    return [replace(r, fold=folds[name]) for r, name in zip(ratings, names, strict=True)]


def _name(rated: Rated, root: str | Path) -> str:
    # Not Path.relative_to: a manifest may name images outside its folder.
    try:
        return Path(os.path.relpath(rated.path, root)).as_posix()
    except ValueError:  # another drive, on Windows
        return rated.path.as_posix()
