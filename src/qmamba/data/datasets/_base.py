"""Describe a data set: facts about it, and a function that reads its label files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ...errors import DataSetError
from ..ratings import Rated, read_manifest


class Label(NamedTuple):
    """An image and its label; `score` is the value in the data set's files, not reversed."""

    path: Path
    score: float
    std: float | None = None
    reference: str = ""
    distortion: str = ""
    fold: str = ""


@dataclass(frozen=True)
class DataSet:
    """Facts about a data set, and its reader.

    Attributes:
        name: key for ``read_dataset(name, root)``.
        title: name as its authors write it.
        images: number of rated images in the complete data set.
        scale: nominal lowest and highest label in the files.
        licence: licence in a few words; "not stated" if the repository has none, "see its page" if it was not
            looked up.
        home: URL.
        tree: files expected in its folder.
        labels: function that reads them.
        direction: whether higher or lower labels are better; "lower" for DMOS.
        references: number of pristine originals; 0 for authentic photographs and generated images.
        split_by: what its literature divides into folds: "image" or "reference"; None for references where
            there are any.
        verified: whether the layout was checked against the real release.
    """

    name: str
    title: str
    images: int
    scale: tuple[float, float]
    licence: str
    home: str
    tree: str
    labels: Callable[[Path], list[Label]]
    direction: Literal["higher", "lower"] = "higher"
    references: int = 0
    split_by: Literal["image", "reference"] | None = None
    verified: bool = False

    def read(self, root: str | Path, manifest: str | Path | None = None) -> list[Rated]:
        """Return the rated images.

        Args:
            root: folder of the data set.
            manifest: a CSV file with images and scores that replaces the label files, see
                :func:`qmamba.data.read_manifest`. Image paths are relative to ``root``. Scores are those of
                the data set's files: for DMOS, in a column ``dmos`` instead of ``mos``.

        Returns:
            The images, in the order of the label files; a higher `mos` is better.

        Raises:
            DataSetError: files are missing or not laid out as expected.
            RecipeError: a library that reads the label files is not installed.
        """
        if manifest is not None:
            score: Literal["mos", "dmos"] = "dmos" if self.direction == "lower" else "mos"
            listed = read_manifest(manifest, root=root, score=score)
            return [
                self._rated(Label(r.path, r.mos, r.std, r.reference, r.distortion, r.fold)) for r in listed
            ]
        if not Path(root).is_dir():
            raise DataSetError(f"{self.title} at {root}: no such folder; check the path")
        try:
            labels = self.labels(Path(root))
            if not labels:
                raise DataSetError("its label files name no images")
        except DataSetError as error:
            where = f"{self.title} at {root}"
            what = str(error) if where in str(error) else f"{where}: {error}"
            raise DataSetError(f"{what}{self._advice()}") from error
        return [self._rated(label) for label in labels]

    def _rated(self, label: Label) -> Rated:
        low, high = self.scale
        return Rated(
            label.path,
            low + high - label.score if self.direction == "lower" else label.score,
            label.fold,
            std=label.std,
            reference=label.reference,
            distortion=label.distortion,
            scale=self.scale,
            direction=self.direction,
        )

    def _advice(self) -> str:
        if self.verified:
            return "; docs/data.md shows the expected files"
        return (
            "; layout unverified: if your complete copy differs from docs/data.md, list its images and scores"
            " in a CSV file and give --manifest FILE"
        )
