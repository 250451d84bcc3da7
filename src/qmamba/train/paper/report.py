"""Measured rows beside the paper's, as lines of a table and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from .recipe import AVERAGE
from .rows import digest_of

HEADER = ("learnt", "tested", "splits", "SRCC", "paper", "difference", "PLCC", "paper", "difference")
ABSENT = "absent"
DIGITS = 12  # of a digest that are printed
Line = tuple[str, ...]


def lines_of(row: Mapping[str, Any]) -> list[Line]:
    """Return the cells of a row, as :data:`HEADER` names them, and their average.

    Args:
        row: what :func:`qmamba.train.paper.rows.do_row` returns, or the same with nothing done yet.

    PLCC is the one after the logistic fit. The average is over all cells, and missing while one is absent. A
    dry run, whose numbers mean nothing, has no differences.
    """
    found, lines = [], []
    compared = not row["dry_run"]
    for cell in row["cells"]:
        ours = _ours(cell)
        paper = cell["paper"] and (cell["paper"][1], cell["paper"][0])  # SRCC first
        found.append((ours, paper))
        learnt = "+".join(cell["sources"]) if [*cell["sources"]] != [cell["test"]] else "the same"
        splits = str(len(cell["splits"])) if ours else ABSENT
        lines.append((learnt, cell["test"], splits, *_numbers(ours, paper, compared)))
    if len(found) > 1:
        ours = _mean([each for each, _ in found])
        printed = dict(row["recipe"]["paper"]).get(AVERAGE)
        paper = (printed[1], printed[0]) if printed else _mean([each for _, each in found])
        lines.append(("", AVERAGE, "", *_numbers(ours, paper, compared)))
    return lines


def _ours(cell: Mapping[str, Any]) -> tuple[float | None, float | None] | None:
    if not cell["splits"]:
        return None
    return cell["median"]["srcc"], cell["median"]["plcc_fitted"]


def _mean(pairs: Sequence[Any]) -> tuple[float, float] | None:
    if any(pair is None or None in pair for pair in pairs):
        return None
    first, second = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return first, second


def _numbers(ours: Any, paper: Any, compared: bool) -> list[str]:
    cells = []
    for i in range(2):
        mine, theirs = (None if pair is None else pair[i] for pair in (ours, paper))
        cells.append("-" if mine is None else f"{mine:.3f}")
        cells.append("-" if theirs is None else f"{theirs:.3f}")
        if mine is None or theirs is None or not compared:
            cells.append("-")
        else:
            cells.append(f"{mine - theirs:+.3f}")
    return cells


def row_text(name: str, row: Mapping[str, Any]) -> str:
    """Return a row as a table for a terminal, with a line on what each absent cell lacks."""
    lines = [HEADER, *lines_of(row)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = [title_of(name, row)]
    for line in lines:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  " + "  ".join(cells).rstrip())
    text += [f"  {cell['test']} {ABSENT}: {cell['absent']}" for cell in row["cells"] if cell["absent"]]
    text += [f"  {line}" for line in how_to_repeat(row)]
    return "\n".join(text) + "\n"


def how_to_repeat(row: Mapping[str, Any]) -> list[str]:
    """Return lines by which two people repeat and compare a row: command, checkpoints, digests."""
    lines = [f"repeat: {row['command']}"] if row["command"] else []
    digests = [f"config {row['config_sha256'][:DIGITS]}"]
    for cell in row["cells"]:
        if not cell["splits"]:
            continue
        if weights := cell["splits"][0]["weights"]:
            run, kind = PurePosixPath(weights).parents[1], PurePosixPath(weights).name
            lines.append(f"{kind} {cell['name']}: runs/{run}/split-*/{kind}")
        split, images = (
            digest_of(each[f"{what}_sha256"] for each in cell["splits"]) for what in ("split", "images")
        )
        digests.append(f"{cell['test']} splits {split[:DIGITS]} images {images[:DIGITS]}")
    return [*dict.fromkeys(lines), "hashes: " + ", ".join(dict.fromkeys(digests))]


def title_of(name: str, row: Mapping[str, Any]) -> str:
    """Return a row's name and title, and what its networks started from."""
    starts = sorted({cell["start"] for cell in row["cells"] if cell.get("start")})
    began = f", from {', '.join(starts)}" if starts else ""
    dry = ", dry run: the numbers mean nothing" if row["dry_run"] else ""
    return f"{name}  {row['recipe']['title'] or row['recipe']['name']}{began}{dry}"
