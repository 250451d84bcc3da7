"""Draw the pictures of the documentation, in docs/assets/.

`strip.png`: a photograph and damaged versions of it, with the embedded model's scores.
`distortions.jpg`: every distortion at its five levels.
`ascent.jpg`: a photograph that JPEG has crushed, before and after gradient ascent on its score.

Run it with `make figures`. It takes the first photograph of examples/ unless another is named:

    python docs/make_figures.py [PHOTOGRAPH]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import qmamba
from qmamba.data import DISTORTIONS, Distortion

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "docs" / "assets"
SUFFIXES = (".jpg", ".jpeg", ".png")
sys.path.insert(0, str(ROOT / "examples"))

from improve import improve  # noqa: E402

TILE = 300  # pixels: side of a drawn photograph
GAP = 12
CAPTION = 62
CELL = (150, 100)  # pixels: width and height of a tile of the contact sheet
CORNER = (0.3, 0.11)  # where the tile lies in the photograph, as shares of its width and height
LABEL = 190  # pixels: width of the column with the names
INK, FAINT, PAPER = (31, 35, 40), (89, 99, 110), (255, 255, 255)


SHOWN = ("gaussian_blur", "white_noise", "jpeg", "pixelate")
VERSIONS = (("original", None), *((f"{kind.replace('_', ' ')}, level 4", kind) for kind in SHOWN))


def tile(image: Image.Image) -> Image.Image:
    """A part of the image, at its own size where it is large enough: damage must be seen as it is."""
    scale = max(1.0, TILE / min(image.size))
    if scale > 1:
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.NEAREST)
    left, top = (image.width - TILE) // 2, (image.height - TILE) // 3
    return image.crop((left, top, left + TILE, top + TILE))


def strip(photograph: Image.Image) -> Image.Image:
    """The versions side by side, each with its name and its score under it."""
    images = [photograph if kind is None else qmamba.distort(photograph, kind, 4) for _, kind in VERSIONS]
    scores = qmamba.score(images).tolist()
    canvas = Image.new("RGB", (len(images) * (TILE + GAP) - GAP, TILE + CAPTION), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, ((name, _), image, value) in enumerate(zip(VERSIONS, images, scores, strict=True)):
        left = index * (TILE + GAP)
        canvas.paste(tile(image), (left, 0))
        middle = left + TILE // 2
        draw.text((middle, TILE + 6), f"{value:.2f}", INK, ImageFont.load_default(28), anchor="ma")
        draw.text((middle, TILE + 40), name, FAINT, ImageFont.load_default(17), anchor="ma")
    return canvas


def contact_sheet(photograph: Image.Image) -> Image.Image:
    """A row for each distortion, a column for each level: a part of the photograph at its own size."""
    width, height = CELL
    step = height + 2
    canvas = Image.new("RGB", (LABEL + 5 * (width + 2), len(DISTORTIONS) * step + 26), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column in range(5):
        middle = LABEL + column * (width + 2) + width // 2
        draw.text((middle, 4), f"level {column + 1}", FAINT, ImageFont.load_default(15), anchor="ma")
    for row, distortion in enumerate(DISTORTIONS.values()):
        top = 26 + row * step
        draw.text((0, top + height // 2 - 10), distortion.name, INK, ImageFont.load_default(15), anchor="lm")
        draw.text(
            (0, top + height // 2 + 10), distortion.family, FAINT, ImageFont.load_default(13), anchor="lm"
        )
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
    draw = ImageDraw.Draw(canvas)
    for index, (name, image) in enumerate(shown):
        left = index * (TILE + GAP)
        canvas.paste(image, (left, 0))
        error = np.asarray(image, np.float64) - np.asarray(part, np.float64)
        near = f", PSNR {10 * np.log10(255**2 / np.square(error).mean()):.1f} dB" if error.any() else ""
        middle = left + TILE // 2
        score = f"{qmamba.score(image):.2f}"
        draw.text((middle, TILE + 6), score, INK, ImageFont.load_default(28), anchor="ma")
        draw.text((middle, TILE + 40), name + near, FAINT, ImageFont.load_default(17), anchor="ma")
    return canvas


def main() -> None:
    if len(sys.argv) > 1:
        source = Path(sys.argv[1])
    else:
        source = min(p for p in (ROOT / "examples").iterdir() if p.suffix.lower() in SUFFIXES)
    with Image.open(source) as opened:
        photograph = opened.convert("RGB")
    ASSETS.mkdir(parents=True, exist_ok=True)
    strip(photograph).save(ASSETS / "strip.png", optimize=True)
    contact_sheet(photograph).save(ASSETS / "distortions.jpg", quality=72, optimize=True)
    ascent(photograph).save(ASSETS / "ascent.jpg", quality=92, optimize=True)
    print(f"{source} -> {ASSETS}: strip.png, distortions.jpg, ascent.jpg")


if __name__ == "__main__":
    main()
