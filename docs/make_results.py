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
from qmamba.train.paper.report import HEADER, lines_of, title_of
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
    "public": "Not in the paper: sets that anyone can download",
}


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
        "The rows of the paper's tables that concern its six networks, as measured by `qmamba reproduce`,",
        "beside the paper's results. `docs/make_results.py` writes this page from result files: nothing is",
        "typed by hand. *Absent* rows have not been run: most of these data sets are only available on",
        "request, and the ImageNet weights that the paper starts from are not part of this library.",
        "[Reproducing](reproducing.md) says how to run them.",
        "",
        "SRCC and PLCC are medians over splits; PLCC is computed after the four-parameter logistic fit.",
    ]
    for table, title in TITLES.items():
        mine = {name: row for name, row in rows.items() if name.split("/")[0] == table}
        if not mine:
            continue
        text += ["", f"## {title}", "", f"| row | {' | '.join(HEADER)} |", "|---|---|---|" + "---:|" * 7]
        for row in mine.values():
            label = row["recipe"]["title"] or row["recipe"]["name"]
            for line in lines_of(row):
                text.append(f"| {label} | {' | '.join(line)} |")
        starts = {
            name.split("/")[1]: title_of(name, row).partition(", from ")[2] for name, row in mine.items()
        }
        text += ["", *(f"`{name}` started from {began}.  " for name, began in starts.items() if began)]
    return "\n".join(text).rstrip() + "\n"


if __name__ == "__main__":
    main()
