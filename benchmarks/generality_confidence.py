"""Does anything tell where a checkpoint is wrong? Signals of doubt beside errors, on the bench's domains.

    python benchmarks/generality_confidence.py --biq2021 BIQ2021 --agiqa3k AIGC --stills image_quality_test \\
        --srij IQA_SR --kadid-scale SelfExSR --cache cache --model lqmamba-n

It reads the features that ``generality.py`` keeps in its cache. The error of an image is the distance between
its ranks by score and by opinion, within its domain. Signals are:

- ``sides``: the difference of raw quality at the two sizes of the protocol, what ``return_std`` shows;
- ``heads``: the deviation of eight ridge heads on the stage statistics, each fitted to a resample of BIQ2021;
- ``distance``: how far the stage statistics are from BIQ2021's, whitened, on their first 100 axes.

Reported are, for each domain, SRCC of the signal with the error, and the median of the signal relative to
that on BIQ2021: a signal that is high wherever a domain is scored badly knows at least what it does not know.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qmamba
from generality_domains import READERS, Domain, opinions, read_domains
from generality_features import Cache, Student
from generality_models import FITTED
from qmamba.metrics import srcc
from qmamba.train.ridge import Block, Ridge, fit

RESULTS = Path(__file__).parent / "results" / "confidence.json"
HEADS = 8
STRENGTH = 0.3  # of a head
AXES = 100


class Distance:
    """Distance to a set of statistics (n, D), on their first whitened axes."""

    def __init__(self, x: np.ndarray) -> None:
        self.mean, self.deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
        _, values, axes = np.linalg.svd((x - self.mean) / self.deviation, full_matrices=False)
        self.axes = axes[:AXES].T / (values[:AXES] / len(x) ** 0.5)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the distances (n,) of statistics (n, D)."""
        whitened: np.ndarray = ((x - self.mean) / self.deviation) @ self.axes
        return np.linalg.norm(whitened, axis=1)


def heads(x: np.ndarray, y: np.ndarray) -> list[Ridge]:
    """Return ridge regressions on resamples of statistics (n, D) and opinions (n,)."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(x), size=len(x)) for _ in range(HEADS)]
    return [fit(Block(x[i].astype(np.float64), y[i]).moments, STRENGTH) for i in drawn]


def errors(scores: np.ndarray, mos: np.ndarray) -> np.ndarray:
    """Return the distances (n,) of the ranks by score and by opinion, as shares of n."""
    ranks = [values.argsort(kind="stable").argsort() for values in (scores, mos)]
    distances: np.ndarray = np.abs(ranks[0] - ranks[1]) / len(mos)
    return distances


def measured(students: Sequence[Student], domains: Sequence[Domain], cache: Cache) -> dict[str, Any]:
    """Return the agreement of each signal with the error on each domain, and its median over BIQ2021's."""
    (fitted,) = (domain for domain in domains if domain.name == FITTED)
    x = cache.fit(students[0], fitted)[:, :-1]
    ridges, distance = heads(x, opinions(fitted.fit)), Distance(x)
    found: dict[str, dict[str, Any]] = {}
    signals: dict[str, dict[str, np.ndarray]] = {}
    for domain in domains:
        first, second = (cache.test(student, domain) for student in students)
        signals[domain.name] = {
            "sides": np.abs(first[:, -1] - second[:, -1]),
            "heads": np.std([ridge.predict(first[:, :-1]) for ridge in ridges], axis=0),
            "distance": distance(first[:, :-1]),
        }
        raw, mos = (first[:, -1] + second[:, -1]) / 2, opinions(domain.test)
        wrong = errors(raw, mos)
        found[domain.name] = {"srcc": round(srcc(raw, mos), 4), "signals": {}}
        for name, signal in signals[domain.name].items():
            relative = float(np.median(signal) / np.median(signals[FITTED][name]))
            found[domain.name]["signals"][name] = {
                "with_error": round(srcc(signal, wrong), 4), "over_fitted": round(relative, 3),
            }  # fmt: skip
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rated = [name for name in READERS if name != "polyu"]  # pairs have no opinions
    for name in rated:
        parser.add_argument(f"--{name}", type=Path, metavar="CLONE")
    parser.add_argument("--model", default="lqmamba-n")
    parser.add_argument("--cache", type=Path, required=True, help="of generality.py")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    sources = {name: getattr(args, name.replace("-", "_")) for name in rated}
    scorer, cache = qmamba.load(args.model), Cache(args.cache)
    students = [Student(scorer, side) for side in scorer.protocol.sides[:2]]
    found = measured(students, read_domains(sources, args.cache), cache)
    for name, domain in found.items():
        cells = [f"{signal} {row['with_error']:+.3f}" for signal, row in domain["signals"].items()]
        print(f"{name:12} SRCC {domain['srcc']:.3f}  {'  '.join(cells)}")
    args.out.write_text(json.dumps({"model": scorer.name, "domains": found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
