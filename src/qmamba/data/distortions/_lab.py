"""Convert between 8-bit sRGB and CIE Lab (D65) by tables: fast, with the same bits on every machine."""

from __future__ import annotations

import functools

import numpy as np

from qmamba.data.distortions._base import Floats, Pixels

_WHITE = (0.95047, 1.0, 1.08883)
_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_TO_RGB = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)
_STEPS = 65535  # fine enough for an exact round trip of every 8-bit colour
_KNEE = 6 / 29


@functools.cache
def _tables() -> tuple[Floats, Floats, Pixels]:
    """Return tables: sRGB byte → linear light; X, Y, Z of white 1 → Lab's f; linear light → sRGB byte."""
    byte = np.arange(256) / 255
    linear = np.where(byte <= 0.04045, byte / 12.92, ((byte + 0.055) / 1.055) ** 2.4)
    light = np.arange(_STEPS + 1) / _STEPS
    root = np.where(light > _KNEE**3, np.cbrt(light), light / (3 * _KNEE**2) + 4 / 29)
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return linear.astype(np.float32), root.astype(np.float32), np.rint(encoded * 255).astype(np.uint8)


def to_lab(pixels: Pixels) -> Floats:
    """Convert (H, W, 3) uint8 to (3, H, W): L in [0, 100], a, b; a and b of grey are 0 up to rounding."""
    linear, root, _ = _tables()
    light = np.take(linear, np.moveaxis(pixels, 2, 0))
    f = [np.take(root, _index(_mix(light, row, white))) for row, white in zip(_TO_XYZ, _WHITE, strict=True)]
    return np.stack((116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])))


def from_lab(lab: Floats) -> Pixels:
    """Convert (3, H, W) to (H, W, 3) uint8; colours outside the sRGB gamut are clipped per channel."""
    *_, encoded = _tables()
    y = (lab[0] + 16) / 116
    f = np.stack((y + lab[1] / 500, y, y - lab[2] / 200))
    xyz = np.where(f > _KNEE, f * f * f, (f - np.float32(4 / 29)) * np.float32(3 * _KNEE**2))
    xyz *= np.array(_WHITE, np.float32)[:, None, None]
    light = np.stack([_mix(xyz, row) for row in _TO_RGB], axis=-1)
    return np.take(encoded, _index(light))


def _mix(planes: Floats, row: tuple[float, float, float], divisor: float = 1.0) -> Floats:
    # Not a matrix product, whose last bits depend on the BLAS library and its threads.
    first, second, third = (np.float32(weight / divisor) for weight in row)
    mixed: Floats = planes[0] * first + planes[1] * second + planes[2] * third
    return mixed


def _index(light: Floats) -> np.ndarray:
    """Return indices into the tables of `_STEPS` + 1 entries; `light` is used as scratch space."""
    light *= np.float32(_STEPS)
    light += np.float32(0.5)
    return np.clip(light, 0, _STEPS, out=light).astype(np.intp)
