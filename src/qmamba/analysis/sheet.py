"""A contact sheet of distortions: a row for each, a column for each level."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from qmamba.data.distort import to_pixels
from qmamba.data.distortions import DISTORTIONS, Distortion, find_scale
from qmamba.images import ImageInput

CELL = (150, 100)  # pixels: width and height of a tile
CORNER = (0.3, 0.11)  # where the tile lies in the photograph, as shares of its width and height
LABEL, HEAD, GAP = 245, 26, 2  # pixels: column of the names, row of the levels, between tiles
LEVELS = range(1, 6)
INK, FAINT, PAPER = (31, 35, 40), (89, 99, 110), (255, 255, 255)
DARK_INK, DARK_FAINT, DARK_PAPER = (230, 233, 236), (160, 168, 176), (30, 33, 41)


def contact_sheet(
    image: ImageInput,
    distortions: Sequence[Distortion] | None = None,
    *,
    seed: int = 0,
    scale: str = "qmamba",
    dark: bool = False,
) -> Image.Image:
    """Return a sheet with a part of a photograph, at its own size, after every distortion at levels 1 to 5.

    The whole photograph is distorted before it is cut, as a user's would be.

    Args:
        image: one image, of any kind that `qmamba.score` takes.
        distortions: rows of the sheet; by default all that the scale covers.
        seed, scale: as for `qmamba.distort`.
        dark: light text on dark paper.

    Returns:
        An RGB image, 1005 pixels wide.

    Raises:
        DistortionError: an unknown scale, or a distortion that it does not cover.
        ImageError: the image cannot be decoded.
    """
    pixels = to_pixels(image)
    covers = find_scale(scale).covers
    rows = [d for d in DISTORTIONS.values() if covers(d)] if distortions is None else distortions
    ink, faint, paper = (DARK_INK, DARK_FAINT, DARK_PAPER) if dark else (INK, FAINT, PAPER)
    width, height = CELL
    step = height + GAP
    canvas = Image.new("RGB", (LABEL + len(LEVELS) * (width + GAP), len(rows) * step + HEAD), paper)
    draw = ImageDraw.Draw(canvas)
    for column, level in enumerate(LEVELS):
        middle = LABEL + column * (width + GAP) + width // 2
        draw.text((middle, 2), f"level {level}", faint, ImageFont.load_default(19), anchor="ma")
    box = _box(pixels.shape[1], pixels.shape[0])
    for row, distortion in enumerate(rows):
        top = HEAD + row * step
        draw.text((0, top + height // 2 - 12), distortion.name, ink, ImageFont.load_default(21), anchor="lm")
        family = ImageFont.load_default(18)
        draw.text((0, top + height // 2 + 12), distortion.family, faint, family, anchor="lm")
        for column, level in enumerate(LEVELS):
            cell = Image.fromarray(distortion(pixels, level, seed=seed, scale=scale)).crop(box)
            canvas.paste(cell, (LABEL + column * (width + GAP), top))
    return canvas


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return the part of a photograph that a tile shows: less than a tile where it is smaller.

    >>> _box(512, 512), _box(100, 50)
    ((154, 56, 304, 156), (0, 0, 100, 50))
    """
    left, top = (round(share * side) for share, side in zip(CORNER, (width, height), strict=True))
    left, top = max(0, min(left, width - CELL[0])), max(0, min(top, height - CELL[1]))
    return left, top, min(width, left + CELL[0]), min(height, top + CELL[1])
