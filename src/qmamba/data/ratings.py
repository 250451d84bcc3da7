"""Read rated photographs from label files."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from ..errors import DataSetError
from ._tables import number, read_csv


@dataclass(frozen=True)
class Rated:
    """A photograph and its mean opinion score.

    Attributes:
        path: image file.
        mos: mean opinion score on the data set's own scale, higher is better; DMOS are reversed.
        fold: "train", "val" or "test", or "" without folds.
        std: standard deviation of the opinions, in units of `mos`, or None if unknown.
        reference: id of the pristine original or content, or "". Photographs of one reference belong in one
            fold.
        distortion: distortion of the original, or "" if unknown.
        scale: nominal worst and best value of `mos`, or None if unknown.
        direction: whether a higher or a lower label in the data set's files is better. For "lower" (DMOS),
            `mos` is worst + best - label.
        set: data set that it belongs to where ratings of several are together, or "". Opinion scores of
            different sets have different units and cannot be compared.
    """

    path: Path
    mos: float
    fold: str = ""
    std: float | None = None
    reference: str = ""
    distortion: str = ""
    scale: tuple[float, float] | None = None
    direction: Literal["higher", "lower"] = "higher"
    set: str = ""


FOLDS = ("train", "val", "test")
BIQ2021_LABELS = ("Train (Images and MOS).csv", "Test (Images and MOS).csv")


def read_biq2021(root: str | Path, folds: Iterable[str] = FOLDS) -> list[Rated]:
    """Read BIQ2021 (github.com/nisarahmedrana/BIQ2021): 12,000 photographs, MOS in [0, 1].

    The official test split shares near-duplicate photographs with its training split. The folds used here
    keep all near-duplicates of a photograph together (``data/splits/biq2021.csv``, by content).

    Args:
        root: a checkout of the repository, with ``Images/`` and the two label files.
        folds: folds to return.

    Returns:
        The photographs of these folds, in the order of the split file; `reference` is their content id.

    Raises:
        DataSetError: a fold is unknown, a file is missing, or the labels do not cover the folds.
    """
    root = Path(root)
    images, wanted = root / "Images", set(folds)
    if unknown := sorted(wanted - set(FOLDS)):
        raise DataSetError(f"BIQ2021 has no fold {unknown[0]!r}: choose from {', '.join(FOLDS)}")
    if not images.is_dir():
        raise DataSetError(
            f"no BIQ2021 at {root}: the folder Images is missing; clone nisarahmedrana/BIQ2021 there"
        )
    # Lower case: one name differs in case between the labels and the files.
    mos = {}
    for label in BIQ2021_LABELS:
        if not (root / label).is_file():
            raise DataSetError(f"BIQ2021 at {root} is incomplete: {label!r} is missing")
        for row in read_csv(root / label, ("Image Name", "MOS")):
            mos[row["Image Name"].lower()] = number(row["MOS"], f"{label}: MOS of {row['Image Name']!r}")
    on_disk = {path.name.lower(): path for path in images.iterdir()}
    rated = []
    split = resources.files("qmamba.data") / "splits" / "biq2021.csv"
    for row in csv.DictReader(split.read_text(encoding="utf-8").splitlines()):
        if row["fold"] not in wanted:
            continue
        name = row["image"].lower()
        path = on_disk.get(name)
        if path is None or name not in mos:
            raise DataSetError(
                f"BIQ2021 at {root} is incomplete: {row['image']!r} has no {'label' if path else 'file'}"
            )
        rated.append(Rated(path, mos[name], row["fold"], reference=row["content"]))
    return rated


def read_manifest(
    path: str | Path, *, root: str | Path | None = None, score: Literal["mos", "dmos"] = "mos"
) -> list[Rated]:
    """Read a CSV file with the columns ``image`` and ``mos``.

    Optional columns are ``fold``, ``std``, ``reference``, ``distortion`` and ``set``; others are ignored.
    Folds may have any name; training uses "train" and "val".

    Args:
        path: a CSV file in UTF-8, with a header line.
        root: folder of relative image paths; by default the folder of the manifest.
        score: column of the opinion scores, which become `mos`.

    Returns:
        The photographs, in the order of the rows.

    Raises:
        DataSetError: the file, a column or an image is missing, or a score is not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise DataSetError(f"no manifest at {path}; give a CSV file with the columns image and {score}")
    rows = read_csv(path, ("image", score))
    if not rows:
        raise DataSetError(f"{path} lists no images")
    folder = path.parent if root is None else Path(root)
    return [_rated(row, folder, score, f"{path}, row {i}") for i, row in enumerate(rows, start=1)]


def _rated(row: dict[str, str], folder: Path, score: str, where: str) -> Rated:
    image = folder / row["image"]
    if not image.is_file():
        raise DataSetError(f"{where}: no image at {image}")
    return Rated(
        image,
        number(row[score], f"{where}: {score}"),
        row.get("fold", ""),
        std=number(row["std"], f"{where}: std") if row.get("std") else None,
        reference=row.get("reference", ""),
        distortion=row.get("distortion", ""),
        set=row.get("set", ""),
    )
