"""One row per image, as text: a table for people; csv, json and jsonl for programs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from qmamba.cli._options import Format
from qmamba.cli._progress import bar_of
from qmamba.cli._shared import note_failed, printable


@dataclass(frozen=True)
class Row:
    """An image's score, or why it has none: one of `score` and `error` is None."""

    path: str
    score: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A row with the difference from the best image and the standard deviation over an image's parts."""

    path: str
    score: float | None = None
    difference: float | None = None
    std: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Explained:
    """A row with what is known about an image's score, see `qmamba.scoring.Explanation`."""

    path: str
    score: float | None = None
    std: float | None = None
    fault: str | None = None
    kind: str | None = None
    worst: str | None = None
    reason: str | None = None
    error: str | None = None


AnyRow: TypeAlias = Row | Comparison | Explained

_TITLES = {"score": " score", "difference": "   diff", "std": "   std", "path": "image"}


def header(form: Format, kind: type[AnyRow] = Row) -> str:
    """Return the text before the rows."""
    names = [field.name for field in fields(kind)]
    if form is Format.csv:
        return ",".join(names) + "\n"
    if form is Format.table:
        return "  ".join(_TITLES[name] for name in [*_numbers(names), "path"]) + "\n"
    return "[" if form is Format.json else ""


def render(form: Format, row: AnyRow, *, first: bool) -> str:
    """Return the text of one row; the `first` JSON row has no comma before it."""
    record = asdict(row)
    numbers = _numbers(record)
    if form is Format.table:
        texts = ["-" if record[n] is None else f"{record[n]:{'+' * (n == 'difference')}.4f}" for n in numbers]
        cells = [text.rjust(len(_TITLES[n])) for n, text in zip(numbers, texts, strict=True)]
        name = printable(row.path)
        # Errors begin with the file's name, which the row has already.
        reason = "" if row.error is None else f"  ({printable(row.error).removeprefix(f'{name}: ')})"
        words = f"  {row.reason}" if isinstance(row, Explained) and row.reason else ""
        return f"{'  '.join(cells)}  {name}{words}{reason}\n"
    if form is Format.csv:
        texts = ["" if v is None else f"{v:.6f}" if n in numbers else csv_field(v) for n, v in record.items()]
        return ",".join(texts) + "\n"
    record |= {n: None if record[n] is None else round(record[n], 6) for n in numbers}
    # ASCII only: a name that is not valid UTF-8 survives as \udcXX escapes in any encoding.
    text = json.dumps(record, allow_nan=False)
    if form is Format.jsonl:
        return f"{text}\n"
    return f"{'' if first else ','}\n  {text}"


def _numbers(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in ("score", "difference", "std")]


def footer(form: Format) -> str:
    """Return the text after the rows."""
    return "\n]\n" if form is Format.json else ""


def prepare_stdout(form: Format) -> None:
    """Make every file name writable in any locale; in CSV, bytes that are not UTF-8 are kept as they are."""
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    if form is Format.csv:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    else:
        sys.stdout.reconfigure(errors="backslashreplace")


def csv_field(text: str) -> str:
    """Return text as a field of CSV, quoted where it has to be."""
    # Not csv.writer: before Python 3.13 it leaves a lone carriage return unquoted, which breaks the row.
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def write_rows(
    rows: Iterator[AnyRow], form: Format, total: int, progress: bool | None, kind: type[AnyRow] = Row
) -> int:
    """Write each row to stdout as it comes, and a note on failures to stderr; return how many failed."""
    prepare_stdout(form)
    failed = 0
    with bar_of(total, progress) as bar:
        _emit(header(form, kind), bar)
        try:
            for done, row in enumerate(rows):
                _emit(render(form, row, first=done == 0), bar)
                failed += row.error is not None
                bar.update()
        finally:
            _emit(footer(form), bar)  # after Ctrl-C too, so that JSON is a complete array
    note_failed(failed, total)
    return failed


def _emit(text: str, bar: Any) -> None:
    if not text:
        return
    if bar.disable or not sys.stdout.isatty():
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with bar.external_write_mode(file=sys.stdout):  # rows and bar share a screen: the bar makes room
        sys.stdout.write(text)
        sys.stdout.flush()
