"""Data sets as commands name them: one argument for a manifest or for the folder of a known data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmamba.errors import DataSetError

if TYPE_CHECKING:
    from qmamba.data import Rated

_HELP = "Rated images: a CSV file with image and mos, or NAME=FOLDER for a data set of `qmamba data list`."
Data = Annotated[str, typer.Option("--data", "-d", metavar="DATA", help=_HELP)]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=_HELP)]
Manifest = Annotated[
    Path | None,
    typer.Option(
        help="CSV file with image and mos, or dmos for DMOS sets, that replaces a data set's label files."
    ),
]


@dataclass(frozen=True)
class Source:
    """Where rated images come from.

    Attributes:
        name: of the data set, ``"manifest"`` for a CSV file.
        path: of its folder, or of the CSV file.
    """

    name: str
    path: Path

    @property
    def root(self) -> Path:
        """Folder that image names start at."""
        return self.path.parent if self.is_manifest else self.path

    @property
    def label(self) -> str:
        """What to call it in file names."""
        return self.path.stem if self.is_manifest else self.name

    @property
    def is_manifest(self) -> bool:
        from qmamba.data.datasets import MANIFEST

        return self.name == MANIFEST

    def read(self, manifest: Path | None = None) -> list[Rated]:
        """Return the rated images.

        Raises:
            DataSetError: files are missing or not laid out as expected.
        """
        from qmamba.data import read_dataset

        if self.is_manifest and manifest is not None:
            raise DataSetError("--manifest goes with NAME=FOLDER: a CSV file is a manifest itself")
        return read_dataset(self.name, self.path, manifest=manifest)


def source_of(data: str, default: str | None = None) -> Source:
    """Return the data set that an argument names.

    Args:
        data: a CSV file, or ``NAME=FOLDER``.
        default: name of the data set that a folder without a name holds.

    Raises:
        DataSetError: a folder without a name, or no such data set; the message has near names.
    """
    from qmamba.data.datasets import MANIFEST, find

    name, equals, folder = data.partition("=")
    if equals and not Path(data).exists():
        if not folder:
            raise DataSetError(f"the folder of the data set {name!r} is empty; give {name}=FOLDER")
        return Source(find(name).name, Path(folder))
    if default is not None and default != MANIFEST:
        return Source(default, Path(data))
    if Path(data).is_dir():
        raise DataSetError(f"{data}: a folder; give NAME={data} with a name of `qmamba data list`")
    return Source(MANIFEST, Path(data))


def read_ratings(data: str) -> list[Rated]:
    """Return the rated images of an argument; errors are those of `source_of` and `Source.read`."""
    return source_of(data).read()
