"""Rate photographs that nobody has rated, by a ridge regression on frozen EfficientNet-Lite0.

    python benchmarks/general_unrated.py --clones clones --biq2021 BIQ2021 --cache cache --out unrated

The regression is the one that ``generality.py`` calls "fitted on BIQ2021": it knows less of photographs than
a tuned network, and more of pictures that no set of ratings covers. The photographs are those of pretraining,
without the ones that the bench distorts. Two fifths are kept as they are, two fifths are varied beyond what
photographs cover, by magnification, saturation, casts, tones and haze, and a fifth has a camera's noise. They
are written as PNG files of about 448² pixels, with a manifest, ``unrated.csv``, whose scores are on
BIQ2021's scale.
"""

from __future__ import annotations

import argparse
import csv
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from general_ratings import COLUMNS
from generality_domains import PRISTINE, opinions, read_biq2021_domain, save
from generality_features import BATCH, Cache, Lite0
from qmamba.data.photos import Source, find_clone, list_sources, photographs
from qmamba.train.ridge import Block, Ridge, fit
from qmamba.train.variations import sensor_noise, varied

SIDE = 448  # the square root of an image's pixels, at most
LITE0_SIDE = 320
STRENGTH = 2.0  # of the regression
SHARES = {"plain": 0.4, "varied": 0.4, "noisy": 0.2}
STRENGTHS = (0.3, 3.0)  # least and largest of the noise


def sources(clones: Path, count: int) -> Iterator[tuple[Source, Path]]:
    """Yield the repositories with their clones, each limited to an equal share of ``count`` photographs."""
    found = [(source, find_clone(source, clones)) for source in list_sources()]
    present = [(s, clone) for s, clone in found if clone and s.repository != PRISTINE.repository]
    for source, clone in present:
        yield replace(source, limit=min(source.limit or count, -(-count // len(present)))), clone


def prepared(path: str, content: bytes) -> tuple[np.ndarray, str]:
    """Return a photograph (H, W, 3) uint8 of at most about SIDE² pixels, and what was done to it."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (4 * SIDE, 4 * SIDE))
        image = image.convert("RGB")
    scale = min(1.0, SIDE / (image.width * image.height) ** 0.5)
    if kind == "noisy":  # at a size between the photograph's own and the one that is kept
        pixels = np.asarray(_scaled(image, min(1.0, scale * float(rng.uniform(1, 2)))))
        strength = float(np.exp(rng.uniform(*np.log(STRENGTHS))))
        noisy = Image.fromarray(sensor_noise(pixels, strength, rng))
        scale = min(1.0, SIDE / (noisy.width * noisy.height) ** 0.5)
        return np.asarray(_scaled(noisy, scale)), kind
    pixels = np.asarray(_scaled(image, scale))
    if kind == "plain":
        return pixels, kind
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = pixels[top : top + side, left : left + side]
    return varied(square, square, rng), kind


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    size = (round(image.width * scale), round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def teacher(lite0: Lite0, biq2021: Path, cache: Path) -> tuple[Ridge, float]:
    """Return the regression on BIQ2021 and the mean opinion that it is relative to."""
    domain = read_biq2021_domain(biq2021, cache)
    y = opinions(domain.fit)
    return fit(Block(Cache(cache).fit(lite0, domain), y).moments, STRENGTH), float(y.mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Write images and manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clones", type=Path, required=True, help="folder of the photographs' repositories")
    parser.add_argument("--biq2021", type=Path, required=True, metavar="CLONE")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="of generality.py")
    parser.add_argument("--count", type=int, default=4000, help="maximum number of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    lite0 = Lite0(LITE0_SIDE)
    ridge, zero = teacher(lite0, args.biq2021, args.cache)
    seen: set[str] = set()
    files: list[tuple[Path, str]] = []
    rows, waiting = [], []
    for source, clone in sources(args.clones, args.count):
        name = source.repository.replace("/", "+")
        for path, content in tqdm(photographs(source, clone, seen), desc=name, unit=" photos"):
            try:
                pixels, kind = prepared(path, content)
            except OSError as error:
                tqdm.write(f"{path}: {error}")
                continue
            file = args.out.resolve() / f"{len(files):05d}-{kind}.png"
            save(pixels, file)
            files.append((file, kind))
            waiting.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
            if len(waiting) == BATCH:
                rows.append(lite0(waiting).numpy())
                waiting = []
    if waiting:
        rows.append(lite0(waiting).numpy())
    scores = np.clip(ridge.predict(np.concatenate(rows)) + zero, 0, 1)
    with (args.out / "unrated.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for (file, kind), score in zip(files, scores, strict=True):
            writer.writerow([file, f"{score:.4f}", "train", "", kind, "unrated"])


if __name__ == "__main__":
    main()
