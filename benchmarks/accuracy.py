r"""Compare the agreement with human ratings of our model and of other methods, on the same images.

    pip install "qmamba[train,distil,benchmarks]" brisque scikit-video
    python benchmarks/accuracy.py --biq2021 BIQ2021 --data stills=stills.csv --out accuracy.json \
        --teacher runs/teacher/checkpoint

Each --data names a manifest, a CSV file with the columns image and mos. Prints SRCC and PLCC with 95 %
bootstrap intervals, and the difference of each SRCC from the ridge regression's on the same resamples. By
default BIQ2021's val fold is measured; its test fold only with --test, once per released model. --kept saves
all scores in a folder, and a later run computes only the missing ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qmamba
from peers import Peer, brisque, lite0_ridge, lite0_tuned, niqe
from qmamba.data import Rated, read_biq2021, read_manifest
from qmamba.metrics import plcc, srcc

RESAMPLES = 1000


def ours(model: str) -> tuple[str, Peer]:
    """Return one of our models, under its name and a digest of everything that determines its scores."""
    scorer = qmamba.load(model)
    config = scorer.config
    parts = config.weights_sha256, config.preprocessing, config.protocol, config.calibration
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    peer = lambda paths: scorer.score(list(paths), progress=True).numpy().astype(np.float64)  # noqa: E731
    return f"{config.name} {digest}", peer


def peers(args: argparse.Namespace) -> dict[str, Peer]:
    """Return the methods available here; print the reason for each missing one."""
    found: dict[str, Peer] = dict(ours(model) for model in args.model if model not in args.without)
    makers = {"brisque": brisque, "niqe": niqe}
    if args.biq2021 is not None:
        train, val = (read_biq2021(args.biq2021, [fold]) for fold in ("train", "val"))
        makers["lite0-ridge"] = lambda: lite0_ridge(train, val, args.cache)
    if args.teacher is not None:
        makers["lite0-tuned"] = lambda: lite0_tuned(args.teacher)
    for name, make in makers.items():
        if name in args.without:
            continue
        try:
            found[name] = make()
        except ImportError as error:
            print(f"without {name}: {error}")
    return found


class Kept:
    """Cache of scores by method and photograph, also on disk if a folder is given."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.known: dict[str, dict[str, float]] = {}

    def scores(self, name: str, peer: Peer, paths: Sequence[Path]) -> np.ndarray:
        """Return scores of a method, computing only those that are not cached."""
        file = None if self.folder is None else self.folder / f"{name}.json"
        if name not in self.known:
            self.known[name] = json.loads(file.read_text("utf-8")) if file and file.exists() else {}
        known = self.known[name]
        new = [p for p in paths if str(p) not in known]
        if new:
            known |= {str(p): float(v) for p, v in zip(new, peer(new), strict=True)}
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(known), encoding="utf-8")
        return np.array([known[str(p)] for p in paths])


def sets(args: argparse.Namespace) -> dict[str, list[Rated]]:
    found: dict[str, list[Rated]] = {}
    if args.biq2021 is not None:
        fold = "test" if args.test else "val"
        whole = read_biq2021(args.biq2021, [fold])
        found[f"biq2021 {fold}"] = whole
        for part in ("ss01", "ss02", "ss03"):
            found[f"  {part}"] = [r for r in whole if r.path.name.startswith(part)]
    for entry in args.data:
        name, _, path = entry.rpartition("=")
        found[name or Path(path).stem] = read_manifest(path)
    return found


def intervals(scores: dict[str, np.ndarray], mos: np.ndarray, base: str | None) -> dict[str, Any]:
    """Return metrics of each method with intervals, and the paired difference in SRCC from ``base``."""
    rng = np.random.default_rng(0)
    draws: dict[str, list[tuple[float, float]]] = {name: [] for name in scores}
    for _ in range(RESAMPLES):
        pick = rng.integers(len(mos), size=len(mos))
        for name, values in scores.items():
            draws[name].append((srcc(values[pick], mos[pick]), plcc(values[pick], mos[pick])))
    rows: dict[str, Any] = {}
    for name, values in scores.items():
        drawn = np.array(draws[name])
        low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
        rows[name] = {
            "srcc": srcc(values, mos), "srcc_low": low[0], "srcc_high": high[0],
            "plcc": plcc(values, mos), "plcc_low": low[1], "plcc_high": high[1],
        }  # fmt: skip
        if base is not None and name != base:
            gain = drawn[:, 0] - np.array(draws[base])[:, 0]
            bounds = np.nanpercentile(gain, [2.5, 97.5])
            rows[name] |= {"gain": np.nanmean(gain), "gain_low": bounds[0], "gain_high": bounds[1]}
    return {name: {key: round(float(v), 4) for key, v in row.items()} for name, row in rows.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--biq2021", type=Path, help="folder of BIQ2021; fits the ridge")
    parser.add_argument("--data", action="append", default=[], metavar="[NAME=]MANIFEST")
    parser.add_argument(
        "--model", action="append", default=[], help="name, folder or Hub id; may be repeated"
    )
    parser.add_argument("--without", action="append", default=[], metavar="PEER")
    parser.add_argument("--teacher", type=Path, help="checkpoint of the teacher, measured too")
    parser.add_argument("--test", action="store_true", help="use the test fold of BIQ2021")
    parser.add_argument("--cache", type=Path, default=Path("lite0-features.npy"))
    parser.add_argument("--kept", type=Path, help="folder that caches scores")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    args.model = args.model or ["lqmamba-n"]
    chosen, report = peers(args), {}
    base = "lite0-ridge" if "lite0-ridge" in chosen else None
    kept = Kept(args.kept)
    for title, rated in sets(args).items():
        paths = [r.path for r in rated]
        scores = {name: kept.scores(name, peer, paths) for name, peer in chosen.items()}
        report[title] = {"n": len(rated), **intervals(scores, np.array([r.mos for r in rated]), base)}
        print(f"{title} ({len(rated)})")
        for name in chosen:
            row = report[title][name]
            line = f"  {name:22s} SRCC {row['srcc']:.3f} [{row['srcc_low']:.3f}, {row['srcc_high']:.3f}]"
            line += f"  PLCC {row['plcc']:.3f} [{row['plcc_low']:.3f}, {row['plcc_high']:.3f}]"
            if "gain" in row:
                line += f"  vs the ridge {row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
            print(line, flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
