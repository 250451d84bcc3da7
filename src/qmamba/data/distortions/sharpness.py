"""Sharpness and contrast: oversharpening, contrast change."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from qmamba.data.distortions._base import Pixels, distortion, to_bytes


@distortion("sharpness", (0.5, 1.1, 2.0, 3.4, 5.5), "amount: how many times the detail is added")
def high_sharpen(pixels: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """Sharpen the luminance too much, by an unsharp mask of σ = 2 pixels."""
    grey = Image.fromarray(pixels).convert("L")
    detail = np.asarray(grey, np.float32) - np.asarray(grey.filter(ImageFilter.GaussianBlur(2)), np.float32)
    detail *= np.float32(amount)
    return to_bytes(detail[..., None] + pixels)


@distortion("sharpness", (3.5, 5.5, 8.0, 12.0, 20.0), "slope of the sigmoid, over values in [0, 1]")
def contrast_change(pixels: Pixels, slope: float, rng: np.random.Generator) -> Pixels:
    """Raise the contrast on a sigmoid that leaves black, middle grey and white where they are."""
    curve = np.tanh((np.arange(256) / 255 - 0.5) * slope / 2) / np.tanh(slope / 4)
    return np.take(np.rint((curve + 1) * 127.5).astype(np.uint8), pixels)
