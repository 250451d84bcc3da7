"""Blur: Gaussian, lens, motion."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from qmamba.data.distortions._base import Pixels, distortion

_UNIT = 256  # sum of an integer kernel; times 255 it still fits 16 bits


@distortion("blur", (0.7, 1.2, 2.0, 3.2, 5.0), "sigma of the Gaussian, in pixels", degrades=True)
def gaussian_blur(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Convolve with a Gaussian."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


@distortion("blur", (1.0, 2.0, 3.5, 5.5, 8.5), "radius of the disc, in pixels", degrades=True)
def lens_blur(pixels: Pixels, radius: float, rng: np.random.Generator) -> Pixels:
    """Average over a disc, as a lens that is out of focus does."""
    height, width, _ = pixels.shape
    reach = math.floor(radius)
    padded = np.pad(pixels, ((reach, reach), (reach + 1, reach), (0, 0)), mode="edge")
    # With running sums along the rows, each row of the disc is one difference, however wide. The sums are
    # integers, hence exact, even where they wrap around (rows of more than eight million pixels).
    sums = np.cumsum(padded, axis=1, dtype=np.uint32)
    total = np.zeros(pixels.shape, np.uint32)
    area = 0
    for dy in range(-reach, reach + 1):
        half = math.floor(math.sqrt(radius * radius - dy * dy))
        rows = sums[reach + dy : reach + dy + height]
        total += rows[:, reach + half + 1 : reach + half + 1 + width]
        total -= rows[:, reach - half : reach - half + width]
        area += 2 * half + 1
    return ((total + area // 2) // area).astype(np.uint8)


@distortion("blur", (3, 6, 10, 17, 28), "length of the path, in pixels", degrades=True, random=True)
def motion_blur(pixels: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    """Average along a straight path; the seed gives its direction."""
    height, width, _ = pixels.shape
    kernel = _path(length, rng.uniform(0, math.pi))
    pad = len(kernel) // 2
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge").astype(np.uint16)
    total = np.full(pixels.shape, _UNIT // 2, np.uint16)
    for y, x in np.argwhere(kernel).tolist():
        total += padded[y : y + height, x : x + width] * kernel[y, x]
    blurred: Pixels = (total // np.uint16(_UNIT)).astype(np.uint8)
    return blurred


def _path(length: float, angle: float) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Return an integer kernel (2r+1, 2r+1) of sum `_UNIT`: points of a line, spread bilinearly on pixels."""
    reach = math.ceil(length / 2)
    points = (np.arange(16 * math.ceil(length)) + 0.5) / (16 * math.ceil(length)) - 0.5
    shares = np.zeros((2 * reach + 3, 2 * reach + 3))  # a margin of zeros on each side
    y, x = (reach + 1 + points * length * step for step in (math.sin(angle), math.cos(angle)))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = np.abs(1 - dy - (y - top)) * np.abs(1 - dx - (x - left))
        np.add.at(shares, (top + dy, left + dx), weight * (_UNIT / len(points)))
    # Rounded cumulatively to keep the sum: flat regions must not change.
    sums = np.rint(np.cumsum(shares.ravel())).astype(np.uint16)
    return np.diff(sums, prepend=np.uint16(0)).reshape(shares.shape)
