"""Convert colours of files to sRGB: embedded ICC profiles, Lab and CMYK.

A profile is recognised by its primaries and curves, never by its name. Its description is never read:
LittleCMS trusts the length that it declares, so that two kilobytes could make it allocate hundreds of
megabytes.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

# Layout of headers, tags, curv and para: ICC.1:2001-04 (version 2) and ICC.1:2022 (version 4.4).
# The primaries of sRGB (IEC 61966-2-1), in rows X, Y, Z, adapted to the D50 white of profiles (Bradford).
_SRGB_PRIMARIES = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])
_SPACES = {"RGB": b"RGB ", "CMYK": b"CMYK", "L": b"GRAY"}
# A profile counts as sRGB up to these differences; small tables of its curve need the second.
_PRIMARY_TOLERANCE, _CURVE_TOLERANCE = 1 / 255, 1.5 / 255
_CHUNK = 1 << 18


def converts(profile: object, mode: str) -> bool:
    """Return whether an embedded profile changes pixels of this Pillow mode: made for them, and not sRGB."""
    if not isinstance(profile, bytes) or len(profile) < 132 or profile[16:20] != _SPACES.get(mode):
        return False
    return not _is_srgb(profile)


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert by the embedded ICC profile, so that an image looks as a viewer shows it.

    Left as they are: images without a profile, with one of sRGB's primaries and curves, with one that is
    damaged or made for other pixels, and all in colour where Pillow was built without LittleCMS.

    Args:
        image: of mode RGB, CMYK or L.

    Returns:
        An image of mode RGB or L, or the image itself.
    """
    embedded = image.info.get("icc_profile")
    if not isinstance(embedded, bytes) or not converts(embedded, image.mode):
        return image
    if image.mode == "L":
        levels = grey_to_srgb(np.arange(256) / 255, embedded)
        return image.point((levels * 255).round().astype(np.uint8).tolist())
    try:
        profile, srgb = ImageCms.ImageCmsProfile(io.BytesIO(embedded)), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
        return image
    return image if converted is None else converted


def grey_to_srgb(values: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert grey by the curve of a profile.

    Args:
        values: any shape, in [0, 1].
        profile: an ICC profile for grey.

    Returns:
        The same shape, float32 in [0, 1]; the values as they are where the profile is damaged.
    """
    converted = values.astype(np.float32, order="C")
    flat = converted.reshape(-1)
    try:
        curve = _tags(profile)[b"kTRC"]
        for start in range(0, flat.size, _CHUNK):  # in chunks, since float64 takes memory
            part = flat[start : start + _CHUNK]
            part[...] = _encoded(_linear(curve, part.astype(np.float64)))
    except (KeyError, ValueError, IndexError, struct.error):
        return values.astype(np.float32)
    return converted


def _is_srgb(profile: bytes) -> bool:
    """Return whether a profile has the primaries and curves of sRGB, or for grey its curve, and no tables."""
    try:
        tags = _tags(profile)
        if any(name.startswith(b"A2B") for name in tags):
            return False
        if profile[16:20] == b"GRAY":
            return _is_srgb_curve(tags[b"kTRC"])
        if profile[16:24] != b"RGB XYZ ":
            return False
        primaries = np.array([_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]).T
        is_same = bool((abs(primaries - _SRGB_PRIMARIES) <= _PRIMARY_TOLERANCE).all())
        return is_same and all(_is_srgb_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
    except (KeyError, ValueError, IndexError, struct.error):
        return False


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack(">I", profile[128:132])
    found = {}
    for start in range(132, min(132 + 12 * count, len(profile) - 11), 12):
        name, offset, size = struct.unpack(">4sII", profile[start : start + 12])
        found[name] = profile[offset : offset + size]
    return found


def _xyz(tag: bytes) -> tuple[float, ...]:
    if tag[:4] != b"XYZ ":
        raise ValueError("no XYZ")
    return tuple(value / 65536 for value in struct.unpack(">3i", tag[8:20]))


def _is_srgb_curve(tag: bytes) -> bool:
    encoded = np.arange(256) / 255
    return bool((abs(_encoded(_linear(tag, encoded)) - encoded) <= _CURVE_TOLERANCE).all())


def _linear(tag: bytes, x: np.ndarray) -> np.ndarray:
    """Return linear light of values in [0, 1], by a curve of a profile."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack(">I", tag[8:12])
        if count == 0:
            return x
        table = np.frombuffer(tag, ">u2", count, 12)
        if count == 1:
            return np.asarray(x ** (table[0] / 256))
        return np.asarray(np.interp(x, np.linspace(0, 1, count), table / 65535))
    if tag[:4] != b"para":
        raise ValueError("no curve")
    (kind,) = struct.unpack(">H", tag[8:10])
    count = (1, 3, 4, 5, 7)[kind]
    values = [value / 65536 for value in struct.unpack(f">{count}i", tag[12 : 12 + 4 * count])]
    g, a, b, c, d, e, f = values + [0.0] * (7 - count)
    if kind == 0:
        return np.asarray(x**g)
    if kind in (1, 2):  # (ax + b)^g + c from -b/a on, else c
        return np.asarray(np.maximum(a * x + b, 0) ** g + c)
    return np.asarray(np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f))


def _encoded(linear: np.ndarray) -> np.ndarray:
    """Return sRGB values of light, both in [0, 1]."""
    light = np.clip(linear, 0, 1)
    return np.asarray(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Convert CIE Lab, relative to D50 as profiles and TIFF have it, to sRGB.

    Args:
        lab: (3, …), L in [0, 100], a and b around 0.

    Returns:
        The same shape, float32 in [0, 1]; colours outside sRGB are clipped.
    """
    y = (lab[0] + 16) / 116
    f = np.stack([y + lab[1] / 500, y, y - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * (108 / 841))
    to_rgb = np.linalg.inv(_SRGB_PRIMARIES) * _D50
    return _encoded(np.einsum("rx,x...->r...", to_rgb, xyz)).astype(np.float32)
