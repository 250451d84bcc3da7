r"""How well models hold on kinds of images that they were never trained on.

    pip install "qmamba[train,distil,benchmarks]"
    python benchmarks/generality.py --biq2021 BIQ2021 --agiqa3k AIGC --stills image_quality_test \
        --srij IQA_SR --kadid-scale SelfExSR --polyu PolyU --cache cache \
        --checkpoint lqmamba-n --checkpoint new=runs/new/checkpoint

Each option of a domain names a clone of its repository (docs/generality.md says which); domains without one
are left out. Measured are:

- leave one domain out: a ridge regression fitted to all other domains and tested on this one, on statistics
  of frozen EfficientNet-Lite0 (`lite0`), as an ensemble over sizes, folds and subsets of the domains
  (`lite0-ensemble`), and on a checkpoint's own stage statistics;
- a probe: the same ridge fitted to BIQ2021's train fold alone;
- a checkpoint's own score, and with --trained-without that of checkpoints that were trained without a domain.

Stages of a recipe are measured by naming the checkpoint of each. Features and predictions are kept in the
cache, so that a run resumes and later ones compute only what is new. BIQ2021's test fold is not opened.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qmamba
from generality_domains import READERS, Domain, digest, read_domains
from generality_features import Cache, Lite0, OwnScore, Student
from generality_measures import by_part, draws, mean_draws, summary
from generality_models import FITTED, ensemble, left_out, probe
from qmamba.scoring import Scorer

RESULTS = Path(__file__).parent / "results" / "generality.json"
BASE = "lite0, left out"  # the row that gains are stated over
# Entries of `trained_on` that cover a domain's photographs: `qmamba photos` lists SelfExSR.
PRETRAINED_ON = {"public photographs without ratings": "kadid-scale"}
LEAST_RATED = 3  # one left out, and one more to choose a strength by
SIDE = 320  # of Lite0's images
SIDES = (224, 320, 448)  # of the ensemble's


@dataclass(frozen=True)
class Row:
    """Scores of one model on several domains.

    Attributes:
        model: `lite0`, `lite0-ensemble` or the name of a checkpoint.
        kind: "left out", "probe", "score" or "trained without".
        scores: (n,) by domain.
        trained_on: domains that the model, or the backbone below it, was trained on.
    """

    model: str
    kind: str
    scores: dict[str, np.ndarray]
    trained_on: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Key in the results."""
        return f"{self.model}, {self.kind}"


def reference_rows(domains: Sequence[Domain], cache: Cache, with_ensemble: bool) -> Iterable[Row]:
    """Yield the rows of frozen Lite0."""
    lite0 = Lite0(SIDE)
    if any(domain.name == FITTED for domain in domains):
        yield Row("lite0", "probe", probe(lite0, domains, cache), (FITTED,))
    yield Row("lite0", "left out", left_out(lite0, domains, cache))
    if with_ensemble:
        yield Row("lite0-ensemble", "left out", ensemble([Lite0(side) for side in SIDES], domains, cache))


def checkpoint_rows(
    name: str, scorer: Scorer, side: int, domains: Sequence[Domain], cache: Cache, with_score: bool
) -> Iterable[Row]:
    """Yield the rows of a checkpoint: its probe, its statistics with a domain left out, and its own score."""
    student, trained_on = Student(scorer, side), domains_trained_on(scorer, domains)
    if any(domain.name == FITTED for domain in domains):
        probed_on = tuple(dict.fromkeys([FITTED, *trained_on]))
        yield Row(name, "probe", probe(student, domains, cache), probed_on)
    yield Row(name, "left out", left_out(student, domains, cache), trained_on)
    if with_score:
        scores = {domain.name: own_scores(scorer, domain, cache) for domain in domains}
        yield Row(name, "score", scores, trained_on)


def domains_trained_on(scorer: Scorer, domains: Sequence[Domain]) -> tuple[str, ...]:
    """Return the names of the domains that the checkpoint's `trained_on` names, with ratings or without."""
    seen = " ".join(scorer.trained_on).lower()
    named = {name for entry, name in PRETRAINED_ON.items() if entry in seen} | set(scorer.trained_on)
    return tuple(domain.name for domain in domains if domain.title.lower() in seen or domain.name in named)


def own_scores(scorer: Scorer, domain: Domain, cache: Cache) -> np.ndarray:
    """Return a checkpoint's scores (n,) of a domain's images to test.

    A protocol that sees images whole at several sizes shares its passes with the statistics.
    """
    protocol = scorer.protocol
    if protocol.kind != "scales" or protocol.max_crops:
        return cache.test(OwnScore(scorer), domain)[:, 0]
    raw = [cache.test(Student(scorer, side), domain)[:, -1] for side in protocol.sides]
    return scorer.config.calibration(torch.from_numpy(np.stack(raw))).mean(dim=0).numpy()


def measured(rows: Sequence[Row], domains: Sequence[Domain]) -> dict[str, Any]:
    """Return the results of rows by their names: agreements, intervals, and gains over the ensemble."""
    drawn = {
        row.name: {domain.name: draws(row.scores[domain.name], domain) for domain in chosen(row, domains)}
        for row in rows
    }
    base = drawn.get(BASE, {})
    every = [domain.name for domain in domains]
    elsewhere = [name for name in every if name != FITTED]
    results: dict[str, Any] = {}
    for row in rows:
        found = drawn[row.name]
        results[row.name] = {"model": row.model, "kind": row.kind, "domains": {}}
        for domain in chosen(row, domains):
            results[row.name]["domains"][domain.name] = {
                **summary(found[domain.name], base.get(domain.name)),
                "trained": domain.name in row.trained_on,
                "parts": by_part(row.scores[domain.name], domain),
            }
        for key, names in (("mean", every), ("mean_elsewhere", elsewhere)):
            mean = mean_draws(found, names)
            if mean is not None:
                results[row.name][key] = summary(mean, mean_draws(base, names))
    return results


def chosen(row: Row, domains: Sequence[Domain]) -> list[Domain]:
    """Return the domains that a row has scores of."""
    return [domain for domain in domains if domain.name in row.scores]


def merged(path: Path, domains: Sequence[Domain], rows: dict[str, Any]) -> dict[str, Any]:
    """Return the new rows, and those of an earlier file if it was made from the same images."""
    described = {
        domain.name: {
            "title": domain.title,
            "n": len(domain.test),
            "contents": len({rated.reference for rated in domain.test}),
            "digest": digest(domain.test),
            "pairs": domain.pairs,
        }
        for domain in domains
    }
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = before["rows"] if before.get("domains") == described else {}
    return {"domains": described, "rows": kept | rows}


def table(report: dict[str, Any]) -> str:
    """Return the agreements as lines of text, then the gains; `*` marks what a model was trained on."""
    names = list(report["domains"])
    heads = [*names, "mean", "elsewhere"]
    lines = []
    for title, key in (("SRCC", "srcc"), (f"over {BASE}", "gain")):
        lines.append(f"{title:32}" + "".join(f"{head:>12}" for head in heads))
        for name, row in report["rows"].items():
            found = [row["domains"].get(domain) for domain in names]
            found += [row.get("mean"), row.get("mean_elsewhere")]
            lines.append(f"{name:32}" + "".join(f"{_cell(each, key):>12}" for each in found))
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, key: str) -> str:
    if found is None or key not in found:
        return "-"
    number = f"{found[key]:+.3f}" if key == "gain" else f"{found[key]:.3f}"
    return number + ("*" if found.get("trained") else "")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in READERS:
        parser.add_argument(f"--{name}", type=Path, metavar="CLONE")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="[NAME=]MODEL")
    parser.add_argument(
        "--trained-without", action="append", default=[], metavar="NAME:DOMAIN=MODEL",
        help="checkpoint of the recipe NAME that was trained without DOMAIN; may be repeated",
    )  # fmt: skip
    parser.add_argument("--side", type=int, default=448, help="size of the images for stage statistics")
    parser.add_argument("--probe-only", action="store_true", help="leave out the checkpoints' own scores")
    parser.add_argument("--no-ensemble", action="store_true", help="save the passes at further sizes")
    parser.add_argument("--cache", type=Path, required=True, help="folder for features and distorted copies")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the results."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    sources = {name: getattr(args, name.replace("-", "_")) for name in READERS}
    domains, cache = read_domains(sources, args.cache), Cache(args.cache)
    rated = [domain.name for domain in domains if domain.rated]
    if len(rated) < LEAST_RATED:
        names = ", ".join(rated) or "none"
        raise SystemExit(
            f"leaving a domain out needs {LEAST_RATED} domains with opinions, got {names}; name more clones"
        )
    rows = list(reference_rows(domains, cache, not args.no_ensemble))
    for entry in args.checkpoint:
        name, _, model = entry.rpartition("=")
        scorer = qmamba.load(model)
        title = name or scorer.name
        title = title if args.side == 448 else f"{title}@{args.side}"
        rows += checkpoint_rows(title, scorer, args.side, domains, cache, not args.probe_only)
    without: dict[str, dict[str, np.ndarray]] = {}
    for entry in args.trained_without:
        key, _, model = entry.partition("=")
        name, _, left = key.partition(":")
        (domain,) = (domain for domain in domains if domain.name == left)
        without.setdefault(name, {})[left] = own_scores(qmamba.load(model), domain, cache)
    rows += [Row(name, "trained without", scores) for name, scores in without.items()]
    report = merged(args.out, domains, measured(rows, domains))
    print(table(report))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
