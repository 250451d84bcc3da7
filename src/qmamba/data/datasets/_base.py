"""What a data set is here: facts about it, and a function that reads its label files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ...errors import DataSetError
from ..ratings import Rated, read_manifest


class Label(NamedTuple):
    """An image and what the data set's files say of it; `score` as it stands there, not turned."""

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
        name: what it is called by: ``read_dataset(name, root)``.
        title: its name as its authors write it.
        images: how many rated images the whole of it has.
        scale: nominal ends of the scale in its files, lowest and highest number.
        licence: in a few words; "not stated" where its repository has none, "see its page" where that was not
            looked up.
        home: where it comes from.
        tree: the files that are expected below its folder.
        labels: the function that reads them.
        direction: which end of the scale is the good one; "lower" for DMOS.
        references: how many originals the images were made from; 0 for photographs and generated images.
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
    verified: bool = False

    def read(self, root: str | Path, manifest: str | Path | None = None) -> list[Rated]:
        """Its rated images.

        Args:
            root: its folder.
            manifest: a CSV file that names images and scores in place of its own label files, see
                :func:`qmamba.data.read_manifest`. Image paths start at ``root``. The scores are those of the
                data set's files: for DMOS, in a column ``dmos`` in place of ``mos``.

        Returns:
            The images, in the order of its label files; `mos` is higher for better ones.

        Raises:
            DataSetError: something is missing or not laid out as expected; one line says what.
            RecipeError: a library that reads its label files is not installed.
        """
        if manifest is not None:
            score: Literal["mos", "dmos"] = "dmos" if self.direction == "lower" else "mos"
            listed = read_manifest(manifest, root=root, score=score)
            return [
                self._rated(Label(r.path, r.mos, r.std, r.reference, r.distortion, r.fold)) for r in listed
            ]
        if not Path(root).is_dir():
            raise DataSetError(f"{self.title} at {root}: there is no such folder")
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
            return "; docs/data.md shows the files that are expected"
        return (
            "; layout unverified: if your copy is whole and differs from docs/data.md, list its images and"
            " scores in a CSV file and give --manifest FILE"
        )
