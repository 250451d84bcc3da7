"""Brightness: brighten, darken, mean shift."""

from __future__ import annotations

import numpy as np

from qmamba.data.distortions._base import Pixels, distortion
from qmamba.data.distortions._lab import from_lab, to_lab


@distortion("brightness", (57, 64, 71, 78, 86), "Lab lightness given to middle grey (50)")
def brighten(pixels: Pixels, middle: float, rng: np.random.Generator) -> Pixels:
    """Raise the lightness of Lab on a curve that leaves black and white where they are."""
    return _bend(pixels, middle)


@distortion("brightness", (43, 36, 29, 22, 14), "Lab lightness given to middle grey (50)")
def darken(pixels: Pixels, middle: float, rng: np.random.Generator) -> Pixels:
    """Lower the lightness of Lab on a curve that leaves black and white where they are."""
    return _bend(pixels, middle)


@distortion("brightness", (12, 24, 40, 60, 85), "what is added to every value, of 255")
def mean_shift(pixels: Pixels, shift: float, rng: np.random.Generator) -> Pixels:
    """Add a constant to every value, and clip."""
    table = np.clip(np.arange(256) + int(shift), 0, 255).astype(np.uint8)
    return np.take(table, pixels)


def _bend(pixels: Pixels, middle: float) -> Pixels:
    lab = to_lab(pixels)
    light = lab[0] / 100
    # Schlick's "bias": a rational curve through (0, 0), (1/2, middle) and (1, 1).
    lab[0] *= 1 / (np.float32(100 / middle - 2) * (1 - light) + 1)
    return from_lab(lab)
