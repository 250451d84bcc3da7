"""Draw the pictures of the documentation, in docs/assets/.

`strip.jpg`: a photograph and five levels of blur, with the embedded model's scores.
`map.jpg`: a photograph of which one half was blurred, and the map of its score.
`distortions.jpg`: every distortion at its five levels.
`ascent.jpg`: a photograph that JPEG has crushed, before and after gradient ascent on its score.
`speed.svg`: time against pixels, from benchmarks/results/speed.json.

Run it with `make docs-figures`. Photographs are those of examples/.
"""

from __future__ import annotations

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
from qmamba.data import DISTORTIONS, Distortion
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
CELL = (150, 100)  # pixels: width and height of a tile of the contact sheet
CORNER = (0.3, 0.11)  # where the tile lies in the photograph, as shares of its width and height
LABEL = 245  # pixels: width of the column with the names
INK, FAINT, PAPER = (31, 35, 40), (89, 99, 110), (255, 255, 255)


STRIP = "gaussian_blur"
SHOWN_SPEEDS = ("lqmamba-n", "lqmamba-t", "lqmamba-t torch", "swin-t", "resnet-50")


def tile(image: Image.Image) -> Image.Image:
    """A part of the image, at its own size where it is large enough: damage must be seen as it is."""
    scale = max(1.0, TILE / min(image.size))
    if scale > 1:
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.NEAREST)
    left, top = (image.width - TILE) // 2, (image.height - TILE) // 3
    return image.crop((left, top, left + TILE, top + TILE))


def strip(photograph: Image.Image) -> Image.Image:
    """The photograph and its five levels, three in a row so that captions can be read on a telephone."""
    damaged = [qmamba.distort(photograph, STRIP, level) for level in range(1, 6)]
    images = [photograph, *damaged]
    names = ["original", *(f"blur, level {level}" for level in range(1, 6))]
    canvas = Image.new("RGB", (3 * (TILE + GAP) - GAP, 2 * (TILE + CAPTION)), PAPER)
    for index, (name, image, score) in enumerate(zip(names, images, qmamba.score(images), strict=True)):
        place = index % 3 * (TILE + GAP), index // 3 * (TILE + CAPTION)
        captioned(canvas, place, tile(image), f"{score:.2f}", name)
    return canvas


def captioned(canvas: Image.Image, place: tuple[int, int], image: Image.Image, score: str, name: str) -> None:
    """Paste a tile at (left, top), with its score and its name under it."""
    left, top = place
    canvas.paste(image, place)
    draw, middle = ImageDraw.Draw(canvas), left + TILE // 2
    draw.text((middle, top + TILE + 4), score, INK, ImageFont.load_default(34), anchor="ma")
    draw.text((middle, top + TILE + 42), name, FAINT, ImageFont.load_default(22), anchor="ma")


def half_blurred(photograph: Image.Image, path: Path) -> None:
    """The map of a photograph whose right half was blurred, as `qmamba map` draws it."""
    width, height = photograph.size
    half = (width // 2, 0, width, height)
    damaged = photograph.copy()
    damaged.paste(qmamba.distort(photograph, "gaussian_blur", 4).crop(half), half[:2])
    found = qmamba.load().quality_map(damaged)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "map.png")
        with matplotlib.rc_context({"font.size": 14}):  # to be read on a telephone, too
            save_map(drawn, decode(damaged), found, name="right half blurred")
        Image.open(drawn).convert("RGB").save(path, quality=88, optimize=True)


def contact_sheet(photograph: Image.Image) -> Image.Image:
    """A row for each distortion, a column for each level: a part of the photograph at its own size."""
    width, height = CELL
    step = height + 2
    canvas = Image.new("RGB", (LABEL + 5 * (width + 2), len(DISTORTIONS) * step + 26), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column in range(5):
        middle = LABEL + column * (width + 2) + width // 2
        draw.text((middle, 2), f"level {column + 1}", FAINT, ImageFont.load_default(19), anchor="ma")
    for row, distortion in enumerate(DISTORTIONS.values()):
        top = 26 + row * step
        draw.text((0, top + height // 2 - 12), distortion.name, INK, ImageFont.load_default(21), anchor="lm")
        family = ImageFont.load_default(18)
        draw.text((0, top + height // 2 + 12), distortion.family, FAINT, family, anchor="lm")
        for column, cell in enumerate(cells(photograph, distortion)):
            canvas.paste(cell, (LABEL + column * (width + 2), top))
    return canvas


def cells(photograph: Image.Image, distortion: Distortion) -> list[Image.Image]:
    """The five levels. The whole photograph is damaged before it is cut, as a user's would be."""
    left, top = (round(share * side) for share, side in zip(CORNER, photograph.size, strict=True))
    box = (left, top, left + CELL[0], top + CELL[1])
    return [qmamba.distort(photograph, distortion.name, level).crop(box) for level in range(1, 6)]


def ascent(photograph: Image.Image) -> Image.Image:
    """A part of the photograph, what JPEG at quality 8 leaves of it, and that after `examples/improve.py`."""
    part = tile(photograph)
    buffer = io.BytesIO()
    part.save(buffer, "JPEG", quality=8)
    crushed = Image.open(buffer).convert("RGB")
    shown = (("original", part), ("JPEG, quality 8", crushed))
    shown = (*shown, ("after 40 steps", improve(crushed, qmamba.load())))
    canvas = Image.new("RGB", (len(shown) * (TILE + GAP) - GAP, TILE + CAPTION), PAPER)
    for index, (name, image) in enumerate(shown):
        error = np.asarray(image, np.float64) - np.asarray(part, np.float64)
        near = f", PSNR {10 * np.log10(255**2 / np.square(error).mean()):.1f} dB" if error.any() else ""
        captioned(canvas, (index * (TILE + GAP), 0), image, f"{qmamba.score(image):.2f}", name + near)
    return canvas


def opened(name: str) -> Image.Image:
    with Image.open(EXAMPLES / name) as image:
        return image.convert("RGB")


def main() -> None:
    ASSETS.mkdir(parents=True, exist_ok=True)
    astronaut = opened("astronaut.jpg")
    strip(astronaut).save(ASSETS / "strip.jpg", quality=90, optimize=True)
    half_blurred(opened("coffee.jpg"), ASSETS / "map.jpg")
    contact_sheet(astronaut).save(ASSETS / "distortions.jpg", quality=72, optimize=True)
    ascent(astronaut).save(ASSETS / "ascent.jpg", quality=92, optimize=True)
    measured = json.loads(SPEED.read_text(encoding="utf-8"))
    speed.plot(measured["models"], SHOWN_SPEEDS, ASSETS / "speed.svg")
    print(f"{ASSETS}: strip.jpg, map.jpg, distortions.jpg, ascent.jpg, speed.svg")


if __name__ == "__main__":
    main()
