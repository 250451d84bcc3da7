"""Label files as data sets ship them (CSV, Excel, MATLAB) and the images they name."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataSetError, RecipeError

HEADER_ROWS = 20  # how far down a sheet its header is looked for


def number(value: object, what: str) -> float:
    """A finite number from a cell.

    Raises:
        DataSetError: it is none; the message calls it ``what``.

    >>> number("3.5", "mos")
    3.5
    >>> number("good", "row 2: mos")
    Traceback (most recent call last):
    qmamba.errors.DataSetError: row 2: mos is 'good', not a number
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataSetError(f"{what} is {value!r}, not a number")
    return found


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line; a cell that is not there is empty.

    Raises:
        DataSetError: it is not there, is no CSV in UTF-8, or has no such column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            header, rows = list(reader.fieldnames or ()), list(reader)
    except FileNotFoundError as error:
        raise DataSetError(f"{path.name} is missing") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataSetError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    if missing := [name for name in columns if name not in header]:
        raise DataSetError(
            f"{path} has no column {missing[0]!r}; its columns are {', '.join(header) or 'none'}"
        )
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that hold anything.

    Raises:
        DataSetError: it is not there, or is no text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataSetError(f"{path.name} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataSetError(f"{path} cannot be read as text: {error}") from error


def read_xlsx(path: Path, columns: Sequence[str], sheet: str | None = None) -> list[dict[str, Any]]:
    """The rows below the header of an Excel sheet, which may stand anywhere near its top left corner.

    Args:
        path: of an .xlsx file.
        columns: names in the header; other columns are left out, and so are rows that lack the first one.
        sheet: name of the sheet; the first one by default.

    Raises:
        DataSetError: the file, the sheet or a column is missing.
        RecipeError: openpyxl is not installed.
    """
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise RecipeError('reading .xlsx needs openpyxl: pip install "qmamba[data]"') from error
    if not path.is_file():
        raise DataSetError(f"{path.name} is missing")
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        table = book[sheet] if sheet else book.worksheets[0]
        cells = [list(row) for row in table.iter_rows(values_only=True)]
        book.close()
    except Exception as error:  # a damaged file fails in any of zip, XML and openpyxl
        raise DataSetError(f"{path} cannot be read as Excel: {' '.join(str(error).split())}") from error
    for top, row in enumerate(cells[:HEADER_ROWS]):
        if all(name in row for name in columns):
            at = {name: row.index(name) for name in columns}
            rows = [{name: each[i] for name, i in at.items()} for each in cells[top + 1 :]]
            return [each for each in rows if each[columns[0]] is not None]
    raise DataSetError(f"{path} has no row with the headings {', '.join(columns)}")


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB file, each as a vector; a cell array becomes one of objects.

    Raises:
        DataSetError: the file or a variable is missing.
        RecipeError: scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise RecipeError('reading .mat needs scipy: pip install "qmamba[data]"') from error
    if not path.is_file():
        raise DataSetError(f"{path.name} is missing")
    try:
        found = loadmat(path, squeeze_me=True)
    except Exception as error:  # a damaged file fails in whatever scipy happens to be reading
        raise DataSetError(f"{path} cannot be read as MATLAB: {' '.join(str(error).split())}") from error
    there = [name for name in found if not name.startswith("__")]
    if missing := [name for name in names if name not in found]:
        raise DataSetError(
            f"{path} has no variable {missing[0]!r}; its variables are {', '.join(there) or 'none'}"
        )
    return [np.atleast_1d(found[name]).ravel() for name in names]


def same_length(**lists: Sequence[Any] | np.ndarray) -> None:
    """Check that lists which belong together are equally long.

    Raises:
        DataSetError: they are not.

    >>> same_length(mos=[1, 2], names=["a"])
    Traceback (most recent call last):
    qmamba.errors.DataSetError: the labels do not fit together: 2 mos, 1 names
    """
    if len({len(each) for each in lists.values()}) > 1:
        counts = ", ".join(f"{len(each)} {name}" for name, each in lists.items())
        raise DataSetError(f"the labels do not fit together: {counts}")


def files_below(root: Path, folder: str = "", *, by_name: bool = False) -> dict[str, Path]:
    """The files of a folder and all below it, by their path from it in lower case, with slashes.

    Lower case, since labels and disks of old data sets differ in it. ``by_name`` gives them by name alone.

    Raises:
        DataSetError: the folder is missing.
    """
    place = root / folder
    if not place.is_dir():
        raise DataSetError(f"the folder {folder or root} is missing")
    found = {}
    for where, _, names in os.walk(place):
        above = "" if by_name else Path(where).relative_to(place).as_posix() + "/"
        for name in names:
            found[(above.removeprefix("./") + name).lower()] = Path(where, name)
    return found


def locate(names: Iterable[str], files: Mapping[str, Path], where: str) -> list[Path]:
    """The file of each name.

    Raises:
        DataSetError: some are not there; the message counts them and names the first.
    """
    names = list(names)
    if missing := [name for name in names if name.lower() not in files]:
        raise DataSetError(
            f"{len(missing)} of {len(names)} images are missing from {where}: {missing[0]} first"
        )
    return [files[name.lower()] for name in names]
