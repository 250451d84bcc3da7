"""Summarise a training of LoDa with small towers, for the table in docs/loda.md.

    qmamba reproduce loda-small --data-root DATA --out runs/loda --cpu
    python benchmarks/loda_training.py runs/loda    # writes benchmarks/results/loda_training.json
    python docs/make_results.py runs/loda/results && python docs/make_tables.py

`DATA/biq2021` is a clone of github.com/nisarahmedrana/BIQ2021, or a link to one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "results" / "loda_training.json"


def summary(run: Path) -> dict[str, Any]:
    """Return mean loss, SRCC on the fold "val" and hours so far for each epoch, and the test results.

    Args:
        run: folder of a finished run, with ``log.jsonl`` and ``results.json``.
    """
    events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    epochs: list[dict[str, Any]] = []
    losses: list[float] = []
    seconds = 0.0
    for event in events:
        if "loss" in event:
            losses.append(event["loss"])
            seconds += event["seconds"]
        elif "val_srcc" in event:
            epochs.append(
                {
                    "epoch": len(epochs) + 1,
                    "loss": round(statistics.mean(losses), 4),
                    "val_srcc": event["val_srcc"],
                    "hours": round(seconds / 3600, 3),
                }
            )
            losses = []
    return {"steps": results["steps"], "epochs": epochs, "sets": results["sets"]}


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="what --out was in the training")
    args = parser.parse_args()
    runs = sorted(args.out.glob("runs/loda-biq2021-*/split-00/results.json"))
    if len(runs) != 1:
        raise SystemExit(f"{args.out} must hold one finished run of loda on biq2021, got {len(runs)}")
    OUT.write_text(json.dumps(summary(runs[0].parent), indent=2) + "\n", encoding="utf-8")
    print(OUT)


if __name__ == "__main__":
    main()
