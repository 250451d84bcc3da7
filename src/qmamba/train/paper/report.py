"""Measured rows beside the paper's, as text for a terminal and as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from .recipe import AVERAGE
from .rows import digest_of

TITLES = {
    "table1": "Table 1: task-specific, synthetic and authentic sets",
    "table2": "Table 2: universal, averages",
    "table3": "Table 3: transfer from authentic and from synthetic sets, LQMamba-B",
    "table5": "Table 5: task-specific, generated images",
    "table6": "Table 6: universal, set by set",
    "table7": "Table 7: transfer from generated images, LQMamba-B",
    "agiqa3k": "Table 5 on AGIQA-3K, with LQMamba-N",
    "agiqa3k-transfer": "Tables 3 and 8: transfer to generated images, BIQ2021 to AGIQA-3K, LQMamba-N",
    "agiqa3k-reverse": "Table 7's direction: transfer from generated images, AGIQA-3K to BIQ2021, LQMamba-N",
    "agiqa3k-universal": "Table 2's task: four public sets, LQMamba-N",
    "agiqa3k-prompts": "Table 9: number of prompts, BIQ2021 to AGIQA-3K, LQMamba-N",
    "agiqa3k-sizes": "Table 10: size of prompts, BIQ2021 to AGIQA-3K, LQMamba-N",
    "public": "Not in the paper: sets that anyone can download",
    "nano": "Not in the paper: its sets with LQMamba-N",
}
_COPY = (
    "The images are those of github.com/qiyan111/AIGC, JPEG of a quality of about 75, where the original\n"
    "has PNG; and LQMamba-N has 3.4 M parameters, and has not learnt to classify ImageNet."
)
_BASES = (
    f"{_COPY} The paper's bases learn\n"
    "KonIQ-10k and LIVE Challenge. Learning rates of adapters are chosen on held-out prompts."
)
NOTES = {
    "agiqa3k": f"{_COPY}\nThe paper splits by image, so that prompts are in both folds, and starts from "
    "ImageNet weights.",
    "agiqa3k-transfer": _BASES,
    "agiqa3k-reverse": _COPY,
    "agiqa3k-universal": _COPY,
    "agiqa3k-prompts": _BASES,
    "agiqa3k-sizes": _BASES,
}
"""What differs from the paper, by table."""

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
    text = [_title(name, row)]
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


def _title(name: str, row: Mapping[str, Any]) -> str:
    starts = sorted({cell["start"] for cell in row["cells"] if cell.get("start")})
    began = f", from {', '.join(starts)}" if starts else ""
    dry = ", dry run: the numbers mean nothing" if row["dry_run"] else ""
    return f"{name}  {row['recipe']['title'] or row['recipe']['name']}{began}{dry}"


def _linked(line: Line, name: str) -> Line:
    """Return a line whose measured numbers are links to the row's result file."""
    return tuple(
        f"[{cell}](results/{name}.json)" if title in ("SRCC", "PLCC") and cell != "-" else cell
        for title, cell in zip(HEADER, line, strict=True)
    )


def _to_compare(name: str, row: Mapping[str, Any]) -> list[str]:
    """Return how a measured row is repeated, as far as its file says so, in lines of a page."""
    if not row.get("command"):
        return []
    row_name = name.split("/", 1)[1]
    return [f"`{row_name}`: `{row['command']}`", f"`{row_name}` has the {how_to_repeat(row)[-1]}"]


def results_page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return docs/results.md from rows by name, ``table1/lqmamba-t`` and so on."""
    text = [
        "# Results",
        "",
        "The rows of the paper's tables that concern its six networks, as measured by `qmamba reproduce`,",
        "beside the paper's results. `docs/make_results.py` writes this page from result files: nothing is",
        "typed by hand. *Absent* rows have not been run: most of these data sets are only available on",
        "request, and the ImageNet weights that the paper starts from are not part of this library.",
        "[Reproducing](reproducing.md) says how to run them.",
        "",
        "SRCC and PLCC are medians over splits; PLCC is computed after the four-parameter logistic fit. Each",
        "measured number links to its result file: all splits, the recipe, the command that repeats it, and",
        "digests of configuration, splits and images.",
    ]
    for table, title in TITLES.items():
        mine = {name: row for name, row in rows.items() if name.split("/")[0] == table}
        if not mine:
            continue
        text += ["", f"## {title}", "", *((NOTES[table], "") if table in NOTES else ())]
        text += [f"| row | {' | '.join(HEADER)} |", "|---|---|---|" + "---:|" * 7]
        for name, row in mine.items():
            label = row["recipe"]["title"] or row["recipe"]["name"]
            for line in lines_of(row):
                text.append(f"| {label} | {' | '.join(_linked(line, name))} |")
        starts = {name.split("/")[1]: _title(name, row).partition(", from ")[2] for name, row in mine.items()}
        text += ["", *(f"`{name}` started from {began}.  " for name, began in starts.items() if began)]
        text += [f"{line}.  " for name, row in mine.items() for line in _to_compare(name, row)]
    return "\n".join(text).rstrip() + "\n"
