"""Readers: a data set's files in, a list of rated photographs out."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ..errors import RecipeError


@dataclass(frozen=True)
class Rated:
    """A photograph and its mean opinion score.

    Attributes:
        path: of the image file.
        mos: mean opinion score on the data set's own scale, higher is better.
        fold: "train", "val" or "test", or "" where a set has none.
    """

    path: Path
    mos: float
    fold: str = ""


FOLDS = ("train", "val", "test")
BIQ2021_LABELS = ("Train (Images and MOS).csv", "Test (Images and MOS).csv")


def read_biq2021(root: str | Path, folds: Iterable[str] = FOLDS) -> list[Rated]:
    """BIQ2021 (github.com/nisarahmedrana/BIQ2021): 12,000 photographs, MOS in [0, 1].

    Its official test split shares near-duplicate photographs with its training split. The folds used here
    keep all near-duplicates of a photograph together (``data/splits/biq2021.csv``, by content).

    Args:
        root: a checkout of the repository, holding ``Images/`` and the two label files.
        folds: which folds to return.

    Returns:
        The photographs of these folds, in the order of the split file.

    Raises:
        RecipeError: an unknown fold, a file is missing, or the labels do not cover the folds.
    """
    root = Path(root)
    images, wanted = root / "Images", set(folds)
    if unknown := sorted(wanted - set(FOLDS)):
        raise RecipeError(f"BIQ2021 has no fold {unknown[0]!r}: choose from {', '.join(FOLDS)}")
    if not images.is_dir():
        raise RecipeError(
            f"no BIQ2021 at {root}: it has no folder Images (clone nisarahmedrana/BIQ2021 there)"
        )
    # Names are looked up in lower case: one differs between the labels and the disk.
    mos = {}
    for label in BIQ2021_LABELS:
        if not (root / label).is_file():
            raise RecipeError(f"BIQ2021 at {root} is incomplete: {label!r} is missing")
        for row in _read_csv(root / label, ("Image Name", "MOS")):
            mos[row["Image Name"].lower()] = _number(row["MOS"], f"{label}: MOS of {row['Image Name']!r}")
    on_disk = {path.name.lower(): path for path in images.iterdir()}
    rated = []
    split = resources.files("qmamba.data") / "splits" / "biq2021.csv"
    for row in csv.DictReader(split.read_text(encoding="utf-8").splitlines()):
        if row["fold"] not in wanted:
            continue
        name = row["image"].lower()
        path = on_disk.get(name)
        if path is None or name not in mos:
            raise RecipeError(
                f"BIQ2021 at {root} is incomplete: {row['image']!r} has no {'label' if path else 'file'}"
            )
        rated.append(Rated(path, mos[name], row["fold"]))
    return rated


def read_manifest(path: str | Path) -> list[Rated]:
    """A CSV with the columns ``image`` and ``mos``, and ``fold`` if there is one; others are ignored.

    Relative image paths start at the manifest's folder. Folds may have any name; training looks at "train"
    and "val".

    Returns:
        The photographs, in the order of the rows.

    Raises:
        RecipeError: the file, a column or an image is missing, or a MOS is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"no manifest at {path}: expected a CSV file with the columns image and mos")
    rows = _read_csv(path, ("image", "mos"))
    if not rows:
        raise RecipeError(f"{path} lists no images")
    return [_rated(row, path, number) for number, row in enumerate(rows, start=1)]


def _rated(row: dict[str, str], manifest: Path, number: int) -> Rated:
    image = manifest.parent / row["image"]
    if not image.is_file():
        raise RecipeError(f"{manifest}, row {number}: no image at {image}")
    return Rated(image, _number(row["mos"], f"{manifest}, row {number}: mos"), row.get("fold", ""))


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line; a cell that is not there is empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            header, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    if missing := [name for name in columns if name not in header]:
        raise RecipeError(
            f"{path} has no column {missing[0]!r}; its columns are {', '.join(header) or 'none'}"
        )
    return rows


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecipeError(f"{what} is {text!r}, not a number")
    return value
