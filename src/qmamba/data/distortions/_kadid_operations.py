"""Operations of KADID-10k's scale, each with its parameter in kadid.csv.

Written from descriptions of the generator's parameters. Operations that equal the package's own call its
functions. `zoom` multiplies lengths, which are in pixels at 512×384.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from qmamba.data.distortions import blur, codecs, colour, noise, spatial
from qmamba.data.distortions._base import Floats, Pixels, to_bytes
from qmamba.data.distortions._lab import from_lab, to_lab

Operation: TypeAlias = Callable[[Pixels, float, np.random.Generator, float], Pixels]
"""Function (pixels (H, W, 3) uint8, parameter, generator, zoom) → new pixels."""

OPERATIONS: dict[str, Operation] = {}
"""Operations by kind of distortion, in the package's order."""

_AREA = 512 * 384  # pixels of a photograph of KADID-10k; counts of patches and blocks refer to it
_PATCH = 16  # pixels: side of the patches that are copied
_PATCH_REACH = 8  # pixels: how far they are copied
_BLOCK = 32  # pixels: side of the blocks of colour
_SHARPEN_SIGMA = 6  # pixels
_VALUES: Floats = (np.arange(256) / 255).astype(np.float32)


def _operation(function: Operation) -> Operation:
    OPERATIONS[getattr(function, "__name__", "")] = function
    return function


# --- blur ---


@_operation
def gaussian_blur(pixels: Pixels, sigma: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Convolve with a Gaussian; the parameter is sigma in pixels."""
    return blur.gaussian_blur.function(pixels, sigma * zoom, rng)


@_operation
def lens_blur(pixels: Pixels, radius: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Average over a disc; the parameter is its radius in pixels."""
    radius *= zoom
    if radius >= 2.5:
        return blur.lens_blur.function(pixels, radius, rng)
    # The number of pixel centres in a small disc changes in steps; shares of pixel areas change smoothly.
    points = (np.arange(5 * 16) + 0.5) / 16 - 2.5
    inside = points[:, None] ** 2 + points**2 <= radius**2
    shares = inside.reshape(5, 16, 5, 16).mean(axis=(1, 3)) if radius > 0.5 else np.eye(25)[12]
    kernel = ImageFilter.Kernel((5, 5), shares.ravel().tolist(), scale=float(shares.sum()))
    framed = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")  # Pillow leaves a frame of 2 unfiltered
    return np.ascontiguousarray(np.asarray(Image.fromarray(framed).filter(kernel))[2:-2, 2:-2])


@_operation
def motion_blur(pixels: Pixels, length: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Average along a straight path in a random direction; the parameter is its length in pixels."""
    length *= zoom
    # A path of one pixel does not blur. Below two, the ends get the weights of a row of partial pixels.
    if length < 2:
        length = 4 * (length - 1) / length
    return blur.motion_blur.function(pixels, length, rng) if length > 0 else pixels.copy()


# --- colour ---


@_operation
def colour_diffusion(pixels: Pixels, amount: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Blur a and b of Lab with sigma 1.5 × amount + 2 pixels, and multiply them by the amount."""
    lab = to_lab(pixels)
    for channel in (1, 2):
        lab[channel] = _smooth(lab[channel], (1.5 * amount + 2) * zoom) * np.float32(amount)
    return from_lab(lab)


@_operation
def colour_shift(pixels: Pixels, length: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Move the green channel near edges; the parameter is the length of the shift in pixels."""
    return colour.shift_green(pixels, length * zoom, rng.uniform(0, math.pi / 2))


@_operation
def colour_quantization(pixels: Pixels, count: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Use few colours, and dither; the parameter is their number."""
    return colour.colour_quantization.function(pixels, round(count), rng)


@_operation
def colour_saturation_hsv(pixels: Pixels, factor: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Multiply the saturation of HSV; below 0, hues turn to their opposites."""
    largest = pixels.max(axis=2, keepdims=True).astype(np.float32)
    values: Floats = largest - (largest - pixels) * np.float32(factor)
    if factor < 0:  # values then exceed the largest one
        values *= np.float32(255 / max(255.0, float(values.max())))
    return to_bytes(values)


@_operation
def colour_saturation_lab(pixels: Pixels, factor: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Multiply a and b of Lab."""
    return colour.colour_saturation_lab.function(pixels, factor, rng)


# --- compression ---


@_operation
def jpeg(pixels: Pixels, quality: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Compress as JPEG; the parameter is the quality, 1 to 100."""
    return codecs.jpeg.function(pixels, round(quality), rng)


@_operation
def jpeg2000(pixels: Pixels, ratio: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Compress as JPEG 2000; the parameter is the compression ratio."""
    return codecs.jpeg2000.function(pixels, ratio, rng)


# --- noise; variances are of values in [0, 1] ---


@_operation
def white_noise(pixels: Pixels, variance: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Add white Gaussian noise, independent in the three channels."""
    return noise.white_noise.function(pixels, 255 * math.sqrt(variance), rng)


@_operation
def colour_noise(pixels: Pixels, variance: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Add white Gaussian noise to Y, Cb and Cr of BT.601 in their range for video (16 to 235 and 240)."""
    draws = rng.standard_normal((3, *pixels.shape[:2]), dtype=np.float32)
    draws *= np.float32(255 * math.sqrt(variance))
    y, cb, cr = draws
    y *= np.float32(255 / 219)
    values = pixels.astype(np.float32)
    values[..., 0] += y + np.float32(1.596027) * cr
    values[..., 1] += y - np.float32(0.391762) * cb - np.float32(0.812968) * cr
    values[..., 2] += y + np.float32(2.017232) * cb
    return to_bytes(values)


@_operation
def impulse_noise(pixels: Pixels, share: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Set a share of the values to 0 or 255."""
    return noise.impulse_noise.function(pixels, share, rng)


@_operation
def multiplicative_noise(pixels: Pixels, variance: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Multiply every value with a factor of mean 1; the parameter is its variance."""
    return noise.multiplicative_noise.function(pixels, math.sqrt(variance), rng)


# --- brightness ---


@_operation
def brighten(pixels: Pixels, amount: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Raise middle grey from 0.5 to 0.5 + amount / 2: two parts on a curve of RGB, one on Lab's lightness."""
    lab = to_lab(pixels)
    lab[0] = 100 * _curve(lab[0] / 100, 0.5 + amount / 2)
    table = 2 * 255 * _curve(_VALUES, 0.5 + amount / 2)
    return to_bytes((np.take(table, pixels) + from_lab(lab)) / np.float32(3))


@_operation
def darken(pixels: Pixels, amount: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Lower middle grey from 0.5 to 0.5 - amount / 2 on a curve of RGB."""
    table = to_bytes(255 * _curve(_VALUES, 0.5 - amount / 2))
    return np.take(table, pixels)


@_operation
def mean_shift(pixels: Pixels, shift: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Add a constant (of 1), clip, and stretch the remaining range to [0, 1]."""
    # The stretch is part of the table, so that it is right for crops too, and rounded only once.
    shifted = np.clip(_VALUES + np.float32(shift), 0, 1)
    table = to_bytes(255 * (shifted - shifted[0]) / (shifted[-1] - shifted[0]))
    return np.take(table, pixels)


def _curve(values: Floats, middle: float) -> Floats:
    """Return the parabola through (0, 0), (0.5, middle) and (1, 1), clipped to [0, 1]."""
    bend = np.float32(4 * middle - 2)
    curved: Floats = np.clip(values * (1 + bend * (1 - values)), 0, 1)
    return curved


# --- spatial ---


@_operation
def jitter(pixels: Pixels, std: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Displace each pixel at random, five times, by a number of pixels of this standard deviation."""
    import torch
    from torch.nn.functional import grid_sample

    height, width, _ = pixels.shape
    offsets = rng.standard_normal((height, width, 2), dtype=np.float32)
    # Pixels to grid_sample's units, in which the image spans [-1, 1].
    offsets *= np.array((2 / width, 2 / height), np.float32) * np.float32(std * zoom)
    x = (2 * np.arange(width, dtype=np.float32) + 1) / width - 1
    y = (2 * np.arange(height, dtype=np.float32) + 1) / height - 1
    places = np.stack(np.broadcast_arrays(x, y[:, None]), axis=-1)  # (H, W, 2)
    planes = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    for roll in rng.integers(0, (height, width), (5, 2)).tolist():
        # All passes share one noise field, rolled: drawing five would take most of the time.
        grid = torch.from_numpy(places + np.roll(offsets, roll, axis=(0, 1)))[None]
        planes = grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return np.ascontiguousarray(to_bytes(planes[0].numpy()).transpose(1, 2, 0))


@_operation
def non_eccentricity_patch(pixels: Pixels, count: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Replace patches of 16×16 pixels by others from up to 8 pixels away; the parameter is their number."""
    side = _side(pixels, _PATCH * zoom)
    return spatial.move_patches(pixels, side, _count(pixels, count, zoom), _PATCH_REACH * zoom, rng)


@_operation
def pixelate(pixels: Pixels, strength: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Shrink by 0.95 - strength^0.6 and enlarge again, each with the nearest neighbour."""
    shrink = min(1.0, (0.95 - strength**0.6) / zoom)
    rows, columns = (_nearest(length, shrink) for length in pixels.shape[:2])
    return np.take(np.take(pixels, rows, axis=0), columns, axis=1)


@_operation
def quantization(pixels: Pixels, count: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Use few values for all three channels; the parameter is their number."""
    return spatial.quantization.function(pixels, round(count), rng)


@_operation
def colour_block(pixels: Pixels, count: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Cover places with blocks of 32×32 pixels of random colours; the parameter is their number."""
    return spatial.cover(pixels, _side(pixels, _BLOCK * zoom), _count(pixels, count, zoom), rng)


def _side(pixels: Pixels, side: float) -> int:
    """Return the side of a square in whole pixels, no larger than the image."""
    return max(1, min(round(side), *pixels.shape[:2]))


def _count(pixels: Pixels, count: float, zoom: float) -> int:
    """Return the number of squares for an image, given `count` for 512×384 pixels; at least one."""
    return max(1, round(count * pixels.shape[0] * pixels.shape[1] / (_AREA * zoom**2)))


def _nearest(length: int, shrink: float) -> np.ndarray:
    """Return the source index (length,) of each pixel of a row that is shrunk and enlarged."""
    short = max(1, math.ceil(length * shrink))
    small = np.floor((np.arange(length) + 0.5) * short / length).astype(np.intp)
    return np.floor((small + 0.5) * length / short).astype(np.intp)


# --- sharpness and contrast ---


@_operation
def high_sharpen(pixels: Pixels, amount: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Sharpen Lab's lightness by an unsharp mask of sigma 6 pixels; the parameter is its amount."""
    lab = to_lab(pixels)
    lab[0] += np.float32(amount) * (lab[0] - _smooth(lab[0], _SHARPEN_SIGMA * zoom))
    np.clip(lab[0], 0, 100, out=lab[0])
    return from_lab(lab)


@_operation
def contrast_change(pixels: Pixels, amount: float, rng: np.random.Generator, zoom: float) -> Pixels:
    """Bend the tone curve through (0.3, 0.25 - amount / 4), (0.5, 0.5) and (0.7, 0.75 + amount / 4)."""
    # The cubic through these, (0, 0) and (1, 1); an amount of 0 raises the contrast a little.
    slope = np.float32((-0.05 - amount / 4) / 0.042)
    curve = _VALUES + slope * _VALUES * (_VALUES - np.float32(0.5)) * (_VALUES - 1)
    return np.take(to_bytes(255 * curve), pixels)


def _smooth(plane: Floats, sigma: float) -> Floats:
    """Convolve (H, W) with a Gaussian, in floats, at a sufficient resolution."""
    height, width = plane.shape
    step = max(1, int(sigma / 2.5))
    rows, columns = math.ceil(height / step), math.ceil(width / step)
    # Averaging over a step and interpolating linearly already blur by this much.
    wanted = math.sqrt(max(sigma**2 - (step**2 - 1) / 4, 1e-6)) / step
    reach = math.ceil(3 * wanted)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / wanted) ** 2)
    weights /= weights.sum()
    before = reach * step
    after = (before + rows * step - height, before + columns * step - width)
    padded = np.pad(plane, ((before, after[0]), (before, after[1])), mode="symmetric")
    height_steps, width_steps = (length // step for length in padded.shape)
    cells = padded.reshape(height_steps, step, width_steps, step)
    reduced: Floats = cells.mean(axis=(1, 3))
    reduced = sum(reduced[i : i + rows] * np.float32(w) for i, w in enumerate(weights.tolist()))
    reduced = sum(reduced[:, i : i + columns] * np.float32(w) for i, w in enumerate(weights.tolist()))
    smooth = Image.fromarray(reduced).resize((columns * step, rows * step), Image.Resampling.BILINEAR)
    return np.array(smooth, np.float32)[:height, :width]
