"""Write manifests of three target domains, for ``benchmarks/adapters.py table``.

    python benchmarks/adapter_domains.py stills image_quality_test --out stills.csv
    python benchmarks/adapter_domains.py upscaled IQA_SR --out upscaled.csv
    python benchmarks/adapter_domains.py synthetic BIQ2021 --out synthetic.csv

- ``stills``: a clone of github.com/Telecommunication-Telemedia-Assessment/image_quality_test: stills of
  compressed video, rated in a laboratory; the reference is the video.
- ``upscaled``: a clone of github.com/juanpaberon/IQA_SR: super-resolved photographs with z-scores of
  opinions; the reference is the scene.
- ``synthetic``: photographs of BIQ2021's val fold, which was never trained on, each with six of the 25
  distortions at random. Their "MOS" is not an opinion, but the structural similarity to the photograph on
  luminance, by scikit-image. The copies are in a folder beside the manifest.

Columns are ``image,mos,reference``, and ``distortion`` if known. MOS is in [0, 1].
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import qmamba
from qmamba.data import read_biq2021
from qmamba.data.distortions import DISTORTIONS

COPIES = 6
LEVELS = 5
Row = tuple[str, float, str, str]


def stills(root: Path) -> Iterator[Row]:
    """Yield rows of the video stills; opinions are from 1 to 5."""
    with (root / "test_1" / "mos_ci.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            image = root / "test_1" / "images" / f"{row['image_name']}.png"
            if not image.is_file():  # the repository lacks some of them
                continue
            video = re.split(r"_1frame|\.", image.name)[0]
            yield str(image), (float(row["mos"]) - 1) / 4, video, ""


def upscaled(root: Path) -> Iterator[Row]:
    """Yield rows of the super-resolved photographs, without the originals ("HD-…"); z-scores are 0 to 100."""
    from scipy.io import loadmat

    folder = root / "Datasets" / "SRIJ"
    cells = loadmat(folder / "addressesSRIJ.mat")["addressesSRIJ"].ravel()
    images = [folder / "Images" / str(cell.item()) for cell in cells]
    images = [image for image in images if not image.name.startswith("HD-")]
    scores = loadmat(folder / "hScoresSRIJ.mat")["hScoresSRIJ"].ravel()
    for image, score in zip(images, scores.tolist(), strict=True):
        method, _, scene = image.stem.split("-", 2)
        yield str(image), score / 100, scene.rstrip("0123456789"), method


def synthetic(root: Path, folder: Path, photographs: int) -> Iterator[Row]:
    """Write distorted copies to `folder`, and yield their rows with their structural similarity."""
    from skimage.metrics import structural_similarity

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rated = read_biq2021(root, ["val"])
    for index in sorted(rng.choice(len(rated), photographs, replace=False).tolist()):
        photograph = rated[index]
        with Image.open(photograph.path) as file:
            original = file.convert("RGB")
        for kind in rng.choice(sorted(DISTORTIONS), COPIES, replace=False).tolist():
            level = int(rng.integers(1, LEVELS + 1))
            copy = qmamba.distort(original, kind, level=level, seed=index)
            path = folder / f"{photograph.path.stem}-{kind}-{level}.png"
            copy.save(path)
            grey = (np.asarray(each.convert("L")) for each in (original, copy))
            similarity = structural_similarity(*grey, data_range=255)
            yield str(path), max(0.0, float(similarity)), photograph.path.stem, kind


def main() -> None:
    """Write a manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("domain", choices=("stills", "upscaled", "synthetic"))
    parser.add_argument("root", type=Path, help="clone of the data set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photographs", type=int, default=100, help="number for the synthetic domain")
    options = parser.parse_args()
    root, out = options.root.resolve(), options.out.resolve()
    rows = {
        "stills": lambda: stills(root),
        "upscaled": lambda: upscaled(root),
        "synthetic": lambda: synthetic(root, out.with_suffix(""), options.photographs),
    }[options.domain]()
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "mos", "reference", "distortion"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
