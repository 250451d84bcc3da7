"""Variations: what photographs of other places and cameras may look like, made from the given ones.

:func:`varied` widens the range of what is seen, and :func:`sensor_noise` makes a copy that is surely worse.

A student agrees with its teacher where it has seen pictures. Casts, tones, haze, magnifications and mixtures
widen that range, far beyond what a set of photographs covers. They carry no ratings: whether a cast is a flaw
depends on the scene, so that only the teacher's features are learned from them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

GAIN = 0.35  # deviation of the logarithm of a channel's gain
GAMMA = 0.7  # largest logarithm of the exponent
HAZE = 0.7  # largest share of the veil
MIXED = 0.5  # largest share of the other crop
MAGNIFIED = 2.0  # largest magnification
CHANCE = 0.5  # of each variation
SHOT, READ = 6e-3, 2e-4  # variance of sensor noise of strength 1, by linear brightness and in the dark


def varied(crop: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a crop with some of five variations, each with a chance of one half.

    In this order: magnification, mixture with another crop, saturation, tone (gains of the channels and a
    common exponent), and haze (a veil of one colour).

    Args:
        crop, other: (S, S, 3) uint8.
        rng: source of all chance.

    Returns:
        (S, S, 3) uint8.
    """
    if rng.random() < CHANCE:
        crop = magnified(crop, float(np.exp(rng.uniform(0, np.log(MAGNIFIED)))), rng)
    image = crop.astype(np.float32) / 255
    if rng.random() < CHANCE:
        image += float(rng.uniform(0, MIXED)) * (other.astype(np.float32) / 255 - image)
    if rng.random() < CHANCE:
        grey = image.mean(axis=2, keepdims=True)
        image = grey + float(rng.uniform(0, 2)) * (image - grey)
    if rng.random() < CHANCE:
        gains = np.exp(rng.normal(0, GAIN, 3)).astype(np.float32)
        exponent = float(np.exp(rng.uniform(-GAMMA, GAMMA)))
        image = np.clip(image, 0, 1) ** exponent * gains
    if rng.random() < CHANCE:
        veil = rng.uniform(0, 1, 3).astype(np.float32)
        image += float(rng.uniform(0, HAZE)) * (veil - image)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def magnified(crop: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Return a part of a crop (S, S, 3) uint8, enlarged to all of it.

    Args:
        factor: at least 1; the part is S / factor on a side.
        rng: chooses where the part lies.
    """
    size = crop.shape[0]
    side = max(1, round(size / factor))
    top, left = rng.integers(size - side + 1, size=2)
    part = Image.fromarray(crop[top : top + side, left : left + side])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def sensor_noise(crop: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return a crop with the noise of a camera's sensor: worse, by how much is unknown.

    Light is counted at one colour per pixel (Bayer's pattern), so that its variance grows with brightness,
    and the two other colours are interpolated, so that noise is correlated between neighbours.

    Args:
        crop: (S, S, 3) uint8.
        strength: of the noise; 1 has a deviation of about 0.04 in linear middle grey, where it is counted.
        rng: source of the noise.

    Returns:
        (S, S, 3) uint8.
    """
    linear = (crop.astype(np.float32) / 255) ** 2.2
    deviation = strength * np.sqrt(SHOT * linear + READ)
    noise = rng.standard_normal(crop.shape, dtype=np.float32) * deviation
    height, width = crop.shape[:2]
    rows, columns = np.indices((height, width)) % 2
    sites = np.stack([(rows == 0) & (columns == 0), rows != columns, (rows == 1) & (columns == 1)], axis=2)
    noise = np.where(sites, noise, np.float32(0))
    noise = np.stack([_interpolated(noise[..., c], corners=c != 1) for c in range(3)], axis=2)
    return np.rint(np.clip(linear + noise, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)


def _interpolated(sites: np.ndarray, corners: bool) -> np.ndarray:
    """Return the bilinear interpolation of one colour (S, S), given with zeros between its sites."""
    padded = np.pad(sites, 1, mode="reflect")
    up, down = padded[:-2, 1:-1], padded[2:, 1:-1]
    left, right = padded[1:-1, :-2], padded[1:-1, 2:]
    if not corners:
        crossed: np.ndarray = sites + (up + down + left + right) / 4
        return crossed
    diagonal = padded[:-2, :-2] + padded[:-2, 2:] + padded[2:, :-2] + padded[2:, 2:]
    found: np.ndarray = sites + (up + down + left + right) / 2 + diagonal / 4
    return found
