"""Writes docs/results.md from the result files in docs/results, which `qmamba reproduce` has written.

python docs/make_results.py                       # from the files that are there
python docs/make_results.py reproduced/results    # copy these files first, TABLE/ROW.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qmamba.train import load_recipe
from qmamba.train.paper import list_paper_recipes
from qmamba.train.paper.report import HEADER, Line, how_to_repeat, lines_of, title_of
from qmamba.train.paper.rows import empty_row

HERE = Path(__file__).parent
RESULTS = HERE / "results"
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
    "loda": "LoDa: task-specific, the seven sets of its paper",
    "loda-small": "Not in the paper: LoDa with small random towers",
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
    "loda": "Table 1 of the LoDa paper, whose results are beside ours. Both rows start from the paper's\n"
    "base models; in `frozen-bn` the batch norms of the ResNet keep their statistics.",
    "loda-small": "The towers are random, small and frozen, where LoDa's have learnt ImageNet: this tests\n"
    "the training, and is no result of the paper.",
    "agiqa3k-prompts": _BASES,
    "agiqa3k-sizes": _BASES,
}
"""What differs from the paper, by table."""


def main() -> None:
    for source in map(Path, sys.argv[1:]):
        for path in source.glob("*/*.json"):
            place = RESULTS / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            row = json.loads(path.read_text(encoding="utf-8"))
            for cell in row["cells"]:  # the reason contains paths of that machine
                cell["absent"] = "absent" if cell["absent"] else None
            place.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    rows = {}
    for name in list_paper_recipes():
        path = RESULTS / f"{name}.json"
        done = path.read_text(encoding="utf-8") if path.is_file() else None
        rows[name] = json.loads(done) if done else empty_row(load_recipe(name))
    (HERE / "results.md").write_text(results_page(rows), encoding="utf-8")


def results_page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return docs/results.md from rows by name, ``table1/lqmamba-t`` and so on."""
    text = [
        "# Results",
        "",
        "The rows of the paper's tables that concern its six networks, and those of [LoDa](loda.md), as",
        "measured by `qmamba reproduce`, beside the published results. `docs/make_results.py` writes this",
        "page from result files: nothing is typed by hand. *Absent* rows have not been run: most of these",
        "data sets are only available on request, and the ImageNet weights that the paper starts from are",
        "not part of this library.",
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
        starts = {
            name.split("/")[1]: title_of(name, row).partition(", from ")[2] for name, row in mine.items()
        }
        text += ["", *(f"`{name}` started from {began}.  " for name, began in starts.items() if began)]
        text += [f"{line}.  " for name, row in mine.items() for line in _to_compare(name, row)]
    return "\n".join(text).rstrip() + "\n"


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


if __name__ == "__main__":
    main()
