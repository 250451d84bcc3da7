"""Data sets of image quality assessment, read from the files that their authors publish.

To add one, write a function that reads its label files, and a :class:`DataSet`, in the module of its family;
see docs/data.md.
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
"""Name for your own ratings in a CSV file, in place of a data set."""


def find(name: str) -> DataSet:
    """Return a data set by name; case, spaces, hyphens and underscores are ignored.

    Raises:
        DataSetError: no data set has this name; the message lists near names.

    >>> find("KonIQ-10k").images
    10073
    >>> find("koniq")
    Traceback (most recent call last):
    qmamba.errors.DataSetError: no data set is named 'koniq'; near names: koniq10k
    """
    wanted = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if wanted not in DATASETS:
        raise DataSetError(f"no data set is named {name!r}; {near_names(wanted, DATASETS)}")
    return DATASETS[wanted]


def read_dataset(name: str, root: str | Path, *, manifest: str | Path | None = None) -> list[Rated]:
    """Read the rated images of a data set from the files that its authors publish.

    Nothing is downloaded. Images must exist, but are neither opened nor compared in number with the complete
    data set; `qmamba data check` does both.

    Args:
        name: a key of ``DATASETS``, or ``"manifest"`` for your own ratings.
        root: folder of the data set, or for ``"manifest"`` the CSV file.
        manifest: a CSV file with images and scores that replaces the label files, for copies with another
            layout; see :meth:`DataSet.read`.

    Returns:
        The images, in the order of the label files; a higher `mos` is better, on the data set's scale.

    Raises:
        DataSetError: an unknown name, or files that are missing or not laid out as expected.
        RecipeError: a library that reads the label files is not installed.
    """
    if name != MANIFEST:
        return find(name).read(root, manifest)
    if manifest is not None:
        raise DataSetError(
            "manifest must be None for the name 'manifest', got another file; give the CSV file as root"
        )
    return read_manifest(root)
