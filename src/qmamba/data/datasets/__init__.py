"""The data sets of image quality assessment, each read from the files that its authors ship.

To add one, write a function that reads its label files, and beside it a :class:`DataSet` of facts, in the
module of its family; docs/data.md describes it.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import DataSetError, near_names
from ..ratings import Rated, read_manifest
from . import authentic, generated, synthetic
from ._base import DataSet, Label

__all__ = ["DATASETS", "MANIFEST", "DataSet", "Label", "find", "read_dataset"]

DATASETS: dict[str, DataSet] = {
    entry.name: entry
    for module in (synthetic, authentic, generated)
    for entry in vars(module).values()
    if isinstance(entry, DataSet)
}
"""All data sets by name."""

MANIFEST = "manifest"
"""In place of a data set's name: ratings of one's own, in a CSV file."""


def find(name: str) -> DataSet:
    """The data set of a name, whose case and hyphens do not matter.

    Raises:
        DataSetError: nothing is called so; the message has near names.

    >>> find("KonIQ-10k").images
    10073
    >>> find("koniq")
    Traceback (most recent call last):
    qmamba.errors.DataSetError: no data set is called 'koniq'; near names: koniq10k
    """
    wanted = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if wanted not in DATASETS:
        raise DataSetError(f"no data set is called {name!r}; {near_names(wanted, DATASETS)}")
    return DATASETS[wanted]


def read_dataset(name: str, root: str | Path, *, manifest: str | Path | None = None) -> list[Rated]:
    """The rated images of a data set, read from the files that its authors ship.

    Nothing is downloaded, images are looked for and not opened, and their number is not compared with that
    of the whole data set; `qmamba data check` does both.

    Args:
        name: of a data set, a key of ``DATASETS``; or ``"manifest"`` for ratings of one's own.
        root: the data set's folder; for ``"manifest"`` the CSV file.
        manifest: a CSV file that names images and scores in place of the data set's label files, for copies
            that are laid out otherwise; see :meth:`DataSet.read`.

    Returns:
        The images, in the order of the label files; `mos` is higher for better ones, on the data set's scale.

    Raises:
        DataSetError: an unknown name, or files that are missing or not laid out as expected.
        RecipeError: a library that reads its label files is not installed.
    """
    if name != MANIFEST:
        return find(name).read(root, manifest)
    if manifest is not None:
        raise DataSetError(
            "the name 'manifest' takes the CSV file in place of a folder, and no manifest besides"
        )
    return read_manifest(root)
