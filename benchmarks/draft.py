"""Measure how scores change when large JPEG files are decoded at a fraction of their size.

    python benchmarks/draft.py FOLDER [FOLDER …] --out draft.json

Counts the JPEG files below the folders that are large enough to be reduced.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import qmamba
from qmamba.errors import ImageError
from qmamba.images import decode

RESULTS = Path(__file__).parent / "results" / "draft.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    draft, changes = qmamba.load(draft=True), {}
    files = [path for folder in args.folders for path in sorted(folder.rglob("*"))]
    for path in files:
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            continue
        try:
            whole, reduced = decode(path), draft.decoded(path)
        except ImageError as error:
            print(error)
            continue
        if reduced.pixels.shape != whole.shape:
            changes[path.name] = round(draft.score(path) - draft.score(whole), 5)
            print(path.name, *reduced.pixels.shape[1:], changes[path.name], flush=True)
    sizes = [abs(change) for change in changes.values()]
    found = {
        "photographs": len(sizes),
        "mean": round(statistics.fmean(sizes), 5),
        "median": round(statistics.median(sizes), 5),
        "maximum": max(sizes),
        "changes": changes,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print({name: value for name, value in found.items() if name != "changes"})


if __name__ == "__main__":
    main()
