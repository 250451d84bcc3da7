"""Colour: diffusion, shift, quantization, saturation."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from qmamba.data.distortions._base import Floats, Pixels, distortion, to_bytes
from qmamba.data.distortions._lab import from_lab, to_lab


@distortion("colour", (3, 6, 11, 20, 36), "sigma of the Gaussian, in pixels", degrades=True)
def colour_diffusion(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Blur a and b of Lab, so that colours run over edges, and keep the lightness."""
    lab = to_lab(pixels)
    for channel in (1, 2):
        plane = Image.fromarray(to_bytes(lab[channel] + 128))  # a and b are within ±108 for every sRGB colour
        lab[channel] = np.asarray(plane.filter(ImageFilter.GaussianBlur(sigma)), np.float32) - 128
    return from_lab(lab)


@distortion("colour", (1, 3, 5, 9, 15), "length of the shift, in pixels", random=True)
def colour_shift(pixels: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    """Move the green channel in a direction that the seed gives, near edges only."""
    return shift_green(pixels, length, rng.uniform(0, 2 * math.pi))


def shift_green(pixels: Pixels, length: float, angle: float) -> Pixels:
    """Move the green channel by `length` pixels in the direction of `angle` (radians), near edges only."""
    height, width, _ = pixels.shape
    pad = math.ceil(length)
    y, x = (pad + round(length * step) for step in (math.sin(angle), math.cos(angle)))
    green = pixels[..., 1].astype(np.float32)
    moved = np.pad(green, pad, mode="edge")[y : y + height, x : x + width]
    shifted: Pixels = pixels.copy()
    shifted[..., 1] = to_bytes(green + (moved - green) * _edges(pixels))
    return shifted


@distortion("colour", (96, 40, 18, 9, 4), "number of colours", degrades=True)
def colour_quantization(pixels: Pixels, count: float, rng: np.random.Generator) -> Pixels:
    """Use few colours, chosen by median cut and k-means, and dither."""
    image = Image.fromarray(pixels)
    # A palette from one or two thousand pixels is as good, and much faster to find.
    step = max(1, math.isqrt(image.width * image.height // 1024))
    sample = Image.fromarray(np.ascontiguousarray(pixels[step // 2 :: step, step // 2 :: step]))
    palette = sample.quantize(int(count), method=Image.Quantize.MEDIANCUT, kmeans=1)
    return np.array(image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB"))


@distortion("colour", (0.75, 0.55, 0.36, 0.18, 0.0), "factor of the saturation")
def colour_saturation_hsv(pixels: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Lower the saturation of HSV: colours fade, at the last level to grey."""
    # With hue and value kept, a channel's distance from the largest one is proportional to saturation.
    largest = pixels.max(axis=2, keepdims=True).astype(np.float32)
    return to_bytes(largest - (largest - pixels) * np.float32(factor))


@distortion("colour", (1.4, 1.9, 2.7, 3.8, 5.5), "factor of a and b")
def colour_saturation_lab(pixels: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Multiply a and b of Lab: colours become garish."""
    lab = to_lab(pixels)
    lab[1:] *= np.float32(factor)
    return from_lab(lab)


def _edges(pixels: Pixels) -> Floats:
    """Return an edge mask (H, W) in [0, 1]: the smoothed gradient of the grey image, 1 on edges."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)
    gradient = np.zeros_like(grey)
    gradient[:, :-1] += np.abs(np.diff(grey, axis=1))
    gradient[:-1] += np.abs(np.diff(grey, axis=0))
    smooth = Image.fromarray(np.minimum(4 * gradient, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(2))
    mask: Floats = np.array(smooth, np.float32)
    mask /= np.float32(max(1.0, 3 * float(mask.mean(dtype=np.float64))))
    return np.minimum(mask, 1, out=mask)
