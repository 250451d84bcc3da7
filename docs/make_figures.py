"""Draw `docs/assets/strip.png`: a photograph and damaged versions of it, with the embedded model's scores.

Run it with `make figures`. It takes the first photograph of examples/ unless another is named:

    python docs/make_figures.py [PHOTOGRAPH]
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import qmamba

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "assets" / "strip.png"
SUFFIXES = (".jpg", ".jpeg", ".png")

TILE = 300  # pixels: side of a drawn photograph
GAP = 12
CAPTION = 62
INK, FAINT, PAPER = (31, 35, 40), (89, 99, 110), (255, 255, 255)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after JPEG compression."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    """The image with Gaussian noise of standard deviation `sigma`, in levels; always the same noise."""
    pixels = np.asarray(image, dtype=np.float64)
    noise = np.random.default_rng(0).normal(0.0, sigma, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).round().astype(np.uint8))


def shrunk(image: Image.Image, factor: int) -> Image.Image:
    """The image made `factor` times smaller and enlarged again."""
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


VERSIONS: tuple[tuple[str, Callable[[Image.Image], Image.Image]], ...] = (
    ("original", lambda image: image),
    ("JPEG, quality 10", lambda image: jpeg(image, 10)),
    ("noise, sigma 25", lambda image: noisy(image, 25)),
    ("blur, radius 3", lambda image: image.filter(ImageFilter.GaussianBlur(3))),
    ("shrunk 6 times", lambda image: shrunk(image, 6)),
)


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
    images = [change(photograph) for _, change in VERSIONS]
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


def main() -> None:
    if len(sys.argv) > 1:
        source = Path(sys.argv[1])
    else:
        source = min(p for p in (ROOT / "examples").iterdir() if p.suffix.lower() in SUFFIXES)
    with Image.open(source) as opened:
        photograph = opened.convert("RGB")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    strip(photograph).save(TARGET, optimize=True)
    print(f"{source} -> {TARGET}")


if __name__ == "__main__":
    main()
