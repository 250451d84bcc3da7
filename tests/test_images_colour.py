"""Embedded colour profiles: known by primaries and curves, whatever they are called."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pictures import encode, photo, planes
from profiles import ADOBE_RGB, DISPLAY_P3, SRGB, formula, gamma, profile, table
from qmamba.images import decode
from qmamba.images.colour import converts

PIXELS = photo()


def to_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def shown(image: Image.Image, icc: bytes, kind: str = "PNG") -> np.ndarray:
    pixels = decode(encode(image, kind, icc_profile=icc))
    unit = pixels if pixels.is_floating_point() else pixels / 255
    return unit.permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize("name", ["sRGB IEC61966-2.1", "c2", "Display P3", ""])
@pytest.mark.parametrize("curve", [table(1024), table(64), formula()], ids=["long", "short", "formula"])
def test_what_has_srgb_primaries_and_curves_changes_nothing(name: str, curve: bytes) -> None:
    icc = profile(name, SRGB, curve)
    assert not converts(icc, "RGB")
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(shown(Image.fromarray(PIXELS), icc, kind).round(), PIXELS)


@pytest.mark.parametrize("name", ["sRGB IEC61966-2.1", "sRGB", "c2", "Display P3"])
@pytest.mark.parametrize(
    ("primaries", "exponent"),
    [(DISPLAY_P3, None), (ADOBE_RGB, 563 / 256), (SRGB, 1.0), (SRGB, 461 / 256), (SRGB[::-1], None)],
    ids=["P3", "Adobe", "linear", "Mac", "swapped"],
)
def test_what_has_other_ones_is_converted_whatever_its_name(
    name: str, primaries: tuple[tuple[float, ...], ...], exponent: float | None
) -> None:
    icc = profile(name, primaries, formula() if exponent is None else gamma(exponent))
    unit = PIXELS / 255
    light = to_linear(unit) if exponent is None else unit**exponent
    want = to_srgb(light @ np.array(primaries) @ np.linalg.inv(np.array(SRGB)))
    for image in (Image.fromarray(PIXELS), Image.fromarray(PIXELS).convert("RGBA")):
        error = abs(shown(image, icc) - want)
        assert error.mean() < 0.6 and error.max() < 4
    quantised = shown(Image.fromarray(PIXELS).quantize(8), icc)
    as_rgb = shown(Image.fromarray(PIXELS).quantize(8).convert("RGB"), icc)
    assert np.array_equal(quantised, as_rgb)


@pytest.mark.parametrize("name", ["sRGB", "Dot Gain"])
def test_profiles_of_grey(name: str) -> None:
    grey = PIXELS[..., 0]
    same = profile(name, None, formula())
    linear = profile(name, None, gamma(1))
    want = np.repeat(to_srgb(grey / 255)[..., None], 3, 2)
    alpha = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (36, 24), 255)])
    for image in (Image.fromarray(grey), alpha, Image.fromarray(grey.astype(np.uint16) * 257)):
        for kind in ("PNG", "TIFF"):
            assert abs(shown(image, same, kind) - grey[..., None]).max() < 0.01
            assert abs(shown(image, linear, kind) - want).max() <= 0.51, (image.mode, kind)


def test_profiles_for_other_pixels_or_damaged_are_passed_over() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    whole = profile("a", DISPLAY_P3, formula())
    for icc in (b"not a profile", lab, profile("a", None, gamma(1)), whole[:200], whole[:131]):
        assert decode(encode(Image.fromarray(PIXELS), icc_profile=icc)).equal(planes(PIXELS))
    grey = Image.fromarray(PIXELS[..., 0])
    assert np.array_equal(shown(grey, whole)[..., 0], PIXELS[..., 0])


def test_damaged_curves_are_no_srgb_and_no_crash() -> None:
    whole = bytearray(profile("a", SRGB, table(64)))
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        for place in rng.integers(128, len(whole), 3):
            broken[place] = rng.integers(256)
        image = Image.fromarray(PIXELS)
        image.info["icc_profile"] = bytes(broken)
        assert decode(image).shape == (3, 24, 36)


def test_inks_pass_over_a_profile_for_light() -> None:
    # There is no small CMYK profile to write by hand; one for another space must leave inks as they are.
    inks = Image.fromarray(PIXELS).convert("CMYK")
    buffer = io.BytesIO()
    inks.save(buffer, "TIFF", icc_profile=profile("a", DISPLAY_P3, formula()))
    assert decode(buffer.getvalue()).equal(
        torch.from_numpy(np.asarray(inks.convert("RGB")).copy()).permute(2, 0, 1)
    )
