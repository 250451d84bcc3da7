"""Fit the probe that names faults to a model's weights, and measure how often what it tells is right.

    python benchmarks/faults.py --clones CLONES

Photographs of repositories that the model was pretrained on are damaged by `qmamba.distort` at levels 2 to 5.
The probe is fitted to them, and its thresholds are chosen by photographs held out in turn. It is tested on
the photographs in examples/, on those that ``generality.py`` distorts, and on means of many shots, none of
which was rated in training. CLONES holds clones of all of them, as OWNER+NAME. Writes the probe
beside the embedded weights, and benchmarks/results/faults.json; then `make docs-figures` fills the tables of
docs/reasons.md. Statistics are kept in --cache, so that a second run only fits.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import qmamba
from generality_domains import PHOTOGRAPHS, PRISTINE, spread
from qmamba.data.photos import Source, find_clone, list_sources, photographs
from qmamba.images import Decoded
from qmamba.protocol import Protocol
from qmamba.scoring.explanation import REGIONS, THIRDS, worst_region
from qmamba.scoring.faults import CLEAN, FAULTS, PROBE_FILE, FaultProbe, stage_statistics
from qmamba.train.fault_probe import KINDS, Samples, fit_probe, least_threshold

ROOT = Path(__file__).resolve().parents[1]
PROBE = ROOT / "src" / "qmamba" / "weights" / "lqmamba-n" / PROBE_FILE
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
FITTED = {  # shares of the photographs; the last two are of the web, as people save them
    "imazen/codec-corpus": 0.45,
    "BIDS/BSDS500": 0.25,
    "NUS-VIP/predicting-human-gaze-beyond-pixels": 0.15,
    "RlNZLER/Image-Text-Matching": 0.15,
}
SOFT = "csjunxu/PolyU-Real-World-Noisy-Images-Dataset"  # crops at 100 %, dark and soft by themselves
MEANS = Source(SOFT, ("CroppedImages/*_mean.JPG",))
SIDES = (448, 640)  # photographs are shrunk to between so many pixels, squared, before they are damaged
LEVELS = (2, 3, 4, 5)
DAMAGED = 6  # copies of a photograph; two more are undamaged, one of them saved as a good JPEG
JPEG = (75, 96)  # quality of that
LARGE, CROPS = 800, 3  # photographs of more pixels, squared, also give crops at 100 %, softer and undamaged
LOCAL = ("gaussian_blur", "lens_blur", "motion_blur", "jpeg", "white_noise", "pixelate", "jitter", "denoise")
LOCAL_LEVELS = (3, 4, 5)
MAX_PIXELS = 50_000_000
REGION_PRECISION = 0.75  # of told regions, with a confidence of 95 %
SILENT = "no clear fault"


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What the model sees of photographs.

    Attributes:
        samples: of the whole pictures.
        levels: (n,) of the distortions, 0 for undamaged ones.
        places: m regions that were damaged, "" where none was.
        worst: m regions that the map has as the worst.
        gaps: (m,) how much worse they are, in scores.
        counts: number of photographs of each source.
    """

    samples: Samples
    levels: np.ndarray
    places: list[str]
    worst: list[str]
    gaps: np.ndarray
    counts: dict[str, int]


def fitted_photographs(clones: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield source and content of photographs of repositories that the model was pretrained on."""
    known = {source.repository: source for source in list_sources()}
    for repository, share in FITTED.items():
        yield from _of(known[repository], clones, round(share * count))


def tested_photographs(clones: Path, examples: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield source and content of the examples, of the bench's photographs, and of means of many shots."""
    files = sorted(examples.glob("*.jpg"))
    for path in files:
        yield "examples", path.read_bytes()
    for _, content in spread(list(_of(PRISTINE, clones)), PHOTOGRAPHS):
        yield PRISTINE.repository, content
    yield from _of(MEANS, clones, max(0, count - len(files) - PHOTOGRAPHS))


def _of(source: Source, clones: Path, count: int | None = None) -> Iterator[tuple[str, bytes]]:
    place = find_clone(source, clones)
    if place is None:
        raise SystemExit(f"no clone of {source.repository} in {clones}; clone it there")
    for _, content in photographs(dataclasses.replace(source, limit=count), place, set()):
        yield source.repository, content


def seen_by(
    scorer: qmamba.Scorer, photos: Iterator[tuple[str, bytes]], side: int, seed: int, local_every: int
) -> Seen:
    """Damage photographs, and return what the model sees of them."""
    rows, kinds, levels, of_photo, counts = [], [], [], [], Counter[str]()
    places, worst, gaps = [], [], []
    queue: list[str] = []
    protocol, began = Protocol("scales", max_crops=0, sides=(side,)), time.process_time()
    for index, (source, content) in enumerate(photos):
        rng = np.random.default_rng([seed, index])
        clean = shrunk(Image.open(io.BytesIO(content)).convert("RGB"), rng)
        if len(queue) < DAMAGED:
            queue += rng.permutation(KINDS[:-1]).tolist()
        chosen, queue = queue[:DAMAGED], queue[DAMAGED:]
        for kind, level, picture in copies(clean, chosen, rng):
            image = decoded(picture)
            rows.append(
                stage_statistics(scorer.network, scorer.config.preprocessing, image, protocol, MAX_PIXELS)
            )
            kinds.append(kind)
            levels.append(level)
            of_photo.append(index)
        if index % local_every == 0:
            for place, picture in (("", clean), damaged_in_part(clean, rng)):
                region, gap = worst_region(scorer.quality_map(decoded(picture)), scorer.lower_better)
                places.append(place)
                worst.append(region)
                gaps.append(gap)
        counts[source] += 1
        if index % 20 == 19:
            print(f"{index + 1} photographs, {time.process_time() - began:.0f} s of CPU time", flush=True)
    samples = Samples(torch.stack(rows), tuple(kinds), np.array(of_photo))
    return Seen(samples, np.array(levels), places, worst, np.array(gaps), dict(counts))


def crops_at_full_size(
    scorer: qmamba.Scorer, photos: Iterator[tuple[str, bytes]], side: int, seed: int
) -> Seen:
    """Return what the model sees of undamaged crops of large photographs, which are not shrunk."""
    rows, of_photo, counts = [], [], Counter[str]()
    protocol = Protocol("scales", max_crops=0, sides=(side,))
    for index, (source, content) in enumerate(photos):
        image = Image.open(io.BytesIO(content))
        if math.sqrt(image.width * image.height) < LARGE:
            continue
        rng = np.random.default_rng([seed, index])
        pixels = np.asarray(image.convert("RGB"))
        for _ in range(CROPS):
            length = min(int(rng.integers(*SIDES)), *pixels.shape[:2])
            top, left = (int(rng.integers(edge - length + 1)) for edge in pixels.shape[:2])
            crop = decoded(pixels[top : top + length, left : left + length])
            rows.append(
                stage_statistics(scorer.network, scorer.config.preprocessing, crop, protocol, MAX_PIXELS)
            )
            of_photo.append(index)
        counts[source] += 1
    samples = Samples(torch.stack(rows), (CLEAN,) * len(rows), np.array(of_photo))
    return Seen(samples, np.zeros(len(rows), int), [], [], np.zeros(0), dict(counts))


def joined(first: Seen, second: Seen) -> Seen:
    """Return the samples of both, of the same photographs, with the regions of the first."""
    samples = Samples(
        torch.cat([first.samples.statistics, second.samples.statistics]),
        first.samples.kinds + second.samples.kinds,
        np.concatenate([first.samples.photographs, second.samples.photographs]),
    )
    return dataclasses.replace(first, samples=samples, levels=np.concatenate([first.levels, second.levels]))


def without(seen: Seen, source: str) -> Seen:
    """Return the samples of the other sources, without regions."""
    names = np.array([name for name, count in seen.counts.items() for _ in range(count)])
    kept = np.flatnonzero(names[seen.samples.photographs] != source)
    samples = Samples(
        seen.samples.statistics[kept],
        tuple(seen.samples.kinds[i] for i in kept),
        seen.samples.photographs[kept],
    )
    counts = {name: count for name, count in seen.counts.items() if name != source}
    return Seen(samples, seen.levels[kept], [], [], np.zeros(0), counts)


def shrunk(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Return a photograph (h, w, 3) uint8 with at most a random number of pixels, see `SIDES`."""
    scale = rng.uniform(*SIDES) / math.sqrt(image.width * image.height)
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def copies(
    clean: np.ndarray, kinds: Sequence[str], rng: np.random.Generator
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield kind, level and pixels of the copies of a photograph."""
    yield CLEAN, 0, clean
    buffer = io.BytesIO()
    Image.fromarray(clean).save(buffer, "JPEG", quality=int(rng.integers(*JPEG)))
    yield CLEAN, 0, np.asarray(Image.open(buffer).convert("RGB"))
    for kind in kinds:
        level = int(rng.choice(LEVELS))
        yield kind, level, qmamba.distort(clean, kind, level, seed=int(rng.integers(2**31)))


def damaged_in_part(clean: np.ndarray, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Return the name of a region, and a photograph that is damaged there."""
    place, kind = str(rng.choice(list(REGIONS))), str(rng.choice(LOCAL))
    level = int(rng.choice(LOCAL_LEVELS))
    damaged = qmamba.distort(clean, kind, level, seed=int(rng.integers(2**31)))
    mixed = clean.copy()
    window = tuple(
        slice(*(round(THIRDS[third] * length) for third in thirds))
        for thirds, length in zip(REGIONS[place], clean.shape[:2], strict=True)
    )
    mixed[window] = damaged[window]
    return place, mixed


def decoded(pixels: np.ndarray) -> Decoded:
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return Decoded(planes, "image", pixels.shape[0], pixels.shape[1])


def kept(path: Path, make: Any) -> Seen:
    """Return what a file holds, or make it and keep it there."""
    if path.is_file():
        with np.load(path, allow_pickle=False) as found:
            samples = Samples(
                torch.from_numpy(found["statistics"]), tuple(found["kinds"].tolist()), found["photographs"]
            )
            return Seen(
                samples, found["levels"], found["places"].tolist(), found["worst"].tolist(), found["gaps"],
                json.loads(str(found["counts"])),
            )  # fmt: skip
    seen: Seen = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path, statistics=seen.samples.statistics.numpy(), kinds=np.array(seen.samples.kinds),
        photographs=seen.samples.photographs, levels=seen.levels, places=np.array(seen.places),
        worst=np.array(seen.worst), gaps=seen.gaps, counts=np.array(json.dumps(seen.counts)),
    )  # fmt: skip
    return seen


# Measuring


def agreement(probe: FaultProbe, seen: Seen, probabilities: torch.Tensor) -> dict[str, Any]:
    """Return how often what is told of samples is right, by fault and kind, and the confusion matrix."""
    told = [probe.named(row) for row in probabilities]
    kinds, weights = seen.samples.kinds, seen.samples.weights()
    is_clean = np.array([kind == CLEAN for kind in kinds])
    names = np.array(["" if fault is None else fault.name for fault in told])
    told_kinds = np.array(["" if fault is None else fault.kind or "" for fault in told])
    faults, causes = {}, {}
    for name, members in FAULTS.items():
        faults[name] = _share(names == name, np.isin(kinds, list(members)), weights)
        for kind in members if len(members) > 1 else ():
            causes[kind] = _share(told_kinds == kind, np.array(kinds) == kind, weights)
    right = np.array([kind in FAULTS.get(name, ()) for kind, name in zip(kinds, names, strict=True)])
    confusion = {kind: dict[str, int]() for kind in KINDS}
    for kind, name in zip(kinds, names.tolist(), strict=True):
        row, statement = confusion[kind], name or SILENT
        row[statement] = row.get(statement, 0) + 1
    return {
        "samples": len(kinds), "undamaged": int(is_clean.sum()),
        "precision": _rounded((weights * right)[names != ""].sum() / max(weights[names != ""].sum(), 1e-9)),
        "told of damaged": _rounded((names != "")[~is_clean].mean()),
        "right of damaged": _rounded(right[~is_clean].mean()),
        "told of undamaged": _rounded((names != "")[is_clean].mean()),
        "right by level": {
            str(level): _rounded(right[seen.levels == level].mean()) for level in LEVELS
        },
        "faults": faults, "kinds": causes, "confusion": confusion,
    }  # fmt: skip


def _share(told: np.ndarray, is_it: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return number of samples and of statements, precision by weight, and recall."""
    right = told & is_it
    return {
        "samples": int(is_it.sum()),
        "told": int(told.sum()),
        "right": int(right.sum()),
        "precision": _rounded(weights[right].sum() / weights[told].sum()) if told.any() else None,
        "recall": _rounded(right.sum() / max(is_it.sum(), 1)),
    }


def agreement_of_places(probe: FaultProbe, seen: Seen) -> dict[str, Any]:
    """Return how often the region that is told as the worst is the damaged one."""
    damaged, right = np.array(seen.places) != "", np.array(seen.places) == np.array(seen.worst)
    told = seen.gaps >= (math.inf if probe.worst is None else probe.worst)
    return {
        "damaged": int(damaged.sum()), "undamaged": int((~damaged).sum()), "told": int(told.sum()),
        "right": int((told & right).sum()),
        "precision": _rounded(right[told].mean()) if told.any() else None,
        "recall": _rounded((told & right).sum() / damaged.sum()),
        "right without threshold": _rounded(right[damaged].mean()),
        "told of undamaged": _rounded(told[~damaged].mean()),
    }  # fmt: skip


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clones", type=Path, required=True, help="folder of clones")
    parser.add_argument("--examples", type=Path, default=ROOT / "examples")
    parser.add_argument("--model", default="lqmamba-n")
    parser.add_argument("--photographs", type=int, default=300, help="to fit and choose thresholds on")
    parser.add_argument("--test", type=int, default=100, help="photographs to test on")
    parser.add_argument("--side", type=int, help="default: the first size of the model's protocol")
    parser.add_argument("--strength", type=float, default=0.03, help="of the L2 penalty")
    parser.add_argument(
        "--precision",
        type=float,
        default=0.9,
        help="asked for, with a confidence of 95 %, on held-out photographs",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe", type=Path, default=PROBE, help="file to write")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "faults")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    scorer = qmamba.load(args.model)
    side = args.side or (scorer.protocol.sides[0] if scorer.protocol.kind == "scales" else 448)
    sha256 = scorer.base_sha256()
    key = hashlib.sha256(json.dumps([sha256, side, args.photographs, args.test, args.seed]).encode())

    def file(name: str) -> Path:
        return args.cache / f"{key.hexdigest()[:12]}-{name}.npz"

    def fitted() -> Iterator[tuple[str, bytes]]:
        return fitted_photographs(args.clones, args.photographs)

    tested = tested_photographs(args.clones, args.examples, args.test)
    fit = kept(file("fit"), lambda: seen_by(scorer, fitted(), side, args.seed, 2))
    crops = kept(file("crops"), lambda: crops_at_full_size(scorer, fitted(), side, args.seed + 2))
    test = kept(file("test"), lambda: seen_by(scorer, tested, side, args.seed + 1, 1))
    seen = {"fit": joined(fit, crops), "test": test}

    probe, held_out = fit_probe(
        seen["fit"].samples, side=side, weights_sha256=sha256, strength=args.strength,
        precision=args.precision,
    )  # fmt: skip
    right = np.array(seen["fit"].places) == np.array(seen["fit"].worst)
    worst = least_threshold(seen["fit"].gaps, right, np.ones(len(right)), REGION_PRECISION)
    probe = dataclasses.replace(probe, worst=worst)
    probe.save(args.probe)
    sharp = without(test, SOFT)
    report = {
        "weights_sha256": sha256, "side": side, "strength": args.strength, "precision": args.precision,
        "photographs": {name: each.counts for name, each in seen.items()},
        "thresholds": {name: _rounded(value) for name, value in probe.thresholds.items()},
        "worst": None if worst is None else _rounded(worst), "bytes": args.probe.stat().st_size,
        "held out": agreement(probe, seen["fit"], held_out)
        | {"places": agreement_of_places(probe, seen["fit"])},
        "test": agreement(probe, test, probe.probabilities(test.samples.statistics))
        | {"places": agreement_of_places(probe, test)},
        "without soft": agreement(probe, sharp, probe.probabilities(sharp.samples.statistics)),
    }  # fmt: skip
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name in ("held out", "test", "without soft"):
        print(name, {key: value for key, value in report[name].items() if not isinstance(value, dict)})
        print("  regions", report[name].get("places"))


if __name__ == "__main__":
    main()
