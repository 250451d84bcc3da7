"""ICC profiles of any primaries, curve and name, written by hand (ICC.1:2001-04)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

# Red, green, blue in rows, as X, Y, Z adapted to D50.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def gamma(exponent: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(exponent * 256)) + bytes(2)


def table(size: int) -> bytes:
    """The curve of sRGB as a table."""
    x = np.linspace(0, 1, size)
    light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    values = (light * 65535).round().astype(">u2").tobytes()
    return b"curv" + struct.pack(">II", 0, size) + values + bytes(-len(values) % 4)


def formula() -> bytes:
    """The curve of sRGB as a formula."""
    numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para" + struct.pack(">IHH", 0, 3, 0) + struct.pack(">5i", *(round(n * 65536) for n in numbers))


def profile(name: str, primaries: Sequence[Sequence[float]] | None, curve: bytes, version: int = 2) -> bytes:
    """Return a display profile with primaries and one curve; without primaries, one for grey."""
    tags: list[tuple[bytes, bytes]] = [(b"wtpt", _xyz((0.9642, 1, 0.8249)))]
    text = name.encode() + b"\0"
    tags.append((b"desc", b"desc" + struct.pack(">II", 0, len(text)) + text + bytes(78)))
    if primaries is None:
        tags.append((b"kTRC", curve))
    else:
        tags += [
            (key, _xyz(values)) for key, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
        ]
        tags += [(key, curve) for key in (b"rTRC", b"gTRC", b"bTRC")]
    place, head, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, data in tags:
        data += bytes(-len(data) % 4)
        head += key + struct.pack(">II", place + len(body), len(data))
        body += data
    space = b"GRAY" if primaries is None else b"RGB "
    start = struct.pack(
        ">I4sI4s4s4s12x4s28x", place + len(body), b"none", version << 24, b"mntr", space, b"XYZ ", b"acsp"
    )
    return start.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + head + body


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))
