"""TIFF: every layout is shown as what it is, against its 8-bit twin, or refused in one line."""

from __future__ import annotations

import io
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import qmamba
from pictures import message, photo
from qmamba.images import decode
from tiffs import DEFLATE, LZW, PACKBITS, tiff

RGB, GREY = photo(), photo()[..., :1]
CMYK = np.dstack([photo(seed=1), photo(seed=2)[..., 0] // 2])
LAB = np.dstack([GREY, np.full_like(GREY, 150), np.full_like(GREY, 90)])  # a and b with zero at 128
WHITE, BLACK, COLOUR, PALETTE, INKS, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 8, 9


def shown(image: Any) -> np.ndarray:
    """(H, W, 3) in 255ths."""
    pixels = decode(image)
    unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return unit.permute(1, 2, 0).numpy() * 255


def lab_shown(lab: np.ndarray) -> np.ndarray:
    """sRGB of 8-bit Lab by the formulas of CIE 15 and IEC 61966-2-1, in 255ths."""
    lightness, a, b = lab[..., 0] / 2.55, lab[..., 1] - 128.0, lab[..., 2] - 128.0
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    to_rgb = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    light = np.clip(xyz @ np.array(to_rgb).T, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def case(photometric: int, bits: int, kind: str) -> tuple[np.ndarray, np.ndarray, dict[int, Any]] | None:
    """Samples, what they show in 255ths, and further fields; None where the format has no such image."""
    most = 1 if kind == "f" else (1 << bits) - 1
    if photometric == PALETTE:
        if kind == "f" or bits > 16:
            return None
        index = np.round(GREY / 255 * most).astype(np.int64)
        ramp = np.round(np.arange(most + 1) / most * 255).astype(np.int64)
        colours = np.stack([ramp, ramp[::-1], np.full_like(ramp, 7)])
        return index, colours[:, index[..., 0]].transpose(1, 2, 0), {320: ("H", colours * 257)}
    if photometric in (CIELAB, ICCLAB):
        if kind == "f" or bits not in (8, 16):
            return None
        scale = np.ones(3) if bits == 8 else np.array([257 if photometric == CIELAB else 256, 256, 256])
        samples = (LAB * scale).astype(np.int64)
        if photometric == CIELAB:
            samples[..., 1:] ^= 1 << bits - 1
        return samples, lab_shown(LAB), {}
    eight = {WHITE: GREY, BLACK: GREY, COLOUR: RGB, INKS: CMYK}[photometric]
    samples = eight / 255 if kind == "f" else np.round(eight / 255 * most)
    unit = samples / most
    if photometric == INKS:
        return samples, (1 - unit[..., :3]) * (1 - unit[..., 3:]) * 255, {}
    if photometric == WHITE:
        unit = 1 - unit
    return samples, np.broadcast_to(unit, RGB.shape) * 255, {}


PHOTOMETRICS = (WHITE, BLACK, COLOUR, PALETTE, INKS, CIELAB, ICCLAB)
DEPTHS = [
    *((bits, "u") for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16, 32)),
    *((bits, "f") for bits in (16, 32, 64)),
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("photometric", PHOTOMETRICS)
def test_every_layout_is_its_8_bit_twin(photometric: int, planar: int, order: str) -> None:
    for bits, kind in DEPTHS:
        made = case(photometric, bits, kind)
        if made is None or (planar == 2 and made[0].shape[2] == 1):
            continue
        samples, want, tags = made
        data = tiff(samples, photometric, bits=bits, kind=kind, planar=planar, order=order, tags=tags)
        error = abs(shown(data) - want).max()
        assert error <= 1.001, (bits, kind, error)


STORED: list[dict[str, Any]] = [
    {"rows": 7}, {"tile": (16, 16)}, {"tile": (32, 48)}, {"rows": 5, "fill_order": 2}, {"big": True},
    {"rows": 7, "compression": LZW}, {"tile": (16, 16), "compression": DEFLATE}, {"compression": PACKBITS},
    {"rows": 5, "compression": DEFLATE, "predictor": 2},
    {"tile": (16, 32), "compression": LZW, "predictor": 2},
    {"rows": 5, "compression": LZW, "fill_order": 2}, {"big": True, "compression": DEFLATE},
]  # fmt: skip


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_however_it_is_stored(stored: dict[str, Any]) -> None:
    wide = {"bits": 16, "kind": "f"}
    for kind, planar, order in itertools.product((8, 12, 16, 32, wide), (1, 2), "<>"):
        bits, number = (kind["bits"], kind["kind"]) if isinstance(kind, dict) else (kind, "u")
        if "predictor" in stored and (bits == 12 or number == "f"):
            continue
        made = case(COLOUR, bits, number)
        assert made is not None
        data = tiff(made[0], COLOUR, bits=bits, kind=number, planar=planar, order=order, **stored)
        assert abs(shown(data) - made[1]).max() <= 1.001, (bits, number, planar, order)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_predicted_floats(bits: int) -> None:
    for planar, count in itertools.product((1, 2), (1, 3)):
        samples = RGB[..., :count] / 255
        data = tiff(
            samples, COLOUR if count == 3 else BLACK, bits=bits, kind="f", planar=planar,
            compression=DEFLATE, predictor=3, rows=5,
        )  # fmt: skip
        assert abs(shown(data) - samples * 255).max() <= 0.2


def test_a_palette_whose_map_has_8_bits() -> None:
    index = GREY // 16
    colours = np.random.default_rng(0).integers(0, 256, (3, 16))
    want = colours[:, index[..., 0]].transpose(1, 2, 0)
    for scale in (1, 256, 257):
        data = tiff(index, PALETTE, bits=4, tags={320: ("H", colours * scale)})
        assert abs(shown(data) - want).max() == 0, scale
    black = tiff(index, PALETTE, bits=4, tags={320: ("H", colours * 0)})
    assert shown(black).max() == 0


@pytest.mark.parametrize(("bits", "planar"), [(8, 1), (8, 2), (12, 1), (16, 1), (16, 2), (32, 1)])
def test_alpha_lies_on_white(bits: int, planar: int) -> None:
    alpha = photo(seed=3)[..., :1]
    most = (1 << bits) - 1
    share = np.round(alpha / 255 * most) / most
    for base, photometric in ((RGB, COLOUR), (GREY, BLACK)):
        unit = np.round(base / 255 * most) / most
        want = np.broadcast_to(unit * share + 1 - share, RGB.shape) * 255
        for kind, colours in ((2, unit), (1, unit * share)):
            samples = np.round(np.dstack([colours, share]) * most)
            data = tiff(samples, photometric, bits=bits, planar=planar, tags={338: ("H", kind)})
            # Pillow divides premultiplied colours by a small alpha, in 8 bits.
            seen = share[..., 0] > (0.25 if kind == 1 else -1)
            assert abs(shown(data) - want)[seen].max() <= 2, (photometric, kind)
        data = tiff(
            np.dstack([unit, share]) * most, photometric, bits=bits, planar=planar, tags={338: ("H", 0)}
        )
        assert abs(shown(data) - np.broadcast_to(unit, RGB.shape) * 255).max() <= 1, "neither is alpha"


def test_a_fourth_sample_that_nothing_describes() -> None:
    for bits in (8, 16):
        unit = RGB.astype(np.int64) * (1 if bits == 8 else 257)
        for fill, want in ((0, RGB), ((1 << bits) - 1, RGB)):
            data = tiff(np.dstack([unit, np.full_like(unit[..., 0], fill)]), COLOUR, bits=bits)
            assert abs(shown(data) - want).max() <= 0.01, (bits, fill)
        half = np.full_like(unit[..., 0], ((1 << bits) - 1) // 2)
        assert abs(shown(tiff(np.dstack([unit, half]), COLOUR, bits=bits)) - (RGB / 2 + 127.5)).max() <= 1.5


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(bits: int, orientation: int) -> None:
    most = (1 << bits) - 1
    flag = {274: ("H", orientation)}
    data = tiff(np.round(RGB / 255 * most), COLOUR, bits=bits, planar=2, tags=flag)
    assert np.array_equal(shown(data).round(), shown(tiff(RGB, COLOUR, tags=flag)).round())


def swapped_profile() -> bytes:
    """sRGB with red and blue swapped."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ"), data.index(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


def test_a_profile_counts_for_16_bits_as_for_8() -> None:
    profile = {34675: ("B", list(swapped_profile()))}
    twin = shown(tiff(RGB, COLOUR, tags=profile))
    assert abs(twin - RGB[..., ::-1]).mean() < 3
    for planar in (1, 2):
        data = tiff(RGB.astype(np.int64) * 257, COLOUR, bits=16, planar=planar, tags=profile)
        assert abs(shown(data) - twin).max() <= 1
    assert abs(shown(tiff(RGB / 255, COLOUR, bits=32, kind="f", tags=profile)) - twin).max() <= 1


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("signed", {"kind": "i", "bits": 16}, "signed integers"),
    ("signed bytes", {"kind": "i"}, "signed integers"),
    ("complex", {"bits": 64, "tags": {339: ("H", 6)}}, "neither integers nor floats"),
    ("64 bits", {"bits": 64}, "black-is-zero of 64 bits"),
    ("bits of two kinds", {"tags": {258: ("H", [8, 16, 8]), 262: ("H", 2)}, "count": 3}, "8/16 bits"),
    ("mask", {"tags": {262: ("H", 4)}}, "transparency mask"),
    ("LogLuv", {"tags": {262: ("H", 32845)}, "count": 3}, "LogLuv"),
    ("ITU Lab", {"tags": {262: ("H", 10)}, "count": 3}, "ITU Lab"),
    ("unknown", {"tags": {262: ("H", 77)}}, "photometric interpretation is 77"),
    ("float Lab", {"tags": {262: ("H", 8)}, "count": 3, "bits": 32, "kind": "f"}, "32 bits, floats"),
    ("other inks", {"tags": {262: ("H", 5), 332: ("H", 2)}, "count": 4}, "inks"),
    ("see-through inks", {"tags": {262: ("H", 5), 338: ("H", 2)}, "count": 5}, "CMYK with alpha"),
    ("two grey samples", {"count": 2}, "2 samples per pixel"),
    ("three grey samples", {"count": 3}, "3 samples per pixel"),
    ("JPEG 2000", {"tags": {259: ("H", 34712)}}, "compression is number 34712"),
    ("12-bit JPEG", {"tags": {259: ("H", 7)}, "bits": 12}, "of 12 bits"),
    ("YCbCr", {"tags": {262: ("H", 6)}, "count": 3}, "subsampled chroma"),
    ("predictor", {"tags": {317: ("H", 9)}, "bits": 16, "compression": DEFLATE}, "predictor is number 9"),
    ("predicted 12 bits", {"tags": {317: ("H", 2)}, "bits": 12, "compression": DEFLATE}, "have 12 bits"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "word"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_other_layouts_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    options = dict(options)
    samples = np.repeat(GREY // 2, options.pop("count", 1), axis=2)
    photometric = options["tags"].pop(262)[1] if 262 in options.get("tags", {}) else BLACK
    for order in "<>":
        text = message(tiff(samples, photometric, order=order, **options))
        assert word in text and "kind of TIFF is not read" in text and "save it as" in text


def test_floats_outside_the_unit_range_are_refused() -> None:
    assert "divide by 255" in message(tiff(RGB.astype(float), COLOUR, bits=32, kind="f"))
    assert "NaN" in message(tiff(RGB * np.nan, COLOUR, bits=32, kind="f"))


def pages(*images: tuple[bytes, int | None], below: bytes | None = None) -> bytes:
    """TIFF files of one little-endian image each as the pages of one, each with its NewSubfileType.

    `below` hangs, as SubIFDs, on the first, which must have a field 330.
    """
    out = bytearray(b"II*\0\x08\0\0\0")
    link = 4

    def append(image: bytes, kind: int | None) -> int:
        shift = len(out) - 8
        body = bytearray(image[8:])
        (count,) = struct.unpack_from("<H", body, 0)
        for start in range(2, 2 + 12 * count, 12):
            tag, code, number = struct.unpack_from("<HHI", body, start)
            size = number * {1: 1, 3: 2, 4: 4}[code]
            if tag == 254 and kind is not None:
                struct.pack_into("<I", body, start + 8, kind)
            if size > 4:
                (place,) = struct.unpack_from("<I", body, start + 8)
                struct.pack_into("<I", body, start + 8, place + shift)
            elif tag == 273:
                struct.pack_into("<I", body, start + 8, struct.unpack_from("<I", body, start + 8)[0] + shift)
            if tag == 273 and size > 4:
                for i in range(number):
                    at = place - 8 + 4 * i
                    struct.pack_into("<I", body, at, struct.unpack_from("<I", body, at)[0] + shift)
        place = len(out)
        out.extend(body)
        return place

    for image, kind in images:
        at = append(image, kind)
        struct.pack_into("<I", out, link, at)
        (count,) = struct.unpack_from("<H", out, at)
        link = at + 2 + 12 * count
    if below is not None:
        at = append(below, None)
        (count,) = struct.unpack_from("<H", out, 8)
        for start in range(10, 10 + 12 * count, 12):
            if struct.unpack_from("<H", out, start)[0] == 330:
                struct.pack_into("<I", out, start + 8, at)
    return bytes(out)


KIND = {254: ("I", 0)}
SMALL = np.asarray(Image.fromarray(RGB).resize((12, 8)))


def test_a_thumbnail_is_never_taken_for_the_picture() -> None:
    big, small = tiff(RGB, COLOUR, tags=KIND), tiff(SMALL, COLOUR, tags=KIND)
    assert np.array_equal(shown(pages((small, 1), (big, 0))), RGB)
    assert np.array_equal(shown(pages((small, 1), (small, 1), (big, 0))), RGB)
    assert shown(pages((small, 1))).shape == (8, 12, 3), "there is nothing else"
    with_old = tiff(SMALL, COLOUR, tags={255: ("H", 2)})
    assert np.array_equal(shown(pages((with_old, None), (big, 0))), RGB)
    below = tiff(SMALL, COLOUR, tags={**KIND, 330: ("I", 0)})
    assert np.array_equal(shown(pages((below, 1), below=big)), RGB)
    jpeg = io.BytesIO()
    Image.fromarray(RGB).save(jpeg, "TIFF", compression="jpeg")
    assert "behind its thumbnail" in message(pages((small, 1), (tiff(RGB, COLOUR, tags={259: ("H", 7)}), 0)))


def test_pages_and_pyramids_show_their_first_image() -> None:
    big, small = tiff(RGB, COLOUR, tags={**KIND, 330: ("I", 0)}), tiff(SMALL, COLOUR, tags=KIND)
    assert np.array_equal(shown(pages((big, 0), (small, 1))), RGB)
    assert np.array_equal(shown(pages((big, 0), below=small)), RGB)
    assert shown(pages((small, 0), (big, 0))).shape == (8, 12, 3)


def raw_files() -> dict[str, bytes]:
    """Raw camera files as far as their signs go: each has a small picture that must not be scored."""
    mosaic = tiff(GREY.astype(np.int64) * 64, 32803, bits=16)
    linear = tiff(RGB.astype(np.int64) * 64, 34892, bits=16)
    below = tiff(SMALL, COLOUR, tags={**KIND, 330: ("I", 0)})
    version = {**KIND, 50706: ("B", [1, 4, 0, 0])}
    cr2 = bytearray(tiff(SMALL, COLOUR))
    cr2[4:8] = struct.pack("<I", 16)
    return {
        "mosaic below": pages((below, 1), below=mosaic),
        "mosaic below, unmarked": pages((below, 0), below=mosaic),
        "linear below": pages((below, 1), below=linear),
        "mosaic first": mosaic,
        "mosaic second": pages((tiff(SMALL, COLOUR, tags=KIND), 1), (mosaic, None)),
        "version": tiff(SMALL, COLOUR, tags=version),
        "version, big-endian": tiff(SMALL, COLOUR, order=">", tags=version),
        "Nikon": pages((below, 1), below=tiff(GREY, BLACK, tags={259: ("H", 34713)})),
        "Sony": pages((below, 1), below=tiff(GREY, BLACK, tags={259: ("H", 32767)})),
        "Pentax": tiff(GREY, BLACK, tags={259: ("H", 65535)}),
        "Canon": bytes(cr2[:8]) + b"CR\x02\0" + bytes(4) + bytes(cr2[8:]),
        "Canon, third": b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom" + bytes(64),
        "Canon, first": b"II\x1a\0\0\0HEAPCCDR\x02\0" + bytes(64),
        "Fujifilm": b"FUJIFILMCCD-RAW 0201FF383501" + bytes(64),
        "Olympus": b"IIRO\x08\0\0\0" + bytes(64),
        "Panasonic": b"IIU\0\x18\0\0\0" + bytes(64),
        "Sigma": b"FOVb\x02\0\x02\0" + bytes(64),
        "Minolta": b"\0MRM\0\x01\x02\x03" + bytes(64),
    }


@pytest.mark.parametrize("name", raw_files())
def test_raw_camera_files_are_called_so(name: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.raw"
    path.write_bytes(raw_files()[name])
    assert "raw camera file" in message(path) and "develop it" in message(path)


@pytest.mark.parametrize("name", ["mosaic below", "version", "Nikon", "Sony"])
def test_raw_camera_files_that_pillow_has_opened(name: str) -> None:
    with Image.open(io.BytesIO(raw_files()[name])) as image:
        assert "raw camera file" in message(image)


def test_damaged_directories_are_one_line() -> None:
    data = tiff(RGB.astype(np.int64) * 257, COLOUR, bits=16, planar=2, rows=6)
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for place in rng.integers(4, 260, 3):
            broken[place] = rng.integers(256)
        try:
            assert shown(bytes(broken)).ndim == 3
        except ValueError as error:
            assert "\n" not in str(error)
    for keep in range(8, len(data), 97):
        text = message(data[:keep])
        assert "truncated" in text or "damaged" in text


def test_blocks_that_lie_take_no_memory() -> None:
    tags = {322: ("I", 1 << 20), 323: ("I", 1 << 20)}
    data = tiff(RGB.astype(np.int64), COLOUR, bits=16, tile=(32, 48), tags=tags)
    assert "damaged" in message(data)
    assert "megapixels" in message(tiff(RGB.astype(np.int64), COLOUR, bits=16, tags={256: ("I", 1 << 24)}))


@pytest.mark.parametrize("how", ["lazy", "loaded"])
def test_tiff_that_pillow_has_opened(how: str, tmp_path: Path) -> None:
    deep, grey = RGB.astype(np.int64) * 257, GREY.astype(np.int64)
    path = tmp_path / "a.tif"
    for data, want, is_right in (
        (tiff(RGB, COLOUR), RGB, True),
        (tiff(RGB, COLOUR, planar=2), RGB, True),
        (tiff(deep, COLOUR, bits=16), RGB, True),
        (tiff(grey * 257, BLACK, bits=16), GREY, True),
        (tiff(deep, COLOUR, bits=16, planar=2), RGB, False),
        (tiff(grey * 257, WHITE, bits=16), 255 - GREY, False),
        (tiff(np.round(GREY / 255 * 4095), BLACK, bits=12), GREY, False),
        (tiff(GREY / 255, WHITE, bits=32, kind="f"), 255 - GREY, False),
    ):
        path.write_bytes(data)
        with Image.open(path) as image:
            if how == "loaded":
                image.load()
            if is_right or how == "lazy":
                assert abs(shown(image) - want).max() <= 1
            else:
                assert "pass its path" in message(image)


MEASURE = """
import sys
from qmamba.images import decode
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
decode(sys.argv[1])
before = peak()
decode(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("stored", [{"planar": 2}, {"compression": DEFLATE}], ids=str)
def test_memory_of_deep_colours_is_bounded_by_the_pixels(stored: dict[str, Any], tmp_path: Path) -> None:
    for name, size in (("small", (16, 16)), ("large", (2000, 2500))):
        data = tiff(np.zeros((*size, 4), np.uint16), COLOUR, bits=16, tags={338: ("H", 2)}, **stored)
        (tmp_path / name).write_bytes(data)
    source = str(Path(qmamba.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": source},
    )  # fmt: skip
    assert int(done.stdout) <= 30 * 5_000_000, "the bytes per pixel that docs/robustness.md states"
