"""A folder with the files that the documentation speaks of: small photographs, ratings, models, data sets."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

import qmamba
from dataset_trees import TREES
from tiny_adapters import saved
from tiny_scorer import photo

PHOTOS = (
    *("photo.jpg", "a.jpg", "b.jpg", "c.jpg", "other.png", "still.png", "before.jpg", "after.jpg"),
    *(
        "holiday/1.jpg",
        "holiday/2.jpg",
        "shots/a.png",
        "shots/deep/b.png",
        "versions/1.jpg",
        "versions/2.jpg",
        "archive/2024/1.jpg",
    ),
    *(f"{folder}/000{number}.png" for folder in ("gt", "bicubic", "mine") for number in range(1, 4)),
    *(f"photos/000{number}.jpg" for number in range(1, 9)),
)
FOLDS = ("train", "train", "val", "val", "test", "test", "test", "test")
CHECKPOINTS = (
    "path/to/checkpoint",
    "user/repository",
    "runs/mine/checkpoint",
)  # a folder goes before the Hub
ADAPTER = "runs/stills/adapter"


def made_folder(root: Path) -> Path:
    for seed, name in enumerate(PHOTOS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        size = (96, 128) if seed % 2 else (128, 96)
        Image.fromarray(photo(*size, seed)).save(root / name)
    (root / "broken.jpg").write_bytes((root / "photo.jpg").read_bytes()[:100])
    rows = [f"photos/000{n}.jpg,{n / 10},{fold}" for n, fold in enumerate(FOLDS, 1)]
    (root / "ratings.csv").write_text("\n".join(["image,mos,fold", *rows, ""]))
    embedded = Path(qmamba.__file__).parent / "weights" / "lqmamba-n"
    for name in CHECKPOINTS:
        shutil.copytree(embedded, root / name)
    saved(root / ADAPTER, qmamba.load("lqmamba-n"))
    labels = TREES["koniq10k"](root / "KonIQ-10k")
    TREES["kadid10k"](root / "kadid10k")
    (root / "mine.csv").write_text("\n".join(["image,mos", *(f"{row[0]},{row[1]}" for row in labels), ""]))
    return root
