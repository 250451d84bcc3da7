"""A dozen small rated photographs that a tiny network learns to rank in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qmamba.data import Rated
from qmamba.train import Phase, Recipe

OVERRIDES: dict[str, Any] = {"widths": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "drop_path": 0.1}
RECIPE = Recipe(
    name="tiny", arch="lqmamba-n", overrides=OVERRIDES, phases=(Phase(32, 8), Phase(64, 4)), data="manifest",
    images=6, ranked=2, lr=3e-3, ema=0.9, calibration_images=8, validate_every=6, licence="CC0-1.0",
)  # fmt: skip
TOML = """\
name = "tiny"
arch = "lqmamba-n"
data = "manifest"
images = 6
ranked = 2
validate_every = 4
[overrides]
widths = [8, 16, 32, 64]
depths = [1, 1, 1, 1]
[[phases]]
crop = 32
steps = 8
"""


def rated_photos(folder: Path, count: int = 12) -> list[Rated]:
    """Pictures that are darker and darker, of lower and lower MOS; every third is for validation.

    Brightness, since a dozen steps teach it: noise, say, takes hundreds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rated = []
    for i in range(count):
        smooth = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8)).resize((96, 80))
        pixels = np.asarray(smooth) * 0.3 + 170 - 14 * i + rng.normal(0, 4, (80, 96, 3))
        path = folder / f"{i}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        rated.append(Rated(path, 0.9 - 0.06 * i, "val" if i % 3 == 0 else "train"))
    return rated


def write_manifest(path: Path, rated: list[Rated]) -> Path:
    rows = [f"{r.path},{r.mos:.3f},{r.fold}\n" for r in rated]
    path.write_text("image,mos,fold\n" + "".join(rows))
    return path
