"""Spatial: jitter, displaced patches, pixelation, quantization, colour blocks."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from qmamba.data.distortions._base import Pixels, distortion

_PATCH = 16  # pixels: side of the moved patches, and their maximum displacement
_BLOCK = 32  # pixels: side of the blocks of colour

# A higher level has the squares of the lower levels on top of more squares, so that it is never milder.


@distortion(
    "spatial",
    (0.5, 0.9, 1.6, 2.7, 4.5),
    "standard deviation of the offsets, in pixels",
    degrades=True,
    random=True,
)
def jitter(pixels: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    """Take each pixel from a random place nearby, as frosted glass does."""
    height, width, _ = pixels.shape
    offsets = rng.standard_normal((2, height, width), dtype=np.float32)
    offsets *= np.float32(std)
    np.rint(offsets, out=offsets)
    rows, columns = np.ogrid[:height, :width]
    y = np.clip(offsets[0].astype(np.intp) + rows, 0, height - 1)
    x = np.clip(offsets[1].astype(np.intp) + columns, 0, width - 1)
    y *= width
    y += x
    moved: Pixels = np.take(pixels.reshape(-1, 3), y, axis=0)
    return moved


@distortion(
    "spatial",
    (0.05, 0.12, 0.22, 0.38, 0.6),
    "area of the patches over the image's",
    degrades=True,
    random=True,
)
def non_eccentricity_patch(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Replace patches of 16×16 pixels by others from up to 16 pixels away."""
    side = _side(pixels, _PATCH)
    return move_patches(pixels, side, _count(pixels, side, share), _PATCH, rng)


def move_patches(pixels: Pixels, side: int, count: int, reach: float, rng: np.random.Generator) -> Pixels:
    """Replace `count` square patches of `side` pixels by others from up to `reach` pixels away."""
    height, width, _ = pixels.shape
    room = np.array((height - side, width - side))
    draws = rng.random((count, 4))[::-1]  # drawn first, painted last
    targets = np.rint(draws[:, :2] * room).astype(int)
    sources = np.clip(targets + np.rint((2 * draws[:, 2:] - 1) * reach).astype(int), 0, room)
    patched: Pixels = pixels.copy()
    for (top, left), (y, x) in zip(targets.tolist(), sources.tolist(), strict=True):
        patched[top : top + side, left : left + side] = pixels[y : y + side, x : x + side]
    return patched


@distortion("spatial", (2, 3, 5, 7, 10), "side of the blocks, in pixels", degrades=True)
def pixelate(pixels: Pixels, side: float, rng: np.random.Generator) -> Pixels:
    """Average over blocks."""
    height, width, _ = pixels.shape
    block = int(side)
    small = np.asarray(Image.fromarray(pixels).reduce(block))
    large = small.repeat(block, axis=0)[:height].repeat(block, axis=1)[:, :width]
    return np.ascontiguousarray(large)


@distortion("spatial", (16, 10, 7, 5, 3), "number of values", degrades=True)
def quantization(pixels: Pixels, count: float, rng: np.random.Generator) -> Pixels:
    """Use few values for all three channels, the ones nearest to the image's (Otsu's thresholds)."""
    histogram = np.bincount(pixels.ravel(), minlength=256).astype(np.float64)
    return np.take(_few_values(histogram, int(count)), pixels)


@distortion(
    "spatial", (0.02, 0.05, 0.1, 0.18, 0.3), "area of the blocks over the image's", degrades=True, random=True
)
def colour_block(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Cover places with blocks of 32×32 pixels of random colours."""
    side = _side(pixels, _BLOCK)
    return cover(pixels, side, _count(pixels, side, share), rng)


def cover(pixels: Pixels, side: int, count: int, rng: np.random.Generator) -> Pixels:
    """Cover places with `count` squares of `side` pixels, each of a random colour."""
    height, width, _ = pixels.shape
    draws = rng.random((count, 5))[::-1]  # drawn first, painted last
    corners = np.rint(draws[:, :2] * (height - side, width - side)).astype(int)
    colours = np.rint(draws[:, 2:] * 255).astype(np.uint8)
    covered: Pixels = pixels.copy()
    for (top, left), colour in zip(corners.tolist(), colours, strict=True):
        covered[top : top + side, left : left + side] = colour
    return covered


def _side(pixels: Pixels, wanted: int) -> int:
    """Return the side of a square, reduced in small images so that levels differ in their counts."""
    return max(1, min(wanted, min(pixels.shape[:2]) // 8))


def _count(pixels: Pixels, side: int, share: float) -> int:
    """Return the number of squares with this share of the image's area; at least one."""
    return max(1, math.floor(share * pixels.shape[0] * pixels.shape[1] / side**2 + 0.5))


def _few_values(histogram: np.ndarray, count: int) -> Pixels:
    """Return a table (256,) uint8 of the best quantization to `count` values, by least squared error.

    The classes are intervals, found exactly by dynamic programming over the start of the last one.
    """
    values = np.arange(256)
    n, s, q = (np.concatenate(([0.0], np.cumsum(histogram * values**power))) for power in (0, 1, 2))
    # cost[i, j]: squared error of the values i … j-1 when each becomes their mean.
    number = np.maximum(n[None] - n[:, None], 1e-9)
    cost = (q[None] - q[:, None]) - (s[None] - s[:, None]) ** 2 / number
    cost[np.tril_indices(257, -1)] = np.inf
    best = cost[0]
    starts = []
    for _ in range(count - 1):
        through = best[:, None] + cost
        starts.append(through.argmin(axis=0))
        best = through.min(axis=0)
    table = np.zeros(256, np.uint8)
    end = 256
    for start in [*reversed([s_.tolist() for s_ in starts]), None]:
        begin = 0 if start is None else start[end]
        if n[end] > n[begin]:
            table[begin:end] = round((s[end] - s[begin]) / (n[end] - n[begin]))
        end = begin
    return table
