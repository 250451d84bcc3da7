"""Distort pristine photographs on KADID-10k's scale, to train on.

    python benchmarks/general_copies.py --clones clones --out copies

The photographs are those of imazen/codec-corpus, and of jbhuang0604/SelfExSR without the 40 that the bench
distorts. Each is brought to about the size of a KADID-10k image and kept clean, with KADID-10k's best mean
rating, and in nine copies of different kinds at any levels from 1 to 5, with the mean rating of that kind and
level. Written are PNG files and a manifest, ``copies.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from general_ratings import COLUMNS
from generality_domains import PHOTOGRAPHS, PRISTINE, save, spread, to_kadid_size
from qmamba.data import DISTORTIONS
from qmamba.data.distortions import KADID_KINDS, KadidScale, kadid_quality
from qmamba.data.photos import find_clone, list_sources, photographs

CORPUS = "imazen/codec-corpus"
KINDS = 9  # copies of a photograph
CLEAN = 4.6  # mean rating of a clean photograph, above that of any distorted one


def pristine(clones: Path, repository: str) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the photographs of a repository that the bench does not use."""
    source = PRISTINE if repository == PRISTINE.repository else None
    source = source or next(s for s in list_sources() if s.repository == repository)
    clone = find_clone(source, clones)
    if clone is None:
        return
    found = list(photographs(source, clone, set()))
    tested = {path for path, _ in spread(found, PHOTOGRAPHS)} if source == PRISTINE else set()
    yield from (item for item in found if item[0] not in tested)


def copies(path: str, content: bytes) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield kind, pixels (H, W, 3) uint8 and mean rating of a photograph and its distorted copies."""
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (1024, 768))
        pixels = np.asarray(to_kadid_size(image.convert("RGB")))
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    yield "clean", pixels, CLEAN
    for index in rng.permutation(len(KADID_KINDS))[:KINDS]:
        kind, level = list(KADID_KINDS)[index], float(rng.uniform(1, 5))
        seed = int(rng.integers(2**31))
        copy = DISTORTIONS[kind](pixels, level, seed=seed, scale=KadidScale(stretch=True))
        yield kind, copy, kadid_quality(kind, level).mean


def main(argv: Sequence[str] | None = None) -> None:
    """Write copies and manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clones", type=Path, required=True, help="folder of the photographs' repositories")
    parser.add_argument("--repository", action="append", choices=[CORPUS, PRISTINE.repository])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "copies.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for repository in args.repository or [CORPUS, PRISTINE.repository]:
            for path, content in tqdm(pristine(args.clones, repository), desc=repository, unit=" photos"):
                name = f"{repository.partition('/')[2]}-{zlib.crc32(path.encode()):08x}"
                for kind, pixels, rating in copies(path, content):
                    file = args.out.resolve() / f"{name}-{kind}.png"
                    save(pixels, file)
                    writer.writerow([file, f"{rating:.4f}", "train", name, kind, "kadid-scale"])


if __name__ == "__main__":
    main()
