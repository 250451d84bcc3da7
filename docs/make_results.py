"""Writes docs/results.md from the result files in docs/results, which `qmamba reproduce` has written.

python docs/make_results.py                       # anew, from the files that are there
python docs/make_results.py reproduced/results    # after taking over these files, TABLE/ROW.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qmamba.train import load_recipe
from qmamba.train.paper import list_paper_recipes
from qmamba.train.paper.report import results_page
from qmamba.train.paper.rows import empty_row

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> None:
    for source in map(Path, sys.argv[1:]):
        for path in source.glob("*/*.json"):
            place = RESULTS / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            row = json.loads(path.read_text(encoding="utf-8"))
            for cell in row["cells"]:  # what is lacking is told with the paths of that machine
                cell["absent"] = "absent" if cell["absent"] else None
            place.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    rows = {}
    for name in list_paper_recipes():
        path = RESULTS / f"{name}.json"
        done = path.read_text(encoding="utf-8") if path.is_file() else None
        rows[name] = json.loads(done) if done else empty_row(load_recipe(name))
    (HERE / "results.md").write_text(results_page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
