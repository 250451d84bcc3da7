"""Read label files (CSV, Excel, MATLAB), and find the images that they name."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataSetError, RecipeError

HEADER_ROWS = 20  # rows of a sheet that are searched for its header


def number(value: object, what: str) -> float:
    """Return the finite number in a cell.

    Raises:
        DataSetError: the cell holds no finite number; the message calls the cell ``what``.

    >>> number("3.5", "mos")
    3.5
    >>> number("good", "row 2: mos")
    Traceback (most recent call last):
    qmamba.errors.DataSetError: row 2: mos must be a number, got 'good'
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataSetError(f"{what} must be a number, got {value!r}")
    return found


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header line; missing cells are empty.

    Raises:
        DataSetError: the file is missing, is not CSV in UTF-8, or lacks a column.
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
    """Return the non-empty lines of a text file, stripped.

    Raises:
        DataSetError: the file is missing, or is not text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataSetError(f"{path.name} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataSetError(f"{path} cannot be read as text: {error}") from error


def read_xlsx(path: Path, columns: Sequence[str], sheet: str | None = None) -> list[dict[str, Any]]:
    """Return the rows below the header of an Excel sheet; the header is searched for in the first rows.

    Args:
        path: an .xlsx file.
        columns: names in the header; other columns are dropped, and so are rows without the first one.
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
    except Exception as error:  # a damaged file may fail in zip, XML or openpyxl
        raise DataSetError(f"{path} cannot be read as Excel: {' '.join(str(error).split())}") from error
    for top, row in enumerate(cells[:HEADER_ROWS]):
        if all(name in row for name in columns):
            at = {name: row.index(name) for name in columns}
            rows = [{name: each[i] for name, i in at.items()} for each in cells[top + 1 :]]
            return [each for each in rows if each[columns[0]] is not None]
    raise DataSetError(f"{path} has no row with the headings {', '.join(columns)}")


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Return variables of a MATLAB file as vectors; cell arrays become arrays of objects.

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
    except Exception as error:  # scipy fails on damaged files in many ways
        raise DataSetError(f"{path} cannot be read as MATLAB: {' '.join(str(error).split())}") from error
    variables = [name for name in found if not name.startswith("__")]
    if missing := [name for name in names if name not in found]:
        raise DataSetError(
            f"{path} has no variable {missing[0]!r}; its variables are {', '.join(variables) or 'none'}"
        )
    return [np.atleast_1d(found[name]).ravel() for name in names]


def same_length(**lists: Sequence[Any] | np.ndarray) -> None:
    """Check that lists have the same length.

    Raises:
        DataSetError: their lengths differ.

    >>> same_length(mos=[1, 2], names=["a"])
    Traceback (most recent call last):
    qmamba.errors.DataSetError: label lists must have the same length, got 2 mos, 1 names
    """
    if len({len(each) for each in lists.values()}) > 1:
        counts = ", ".join(f"{len(each)} {name}" for name, each in lists.items())
        raise DataSetError(f"label lists must have the same length, got {counts}")


def files_below(root: Path, folder: str = "", *, by_name: bool = False) -> dict[str, Path]:
    """Return the files below a folder, keyed by relative path in lower case, with slashes.

    Keys are lower-case because labels and files of old data sets differ in case. With ``by_name`` they are
    file names only.

    Raises:
        DataSetError: the folder is missing.
    """
    top = root / folder
    if not top.is_dir():
        raise DataSetError(f"the folder {folder or root} is missing")
    found = {}
    for parent, _, names in os.walk(top):
        prefix = "" if by_name else Path(parent).relative_to(top).as_posix() + "/"
        for name in names:
            found[(prefix.removeprefix("./") + name).lower()] = Path(parent, name)
    return found


def locate(names: Iterable[str], files: Mapping[str, Path], where: str) -> list[Path]:
    """Return the file of each name.

    Raises:
        DataSetError: files are missing; the message counts them and names the first.
    """
    names = list(names)
    if missing := [name for name in names if name.lower() not in files]:
        raise DataSetError(
            f"{len(missing)} of {len(names)} images are missing from {where}, the first is {missing[0]}"
        )
    return [files[name.lower()] for name in names]
