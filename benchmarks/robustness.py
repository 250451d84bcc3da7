"""Measure how scores respond to increasing distortion, and to a change of size.

    python benchmarks/robustness.py examples/*.jpg --out robustness.json

Prints, for each of the 25 distortions, the Spearman correlation between level and score, including the
original, mean over the photographs (-1: each level scores below the previous one), and the mean over the 17
distortions that only degrade; then the scores of each photograph shrunk to several longer sides.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image

import qmamba
from qmamba.data import DISTORTIONS
from qmamba.metrics import srcc

LENGTHS = (4000, 2000, 1000, 500)


def distortion_sense(scorer: qmamba.Scorer, photos: list[Image.Image]) -> dict[str, float]:
    """Return the mean Spearman correlation between level and score, by distortion."""
    originals = scorer.score(photos).tolist()
    sense: dict[str, float] = {}
    for name, distortion in DISTORTIONS.items():
        found = []
        for photo, original in zip(photos, originals, strict=True):
            damaged = [qmamba.distort(photo, name, level) for level in range(1, 6)]
            found.append(srcc([original, *scorer.score(damaged).tolist()], list(range(6))))
        sense[name] = round(mean(found), 4)
        kind = "degrades" if distortion.degrades else "changes"
        print(f"  {name:24s} {kind:9s} {sense[name]:+.3f}", flush=True)
    return sense


def at_sizes(scorer: qmamba.Scorer, photo: Image.Image) -> dict[int, float]:
    """Return scores of a photograph shrunk to each length of its longer side; it is never enlarged."""
    longer = max(photo.size)
    scores = {longer: scorer.score(photo)}
    for length in LENGTHS:
        if length < longer:
            size = (round(photo.width * length / longer), round(photo.height * length / longer))
            scores[length] = scorer.score(photo.resize(size, Image.Resampling.LANCZOS))
    return {length: round(value, 4) for length, value in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", type=Path, help="photographs not used in training")
    parser.add_argument("--model", default="lqmamba-n")
    parser.add_argument("--sizes-only", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    scorer = qmamba.load(args.model)
    photos = [Image.open(path).convert("RGB") for path in args.photos]
    report: dict[str, Any] = {}
    if not args.sizes_only:
        print(f"Spearman correlation between level and score, mean over {len(photos)} photographs")
        report["distortions"] = sense = distortion_sense(scorer, photos)
        report["degrading"] = round(mean(sense[name] for name, d in DISTORTIONS.items() if d.degrades), 4)
        print(f"  mean over the 17 that only degrade {report['degrading']:+.3f}")
    report["sizes"] = {path.name: at_sizes(scorer, p) for path, p in zip(args.photos, photos, strict=True)}
    for name, scores in report["sizes"].items():
        print(f"{name:32s} " + "  ".join(f"{length} px {score:.3f}" for length, score in scores.items()))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
