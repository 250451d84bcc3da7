"""Noise: white, colour, impulse, multiplicative, and residue of denoising."""

from __future__ import annotations

import numpy as np

from qmamba.data.distortions._base import Floats, Pixels, distortion, to_bytes


@distortion("noise", (6, 12, 20, 32, 50), "standard deviation, of 255", degrades=True, random=True)
def white_noise(pixels: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    """Add white Gaussian noise, independent in the three channels."""
    return to_bytes(_noisy(pixels, std, rng))


@distortion(
    "noise", (8, 15, 25, 40, 62), "standard deviation of Cb and Cr, of 255", degrades=True, random=True
)
def colour_noise(pixels: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    """Add white Gaussian noise to the colour components of YCbCr, none to the luminance."""
    cb, cr = rng.standard_normal((2, *pixels.shape[:2]), dtype=np.float32) * np.float32(std)
    values = pixels.astype(np.float32)
    values[..., 0] += np.float32(1.402) * cr
    values[..., 1] -= np.float32(0.344136) * cb + np.float32(0.714136) * cr
    values[..., 2] += np.float32(1.772) * cb
    return to_bytes(values)


@distortion("noise", (0.003, 0.012, 0.035, 0.08, 0.16), "share of the values hit", degrades=True, random=True)
def impulse_noise(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Set some values to 0 and as many to 255, independently in the three channels."""
    draws = rng.integers(0, 65536, pixels.shape, dtype=np.uint16)
    half = round(share / 2 * 65536)
    noisy: Pixels = pixels.copy()
    noisy[draws < half] = 0
    noisy[draws >= 65536 - half] = 255
    return noisy


@distortion(
    "noise", (0.05, 0.1, 0.17, 0.27, 0.42), "standard deviation of the factor", degrades=True, random=True
)
def multiplicative_noise(pixels: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    """Multiply every value with a Gaussian factor of mean 1: speckle, stronger where it is bright."""
    factor = rng.standard_normal(pixels.shape, dtype=np.float32)
    factor *= np.float32(std)
    factor += 1
    factor *= pixels
    return to_bytes(factor)


@distortion(
    "noise",
    (10, 20, 33, 50, 75),
    "standard deviation of the removed noise, of 255",
    degrades=True,
    random=True,
)
def denoise(pixels: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    """Add white Gaussian noise and take it out again with a local Wiener filter, which blurs and mottles."""
    noisy = _noisy(pixels, std, rng)
    mean = _box(noisy)
    variance = _box(noisy * noisy)
    variance -= mean * mean
    np.maximum(variance, np.float32(std * std), out=variance)
    noisy -= mean
    noisy *= 1 - np.float32(std * std) / variance  # share of the local variance that is not noise
    noisy += mean
    return to_bytes(noisy)


def _noisy(pixels: Pixels, std: float, rng: np.random.Generator) -> Floats:
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    noise *= np.float32(std)
    noise += pixels
    return noise


def _box(values: Floats, reach: int = 3) -> Floats:
    """Return means of (H, W, C) over squares of 2·reach + 1 pixels, with edge padding."""
    for axis in (0, 1):
        length = values.shape[axis]
        padding = [(0, 0)] * values.ndim
        padding[axis] = (reach, reach)
        padded = np.pad(values, padding, mode="edge")
        parts = (padded[(slice(None),) * axis + (slice(i, i + length),)] for i in range(2 * reach + 1))
        values = next(parts).copy()
        for part in parts:
            values += part
    values *= np.float32(1 / (2 * reach + 1) ** 2)
    return values
