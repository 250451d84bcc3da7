"""Decoding: each kind of input gives the pixels that a viewer shows; no global setting changes."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from pictures import encode, message, photo, planes
from qmamba.errors import ImageError
from qmamba.images import as_list, decode, iterate, label

# --- each kind of input


def test_every_kind_gives_the_same_pixels(tmp_path: Path) -> None:
    pixels = photo()
    path = tmp_path / "photo ü.png"
    path.write_bytes(encode(Image.fromarray(pixels)))
    data = path.read_bytes()
    kinds: list[Any] = [
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        Image.open(path),
        Image.fromarray(pixels),
        pixels,
        pixels[::-1][::-1],
        np.asfortranarray(pixels),
        planes(pixels),
    ]
    for image in kinds:
        got = decode(image)
        assert got.dtype == torch.uint8 and got.is_contiguous()
        assert torch.equal(got, planes(pixels)), type(image)


def test_floats_keep_their_values() -> None:
    pixels = photo()
    unit = pixels.astype(np.float32) / 255
    for image in (unit, unit.astype(np.float64), torch.from_numpy(unit).permute(2, 0, 1)):
        got = decode(image)
        assert got.dtype == torch.float32 and got.shape == (3, 24, 36)
        assert torch.allclose(got, planes(unit), atol=1e-7)
    assert decode(unit.astype(">f4")).equal(planes(unit))
    assert decode(torch.full((3, 4, 4), 0.5, dtype=torch.float16)).dtype == torch.float32


def test_grey_and_other_number_types() -> None:
    grey = photo()[..., 0]
    want = torch.from_numpy(grey.copy()).expand(3, -1, -1)
    assert decode(grey).equal(want) and decode(grey[..., None]).equal(want)
    assert decode(torch.from_numpy(grey.copy())[None]).equal(want)
    deep = grey.astype(np.uint16) * 257
    assert torch.allclose(decode(deep), want / 255, atol=1e-6)
    assert torch.allclose(decode(deep.astype(">u2")), want / 255, atol=1e-6)
    assert torch.allclose(decode(torch.from_numpy(deep)[None]), want / 255, atol=1e-6)
    assert decode(grey > 100).equal((want > 100).to(torch.uint8) * 255)
    assert decode(want[:1] > 100).equal((want > 100).to(torch.uint8) * 255)


def test_slight_overshoot_is_clipped_and_no_more() -> None:
    image = torch.full((3, 4, 4), 0.5)
    image[0, 0, 0], image[1, 1, 1] = 1.0005, -0.0005
    got = decode(image)
    assert got.max() == 1 and got.min() == 0
    assert image.max() > 1, "the input must stay as it was"
    image[0, 0, 0] = 1.002
    assert "[0, 1]" in message(image)


def test_result_of_an_array_is_a_copy() -> None:
    pixels = photo().copy()
    got = decode(pixels)
    pixels[:] = 0
    assert got.float().mean() > 1
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(pixels)


def test_a_tensor_with_a_gradient_is_detached() -> None:
    assert not decode(torch.rand(3, 8, 8, requires_grad=True)).requires_grad


# --- colour modes


@pytest.mark.parametrize(
    "mode", ["L", "P", "1", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBA", "RGBa", "LA", "La", "PA"]
)
def test_pillow_modes(mode: str) -> None:
    image = Image.fromarray(photo())
    if mode == "La":
        image = image.convert("LA")
    elif mode == "RGBa":
        image = image.convert("RGBA")
    converted = image.convert(mode)
    got = decode(converted)
    assert got.dtype == torch.uint8 and got.shape == (3, 24, 36)
    if mode in ("L", "LA", "La"):
        want = np.asarray(image.convert("L").convert("RGB"))
    elif mode == "1":
        want = np.asarray(converted.convert("RGB"))
        assert set(np.unique(got)) == {0, 255}
    else:
        want = photo()
    error = (got.float() - planes(want).float()).abs().mean()
    assert error < (40 if mode in ("P", "PA") else 4), float(error)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_images(mode: str) -> None:
    deep = photo()[..., 0].astype(np.uint16) * 257
    if mode == "I":
        image = Image.fromarray(deep.astype(np.int32))
    else:
        image = Image.frombytes(mode, (36, 24), deep.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert image.mode == mode
    assert torch.allclose(decode(image)[0], torch.from_numpy(deep / 65535.0).float(), atol=1e-6)


def test_sixteen_bit_files() -> None:
    deep = photo()[..., 0].astype(np.uint16) * 257 + 3
    image = Image.fromarray(deep)
    want = torch.from_numpy(deep.astype(np.float32)) / 65535
    for kind in ("PNG", "TIFF"):
        got = decode(encode(image, kind))
        assert got.dtype == torch.float32 and torch.allclose(got, want.expand(3, -1, -1), atol=1e-6), kind
    pgm = b"P5 36 24 65535\n" + deep.astype(">u2").tobytes()
    assert torch.allclose(decode(pgm), want.expand(3, -1, -1), atol=1e-6)


def test_float_images() -> None:
    grey = photo()[..., 0].astype(np.float32) / 255
    assert torch.allclose(decode(Image.fromarray(grey))[1], torch.from_numpy(grey))
    assert torch.allclose(decode(encode(Image.fromarray(grey), "TIFF"))[1], torch.from_numpy(grey))
    assert "divide by 255" in message(Image.fromarray(grey * 255))
    assert "16 bits" in message(Image.fromarray(np.full((4, 4), 70000, np.int32)))


# --- transparency


def test_alpha_lies_on_white() -> None:
    rgba = np.dstack([photo(), np.full((24, 36), 255, np.uint8)])
    rgba[:12, :, 3] = 0
    rgba[12:, 18:, 3] = 128
    unit = torch.from_numpy(rgba).permute(2, 0, 1) / 255
    want = unit[:3] * unit[3:] + 1 - unit[3:]
    images = [
        rgba,
        torch.from_numpy(rgba).permute(2, 0, 1),
        Image.fromarray(rgba),
        encode(Image.fromarray(rgba)),
    ]
    results = [decode(image) for image in images]
    for got in results:
        assert got.equal(results[0])
        assert (got[:, :12] == 255).all()
        assert got[:, 12:, :18].equal(planes(photo())[:, 12:, :18])
        assert (got / 255 - want).abs().max() < 0.51 / 255 + 1e-6
    assert torch.allclose(decode(unit), want) and torch.allclose(decode(unit.permute(1, 2, 0).numpy()), want)
    la = np.asarray(decode(Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 51)])))
    assert (la == 204).all()


def test_colour_keys_and_palette_transparency() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 0)
    for key in (0, b"\x00\xff"):
        got = decode(encode(palette, transparency=key))
        assert got[:, 0, 0].tolist() == [255] * 3 and got[:, 1, 1].tolist() == [200, 100, 50], key
    half = decode(encode(palette, transparency=b"\x80\xff"))
    assert abs(int(half[0, 0, 0]) - 132) <= 1

    grey = Image.new("L", (4, 4), 7)
    grey.putpixel((0, 0), 9)
    got = decode(encode(grey, transparency=9))
    assert got[0, 0, 0] == 255 and got[0, 1, 1] == 7
    colour = Image.new("RGB", (4, 4), (7, 8, 9))
    colour.putpixel((0, 0), (1, 2, 3))
    got = decode(encode(colour, transparency=(1, 2, 3)))
    assert got[:, 0, 0].tolist() == [255] * 3 and got[:, 1, 1].tolist() == [7, 8, 9]
    deep = Image.fromarray(np.array([[9, 7]], np.uint16))
    deep.info["transparency"] = 9
    assert decode(deep)[0].tolist() == [[1.0, pytest.approx(7 / 65535)]]


# --- orientation, profiles, animations


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    upright = np.asarray(Image.fromarray(photo(4, 6)).resize((48, 32), Image.Resampling.NEAREST))
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(Image.fromarray(np.ascontiguousarray(turn(upright))), kind, exif=exif, **options)
    for image in (data, Image.open(io.BytesIO(data))):
        got = decode(image)
        assert got.shape == (3, 32, 48)
        assert (got.float() - planes(upright).float()).abs().mean() < 8


def test_damaged_exif_is_no_orientation() -> None:
    data = encode(Image.fromarray(photo()), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(data).shape == (3, 24, 36)


def test_embedded_profiles() -> None:
    pixels = photo()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode(encode(Image.fromarray(pixels), icc_profile=srgb))
    assert same.equal(planes(pixels)), "an sRGB profile changes nothing"
    for profile in (b"not a profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()):
        assert decode(encode(Image.fromarray(pixels), icc_profile=profile)).equal(planes(pixels))


def test_wide_gamut_profile_is_converted() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8) + np.array([200, 100, 60], np.uint8)
    # sRGB with red and blue swapped: the same numbers mean other colours.
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", data, 128)
    rows = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = rows[b"rXYZ"], rows[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    profile = (
        bytes(data).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")
    )
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    assert "sRGB" not in ImageCms.getProfileDescription(opened)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("RGBA")):
        got = decode(encode(image, icc_profile=profile))
        assert (got[:, 0, 0].float() - torch.tensor([60.0, 100.0, 200.0])).abs().max() <= 3


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        got = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert got[:, 0, 0].tolist() == [255, 0, 0], kind


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_common_formats(kind: str) -> None:
    got = decode(encode(Image.fromarray(photo()), kind))
    assert (got.float() - planes(photo()).float()).abs().mean() < 12


def test_cmyk_jpeg() -> None:
    got = decode(encode(Image.fromarray(photo()).convert("CMYK"), "JPEG", quality=100))
    assert (got.float() - planes(photo()).float()).abs().mean() < 12


# --- threads and global state


def test_global_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    before = (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        PngImagePlugin.MAX_TEXT_CHUNK,
        list(warnings.filters),
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    assert decode(encode(Image.fromarray(photo()))).shape == (3, 24, 36)
    monkeypatch.undo()
    after = (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        PngImagePlugin.MAX_TEXT_CHUNK,
        list(warnings.filters),
    )
    assert before == after


def test_threads() -> None:
    images = [encode(Image.fromarray(photo(seed=seed)), "JPEG") for seed in range(16)]
    want = [decode(image) for image in images]
    gate = threading.Barrier(4)

    def work(_: int) -> list[torch.Tensor]:
        gate.wait()
        return [decode(image) for image in images]

    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(work, range(4)):
            assert all(a.equal(b) for a, b in zip(got, want, strict=True))


# --- one image or many


def test_single_images() -> None:
    for image in (
        "a",
        Path("a"),
        b"a",
        io.BytesIO(),
        Image.new("L", (2, 2)),
        np.zeros((4, 4)),
        np.zeros((2, 4, 4, 3)),
        5,
    ):
        items, single = as_list(image)
        assert single and len(items) == 1 and items[0] is image
    assert as_list(torch.zeros(3, 4, 4))[1]


def test_sequences() -> None:
    names = ["a", "b", "c"]
    sequences: list[Any] = [
        names,
        tuple(names),
        iter(names),
        pd.Series(names),
        pd.Series(names, index=[5, 3, 9]),
    ]
    sequences += [np.array(names), np.array(names, dtype=object), pd.DataFrame({"path": names}).path]
    sequences += [(name for name in names), dict.fromkeys(names).keys()][:1]
    for sequence in sequences:
        items, single = as_list(sequence)
        assert not single and items == names
    items, single = as_list(torch.arange(24.0).reshape(2, 3, 2, 2))
    assert not single and len(items) == 2 and items[1].shape == (3, 2, 2)
    assert as_list([]) == ([], False)


def test_iterate_is_lazy() -> None:
    def endless() -> Any:
        while True:
            yield "a"

    iterator, single = iterate(endless())
    assert next(iterator) == "a" and not single


@pytest.mark.parametrize("images", [{"a": 1}, {"a"}, pd.DataFrame({"path": ["a"]}), np.empty((2, 2), object)])
def test_no_sequence_of_images(images: Any) -> None:
    with pytest.raises(ImageError):
        as_list(images)


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(photo())))
    assert label("a\nb") == "'a\\nb'"
    assert label(path) == str(path) == label(Image.open(path))
    with path.open("rb") as file:
        assert label(file) == str(path)
    assert label(np.zeros(3)) == "ndarray" and label(b"abc") == "bytes"
