"""Formats beside the common ones: BMP with an unset alpha, deep files, HEIC, JPEG XL, JPEG 2000."""

from __future__ import annotations

import builtins
import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pictures import encode, message, photo, planes
from qmamba.images import decode, formats

PIXELS = photo()


def bmp(alpha: np.ndarray | int, header: int = 108) -> bytes:
    """A 32-bit BMP with a mask for alpha."""
    height, width = PIXELS.shape[:2]
    rgba = np.dstack([PIXELS[..., ::-1], np.broadcast_to(np.uint8(alpha), (height, width))])[::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, 32, 3, len(rgba), 2835, 2835, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs"
    head = head.ljust(header, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + header + len(rgba), 0, 0, 14 + header) + head + rgba


@pytest.mark.parametrize("header", [108, 124])
def test_unset_alpha_of_a_bmp_is_opaque(header: int) -> None:
    for image in (bmp(0, header), Image.open(io.BytesIO(bmp(0, header))), bmp(255, header)):
        assert decode(image).equal(planes(PIXELS))
    loaded = Image.open(io.BytesIO(bmp(0, header)))
    loaded.load()
    assert decode(loaded).equal(planes(PIXELS))
    one = np.zeros(PIXELS.shape[:2], np.uint8)
    one[0, 0] = 255
    got = decode(bmp(one, header))
    assert got[:, 0, 0].tolist() == PIXELS[0, 0].tolist() and (got[:, 1:] == 255).all(), "alpha that is used"


def test_a_png_that_is_transparent_everywhere_is_white() -> None:
    rgba = np.dstack([PIXELS, np.zeros_like(PIXELS[..., 0])])
    assert (decode(encode(Image.fromarray(rgba))) == 255).all()


def png16(samples: np.ndarray, kind: int, key: bytes = b"") -> bytes:
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        + (chunk(b"tRNS", key) if key else b"") + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


def test_16_bits_show_what_8_bits_show() -> None:
    deep, grey = PIXELS.astype(np.int64) * 257, PIXELS[..., :1]
    alpha = photo(seed=1)[..., :1].astype(np.int64)
    share = alpha / 255
    white = [
        (png16(deep, 2), PIXELS),
        (png16(np.dstack([deep, alpha * 257]), 6), PIXELS * share + 255 * (1 - share)),
        (png16(np.dstack([deep[..., :1], alpha * 257]), 4), grey * share + 255 * (1 - share)),
        (png16(deep[..., 0], 0), grey),
        (b"P6 36 24 65535\n" + deep.astype(">u2").tobytes(), PIXELS),
        (b"P6 36 24 1023\n" + np.round(PIXELS / 255 * 1023).astype(">u2").tobytes(), PIXELS),
        (b"P5 36 24 4095\n" + np.round(grey / 255 * 4095).astype(">u2").tobytes(), grey),
        (b"P5 36 24 200\n" + np.round(grey / 255 * 200).astype("u1").tobytes(), grey),
    ]
    for data, want in white:
        got = decode(data)
        shown = got if got.is_floating_point() else got / 255
        assert abs(shown.permute(1, 2, 0).numpy() * 255 - want).max() <= 1.001, data[:20]
    key = png16(deep, 2, struct.pack(">HHH", *deep[5, 5].tolist()))
    assert decode(key)[:, 5, 5].tolist() == [255] * 3


def test_deep_colour_of_jpeg_2000_is_refused() -> None:
    for options in ({"no_jp2": True}, {}):
        data = bytearray(encode(Image.fromarray(PIXELS), "JPEG2000", **options))
        assert decode(bytes(data)).shape == (3, 24, 36) and formats.jpeg2000_depth(io.BytesIO(data)) == 8
        size = data.index(b"\xff\x4f\xff\x51") + 42
        assert data[size : size + 9 : 3] == bytes([7, 7, 7])
        for depth in (10, 12, 16):
            data[size : size + 9 : 3] = bytes([depth - 1] * 3)
            assert "more than 8 bits" in message(bytes(data))
    grey = encode(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "JPEG2000")
    assert torch.allclose(decode(grey)[0], planes(PIXELS)[0] / 255, atol=1e-4)


# --- HEIC and JPEG XL

HEIC_HEAD = b"\0\0\0\x18ftyp%s\0\0\0\0mif1" + bytes(32)
BRANDS = [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"]


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's plugins as if they were not installed."""
    importing = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] in ("pillow_heif", "pillow_jxl"):
            raise ImportError(name)
        return importing(name, *rest, **options)

    for name in [name for name in sys.modules if name.split(".")[0] in ("pillow_heif", "pillow_jxl")]:
        monkeypatch.delitem(sys.modules, name)
    for kind in ("HEIF", "JXL"):
        if kind in Image.OPEN:
            monkeypatch.delitem(Image.OPEN, kind)
    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize("brand", BRANDS)
def test_without_its_plugin_heic_is_named(brand: bytes, no_plugins: None) -> None:
    text = message(HEIC_HEAD % brand)
    assert "pillow-heif" in text and 'pip install "qmamba[heif]"' in text


def jxl_header(height: int, width: int, box: bytes = b"") -> bytes:
    """The beginning of a JPEG XL codestream of a size, in a container where `box` names one."""
    bits = at = 0

    def put(value: int, count: int) -> None:
        nonlocal bits, at
        bits |= value << at
        at += count

    def length(value: int) -> None:
        place = next(i for i, count in enumerate((9, 13, 18, 30)) if value - 1 < 1 << count)
        put(place, 2)
        put(value - 1, (9, 13, 18, 30)[place])

    put(0, 1)
    length(height)
    put(0, 3)
    length(width)
    stream = b"\xff\x0a" + bits.to_bytes(24, "little")
    if not box:
        return stream
    stream = b"\0\0\0\0" + stream if box == b"jxlp" else stream
    start = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
    return start + struct.pack(">I4s", 8 + len(stream), box) + stream


@pytest.mark.parametrize("box", [b"", b"jxlc", b"jxlp"])
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(box: bytes, no_plugins: None) -> None:
    for size in ((24, 36), (1, 9000), (70_000, 3), (2**29, 2**29)):
        assert formats.jxl_size(io.BytesIO(jxl_header(*size, box))) == size
    assert "megapixels" in message(jxl_header(60_000, 60_000, box))
    assert "pillow-jxl-plugin" in message(jxl_header(24, 36, box))
    assert "damaged" in message(jxl_header(24, 36, box)[:-20])


def test_small_and_related_sizes_of_jpeg_xl() -> None:
    # div8 = 1, height 8 · (2 + 1); ratio 5: 16 : 9 of it
    bits = 1 | 2 << 1 | 5 << 6
    assert formats.jxl_size(io.BytesIO(b"\xff\x0a" + bits.to_bytes(16, "little"))) == (24, 42)


def test_heic_with_its_plugin(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, mode in (("RGB", "RGB"), ("RGBA", "RGBA"), ("L", "L")):
        image = Image.fromarray(photo(64, 96)).convert(mode)
        buffer = io.BytesIO()
        heif.from_pillow(image).save(buffer, quality=-1)
        got = decode(buffer.getvalue())
        assert (got.float() - planes(np.asarray(image.convert("RGB"))).float()).abs().mean() < 3, kind
        path = tmp_path / "a.heic"
        path.write_bytes(buffer.getvalue())
        assert decode(path).equal(got)
        assert "damaged" in message(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        turned = io.BytesIO()
        heif.from_pillow(image).save(turned, quality=-1, exif=exif.tobytes())
        with heif.HeifImageFile(turned) as seen:
            assert decode(turned.getvalue()).shape[1:] == ImageOps.exif_transpose(seen).size[::-1]
    assert "max_pixels" in message(buffer.getvalue(), max_pixels=99)


def test_jpeg_xl_with_its_plugin() -> None:
    pytest.importorskip("pillow_jxl", reason="needs pillow-jxl-plugin")
    for mode in ("RGB", "RGBA", "L", "LA"):
        image = Image.fromarray(PIXELS).convert(mode)
        data = encode(image, "JXL", lossless=True)
        assert decode(data).equal(planes(np.asarray(image.convert("RGB"))))
        assert "max_pixels" in message(data, max_pixels=99)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(PIXELS), "JXL", lossless=True, exif=exif.tobytes())
    assert decode(data).equal(planes(PIXELS)), "its pixels are upright already"
    for keep in range(0, len(data) - 1, len(data) // 20):
        assert message(data[:keep] or b"\xff")


def test_formats_that_are_not_read_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(32)
    decoded = message(avif)
    assert "damaged" in decoded or "not an image" in decoded or "Pillow 11.3" in decoded
    if "AVIF" in Image.OPEN:
        monkeypatch.delitem(Image.OPEN, "AVIF")
        assert "Pillow 11.3" in message(avif)
