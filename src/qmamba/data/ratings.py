"""Readers: a data set's files in, a list of rated photographs out."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
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


BIQ2021_LABELS = ("Train (Images and MOS).csv", "Test (Images and MOS).csv")


def read_biq2021(root: str | Path, folds: Iterable[str] = ("train", "val", "test")) -> list[Rated]:
    """BIQ2021 (github.com/nisarahmedrana/BIQ2021): 12,000 photographs, MOS in [0, 1].

    Its official test split shares near-duplicate photographs with its training split. The folds used here
    keep all near-duplicates of a photograph together (``data/splits/biq2021.csv``, by content).

    Args:
        root: a checkout of the repository, holding ``Images/`` and the two label files.
        folds: which folds to return.

    Raises:
        RecipeError: a file is missing, or the labels do not cover the folds.
    """
    root = Path(root)
    images, wanted = root / "Images", set(folds)
    if not images.is_dir():
        raise RecipeError(
            f"no BIQ2021 at {root}: it has no folder Images (clone nisarahmedrana/BIQ2021 there)"
        )
    mos = {}
    for name in BIQ2021_LABELS:
        if not (root / name).is_file():
            raise RecipeError(f"BIQ2021 at {root} is incomplete: {name!r} is missing")
        with (root / name).open(newline="", encoding="utf-8-sig") as file:
            mos.update({row["Image Name"].lower(): row["MOS"] for row in csv.DictReader(file)})
    on_disk = {path.name.lower(): path for path in images.iterdir()}
    # names are looked up in lower case: one differs between the labels and the disk
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
        rated.append(Rated(path, float(mos[name]), row["fold"]))
    return rated


def read_manifest(path: str | Path) -> list[Rated]:
    """A CSV with the columns ``image`` and ``mos``, and ``fold`` if there is one.

    Relative image paths start at the manifest's folder.

    Raises:
        RecipeError: the file, a column or an image is missing, or a MOS is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"no manifest at {path}: expected a CSV file with the columns image and mos")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"image", "mos"} <= set(reader.fieldnames or ()):
            raise RecipeError(f"{path} needs the columns image and mos; it has {reader.fieldnames}")
        rows = list(reader)
    if not rows:
        raise RecipeError(f"{path} lists no images")
    return [_rated(row, path, line) for line, row in enumerate(rows, start=2)]


def _rated(row: dict[str, str], manifest: Path, line: int) -> Rated:
    image = manifest.parent / row["image"]
    try:
        mos = float(row["mos"])
    except (TypeError, ValueError):
        mos = math.nan
    if not math.isfinite(mos):
        raise RecipeError(f"{manifest}, line {line}: mos is {row['mos']!r}, not a number")
    if not image.is_file():
        raise RecipeError(f"{manifest}, line {line}: no image at {image}")
    return Rated(image, mos, row.get("fold") or "")
