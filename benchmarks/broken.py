"""Malformed files, and seeded ways to damage valid ones, for `fuzz.py` and the tests."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageCms

Damage = Callable[[bytes, random.Random], bytes]


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Return smooth gradients with noise, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height))
    return (np.asarray(coarse) * 0.8 + rng.integers(0, 51, (height, width, 3))).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an encoded image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def good() -> dict[str, bytes]:
    """Return valid files by name, one of each format and colour mode of photographs."""
    rgb = Image.fromarray(picture())
    deep = Image.fromarray((np.arange(48 * 64, dtype=np.uint16) * 21).reshape(48, 64))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(picture(seed=1)[..., 0]))
    frames = [Image.fromarray(picture(seed=seed)) for seed in (2, 3)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ask: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "plain.jpg": (rgb, "JPEG", {"quality": 90}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True}),
        "grey.jpg": (rgb.convert("L"), "JPEG", {}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}),
        "odd-profile.jpg": (rgb, "JPEG", {"icc_profile": profile}),
        "exif.jpg": (rgb, "JPEG", {"exif": _turned(), "icc_profile": srgb}),
        "plain.png": (rgb, "PNG", {}),
        "deep.png": (deep, "PNG", {}),
        "alpha.png": (alpha, "PNG", {"icc_profile": srgb}),
        "palette.png": (rgb.quantize(16), "PNG", {}),
        "one-bit.png": (rgb.convert("1"), "PNG", {}),
        "animated.png": (rgb, "PNG", {"save_all": True, "append_images": frames}),
        "lossy.webp": (alpha, "WEBP", {}),
        "lossless.webp": (rgb, "WEBP", {"lossless": True}),
        "animated.webp": (rgb, "WEBP", {"save_all": True, "append_images": frames}),
        "plain.tif": (rgb, "TIFF", {}),
        "lzw.tif": (alpha, "TIFF", {"compression": "tiff_lzw"}),
        "jpeg.tif": (rgb, "TIFF", {"compression": "jpeg"}),
        "deep.tif": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "float.tif": (Image.fromarray(np.asarray(deep, np.float32) / 65535), "TIFF", {}),
        "cmyk.tif": (rgb.convert("CMYK"), "TIFF", {}),
        "animated.gif": (rgb.quantize(32), "GIF", {"save_all": True, "append_images": frames}),
        "plain.bmp": (rgb, "BMP", {}),
        "plain.ppm": (rgb, "PPM", {}),
        "plain.jp2": (rgb, "JPEG2000", {}),
        "plain.avif": (rgb, "AVIF", {}),
        "plain.qoi": (rgb, "QOI", {}),
        "pair.mpo": (rgb, "MPO", {"save_all": True, "append_images": frames}),
    }
    Image.init()
    if int(PIL.__version__.split(".")[0]) < 11:
        del ask["pair.mpo"]  # Pillow 10 cannot read the MPO that it writes
    known = {name: plan for name, plan in ask.items() if plan[1] in Image.SAVE}
    return {name: encoded(image, kind, **more) for name, (image, kind, more) in known.items()}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photograph"
    return exif


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG whose header claims a size, regardless of its data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def many_scans(side: int, scans: int) -> bytes:
    """Return a progressive JPEG with redundant scans, each over all of its blocks."""
    file = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    end = file.rindex(b"\xff\xda")  # only the last scan, a refinement, is repeated
    return file[:end] + file[end:-2] * scans + file[-2:]


def bad() -> dict[str, bytes]:
    """Return files that cannot be scored, by name."""
    whole = good()
    rng = random.Random(0)
    return {
        "empty.jpg": b"",
        "words.jpg": b"just words\n" * 40,
        "page.png": b"<html><body>404 Not Found</body></html>",
        "noise.jpg": rng.randbytes(4000),
        "zeros.png": bytes(4000),
        "truncated.jpg": whole["plain.jpg"][:300],
        "truncated.png": whole["plain.png"][:-400],
        "truncated.webp": whole["lossy.webp"][:60],
        "truncated.tif": whole["lzw.tif"][:500],
        "truncated.gif": whole["animated.gif"][:200],
        "bomb.png": png_of(60_000, 60_000),
        "large-bomb.png": png_of(2**31 - 1, 2**31 - 1),
        "no-pixels.png": png_of(7000, 7000),
        "flat.png": png_of(0, 10),
        "scans.jpg": many_scans(3000, 800),
        "pickle.jpg": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "script.gif": b"GIF89a<script>alert(1)</script>",
        "zip.png": b"PK\x03\x04" + rng.randbytes(300),
    }


# --- kinds of damage, by their name in the table ---


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        changed[rng.randrange(min(len(changed), 200))] = rng.randrange(256)
    return bytes(changed)


def numbers_changed(data: bytes, rng: random.Random) -> bytes:
    """Replace sizes, counts and offsets by values that often break programs."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2))):
        form = rng.choice((">H", "<H", ">I", "<I"))
        top = 2 ** (8 * struct.calcsize(form))
        value = rng.choice((0, 1, top // 2 - 1, top // 2, top - 1, 4000, 65_500)) % top
        start = rng.randrange(max(1, min(len(changed), 400) - 4))
        changed[start : start + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(changed)


def pieces_moved(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    piece, place = data[start:end], rng.randrange(len(data))
    return rng.choice((data[:start] + data[end:], data[:place] + piece * rng.choice((1, 3)) + data[place:]))


def spliced(data: bytes, rng: random.Random) -> bytes:
    other = rng.choice(list(good().values()))
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def noise_after_signature(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((4, 12, 16, 32))] + rng.randbytes(rng.randrange(600))


def profile_changed(data: bytes, rng: random.Random) -> bytes:
    """Return a valid file with a damaged colour profile."""
    kind = rng.choice(("sRGB", "LAB", "XYZ"))
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes())
    for _ in range(rng.choice((1, 4, 32))):
        profile[rng.randrange(len(profile))] = rng.randrange(256)
    mode = rng.choice(("RGB", "CMYK", "L"))
    image = Image.fromarray(picture(24, 24)).convert(mode)
    return encoded(image, rng.choice(("JPEG", "TIFF")), icc_profile=bytes(profile[: rng.choice((None, 200))]))


DAMAGE: dict[str, Damage] = {
    "cut off at any byte": truncated,
    "bits flipped anywhere": flipped,
    "bytes of the header changed": header_flipped,
    "sizes, counts and offsets changed": numbers_changed,
    "pieces removed or repeated": pieces_moved,
    "two files spliced": spliced,
    "noise behind a signature": noise_after_signature,
    "damaged colour profiles": profile_changed,
}
