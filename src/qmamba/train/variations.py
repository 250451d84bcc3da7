"""Variations: what photographs of other places and cameras may look like, made from the ones at hand.

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
