"""Draw the pictures of the documentation, in docs/assets/.

`strip.jpg`: a photograph and five levels of blur, with the embedded model's scores.
`map.jpg`: a photograph of which one half was blurred, and the map of its score.
`distortions.jpg`: every distortion at its five levels.
`ascent.jpg`: a photograph that JPEG has crushed, before and after gradient ascent on its score.
`speed.svg`: time against pixels, from benchmarks/results/speed.json.

Each has a twin on dark paper, such as `strip-dark.jpg`, which the site shows to readers of its dark colours.

Run it with `make docs-figures`. Photographs are those of examples/.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import qmamba
from qmamba.analysis.maps import save_map
from qmamba.analysis.sheet import DARK_FAINT, DARK_INK, DARK_PAPER, FAINT, INK, PAPER, contact_sheet
from qmamba.images import decode

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "docs" / "assets"
EXAMPLES = ROOT / "examples"
SPEED = ROOT / "benchmarks" / "results" / "speed.json"
sys.path[:0] = [str(EXAMPLES), str(ROOT / "benchmarks")]

from improve import improve  # noqa: E402

import speed  # noqa: E402

TILE = 300  # pixels: side of a drawn photograph
GAP = 12
CAPTION = 76
STRIP = "gaussian_blur"
SHOWN_SPEEDS = ("lqmamba-n", "lqmamba-t", "lqmamba-t torch", "swin-t", "resnet-50")


@dataclasses.dataclass(frozen=True)
class Paper:
    """Colours of a figure, and what its file's name ends in."""

    ink: tuple[int, int, int]
    faint: tuple[int, int, int]
    paper: tuple[int, int, int]
    suffix: str = ""

    def settings(self) -> dict[str, str]:
        """Return the settings of matplotlib."""
        ink, faint, paper = (f"#{bytes(rgb).hex()}" for rgb in (self.ink, self.faint, self.paper))
        filled = {f"{part}.facecolor": paper for part in ("figure", "axes", "savefig")}
        drawn = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        return filled | dict.fromkeys(drawn, ink) | {"grid.color": faint}


LIGHT, DARK = Paper(INK, FAINT, PAPER), Paper(DARK_INK, DARK_FAINT, DARK_PAPER, "-dark")


def tile(image: Image.Image) -> Image.Image:
    """A part of the image, at its own size where it is large enough: damage must be seen as it is."""
    scale = max(1.0, TILE / min(image.size))
    if scale > 1:
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.NEAREST)
    left, top = (image.width - TILE) // 2, (image.height - TILE) // 3
    return image.crop((left, top, left + TILE, top + TILE))


Drawn = list[tuple[Image.Image, str, str]]
"""Tiles, each with its score and its name."""


def strip(photograph: Image.Image) -> Drawn:
    """The photograph and its five levels."""
    damaged = [qmamba.distort(photograph, STRIP, level) for level in range(1, 6)]
    images = [photograph, *damaged]
    names = ["original", *(f"blur, level {level}" for level in range(1, 6))]
    scores = qmamba.score(images)
    return [
        (tile(image), f"{score:.2f}", name) for name, image, score in zip(names, images, scores, strict=True)
    ]


def captioned(drawn: Drawn, colours: Paper) -> Image.Image:
    """Draw tiles with captions, three in a row so that captions can be read on a telephone."""
    rows = -(-len(drawn) // 3)
    canvas = Image.new("RGB", (3 * (TILE + GAP) - GAP, rows * (TILE + CAPTION)), colours.paper)
    draw = ImageDraw.Draw(canvas)
    for index, (image, score, name) in enumerate(drawn):
        left, top = index % 3 * (TILE + GAP), index // 3 * (TILE + CAPTION)
        canvas.paste(image, (left, top))
        middle = left + TILE // 2
        draw.text((middle, top + TILE + 4), score, colours.ink, ImageFont.load_default(34), anchor="ma")
        draw.text((middle, top + TILE + 42), name, colours.faint, ImageFont.load_default(22), anchor="ma")
    return canvas


def half_blurred(photograph: Image.Image) -> Image.Image:
    """A photograph whose right half was blurred."""
    width, height = photograph.size
    half = (width // 2, 0, width, height)
    damaged = photograph.copy()
    damaged.paste(qmamba.distort(photograph, "gaussian_blur", 4).crop(half), half[:2])
    return damaged


def draw_map(image: Image.Image, found: qmamba.scoring.QualityMap, path: Path, colours: Paper) -> None:
    """Draw a map as `qmamba map` does."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "map.png")
        # Letters to be read on a telephone, too.
        with matplotlib.rc_context({"font.size": 14, **colours.settings()}):
            save_map(drawn, decode(image), found, name="right half blurred")
        Image.open(drawn).convert("RGB").save(path, quality=88, optimize=True)


def ascent(photograph: Image.Image) -> Drawn:
    """A part of the photograph, what JPEG at quality 8 leaves of it, and that after `examples/improve.py`."""
    part = tile(photograph)
    buffer = io.BytesIO()
    part.save(buffer, "JPEG", quality=8)
    crushed = Image.open(buffer).convert("RGB")
    shown = (("original", part), ("JPEG, quality 8", crushed))
    shown = (*shown, ("after 40 steps", improve(crushed, qmamba.load())))
    drawn = []
    for name, image in shown:
        error = np.asarray(image, np.float64) - np.asarray(part, np.float64)
        near = f", PSNR {10 * np.log10(255**2 / np.square(error).mean()):.1f} dB" if error.any() else ""
        drawn.append((image, f"{qmamba.score(image):.2f}", name + near))
    return drawn


def opened(name: str) -> Image.Image:
    with Image.open(EXAMPLES / name) as image:
        return image.convert("RGB")


def main() -> None:
    ASSETS.mkdir(parents=True, exist_ok=True)
    astronaut = opened("astronaut.jpg")
    blurred = half_blurred(opened("coffee.jpg"))
    tiles, climbed, found = strip(astronaut), ascent(astronaut), qmamba.load().quality_map(blurred)
    measured = json.loads(SPEED.read_text(encoding="utf-8"))["models"]
    for colours in (LIGHT, DARK):
        end = colours.suffix
        captioned(tiles, colours).save(ASSETS / f"strip{end}.jpg", quality=90, optimize=True)
        draw_map(blurred, found, ASSETS / f"map{end}.jpg", colours)
        sheet = contact_sheet(astronaut, dark=colours is DARK)
        sheet.save(ASSETS / f"distortions{end}.jpg", quality=72, optimize=True)
        captioned(climbed, colours).save(ASSETS / f"ascent{end}.jpg", quality=92, optimize=True)
        with matplotlib.rc_context(colours.settings()):
            speed.plot(measured, SHOWN_SPEEDS, ASSETS / f"speed{end}.svg")
    print(f"{ASSETS}: strip.jpg, map.jpg, distortions.jpg, ascent.jpg, speed.svg, and each on dark paper")


if __name__ == "__main__":
    main()
