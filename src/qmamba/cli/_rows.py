"""One row per image, as text: a table for people; csv, json and jsonl for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum

from qmamba.cli._shared import printable


class Format(str, Enum):
    """How `qmamba score` writes its rows."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


@dataclass(frozen=True)
class Row:
    """An image's score, or why it has none: exactly one of `score` and `error` is not None."""

    path: str
    score: float | None = None
    error: str | None = None


def header(form: Format) -> str:
    """What comes before the rows."""
    return {Format.table: " score  image\n", Format.csv: "path,score,error\n", Format.json: "["}.get(form, "")


def render(form: Format, row: Row, *, first: bool) -> str:
    """The text of one row; `first` because JSON has commas between rows."""
    if form is Format.table:
        score = "     -" if row.score is None else f"{row.score:6.4f}"
        name = printable(row.path)
        # Errors begin with the file's name, which is already there.
        reason = "" if row.error is None else f"  ({printable(row.error).removeprefix(f'{name}: ')})"
        return f"{score}  {name}{reason}\n"
    if form is Format.csv:
        score = "" if row.score is None else f"{row.score:.6f}"
        return f"{_csv_field(row.path)},{score},{_csv_field(row.error or '')}\n"
    record = asdict(row) | {"score": None if row.score is None else round(row.score, 6)}
    # ASCII only: a name that is not valid UTF-8 survives as \udcXX escapes, whatever the terminal's encoding.
    text = json.dumps(record, allow_nan=False)
    if form is Format.jsonl:
        return f"{text}\n"
    return f"{'' if first else ','}\n  {text}"


def footer(form: Format) -> str:
    """What comes after the rows."""
    return "\n]\n" if form is Format.json else ""


def _csv_field(text: str) -> str:
    # Not csv.writer: before Python 3.13 it leaves a lone carriage return unquoted, which breaks the row.
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text
