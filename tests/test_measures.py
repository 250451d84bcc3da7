"""What may lie behind a score: each measure follows its own kind of damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qmamba
from qmamba.analysis import Reasons, reasons
from qmamba.errors import ImageError
from qmamba.images.measures import WINDOW, blockiness, noise, resolution, sharpness

PHOTOGRAPHS = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
names = pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)


def at_levels(path: Path, distortion: str) -> list[Reasons]:
    """Measures of a photograph, and of it at the five levels of a distortion."""
    picture = Image.open(path).convert("RGB")
    return [reasons(picture), *(reasons(qmamba.distort(picture, distortion, n)) for n in range(1, 6))]


@names
@pytest.mark.parametrize(
    ("distortion", "measure", "sign", "note"),
    [
        ("gaussian_blur", "sharpness", -1, "blurred"),
        ("gaussian_blur", "resolution", -1, "little detail"),
        ("lens_blur", "sharpness", -1, "blurred"),
        ("jpeg", "blockiness", 1, "block artefacts"),
        ("white_noise", "noise", 1, "noisy"),
        ("darken", "brightness", -1, None),
        ("brighten", "brightness", 1, None),
        ("mean_shift", "clipped_bright", 1, None),
    ],
)
def test_a_measure_follows_its_damage(
    path: Path, distortion: str, measure: str, sign: int, note: str | None
) -> None:
    found = at_levels(path, distortion)
    values = [sign * getattr(each, measure) for each in found]
    assert values == sorted(values) and values[-1] > values[0], values
    if measure != "clipped_bright":  # a photograph without light parts clips nothing at first
        assert len(set(values)) == 6
    if note is not None:
        assert any(line.startswith(note) for line in found[-1].notes()), found[-1]


@names
def test_enlargement_lowers_the_resolution(path: Path) -> None:
    picture = Image.open(path).convert("RGB")
    sizes = [(round(picture.width * s), round(picture.height * s)) for s in (1, 1.5, 2, 3, 4)]
    values = [reasons(picture.resize(size, Image.Resampling.BICUBIC)).resolution for size in sizes]
    assert values == sorted(values, reverse=True) and values[0] > 0.9
    assert 0.4 < values[2] < 0.7 and values[4] < 0.36


@names
def test_an_undamaged_photograph_has_no_notes(path: Path) -> None:
    assert reasons(path).notes() == []


def test_clipping_is_counted_over_all_pixels() -> None:
    pixels = np.full((1000, 2000, 3), 100, np.uint8)
    pixels[:100] = 2
    pixels[-50:] = 253
    pixels[500, :, 0] = 255  # one channel alone is not clipped
    found = reasons(pixels)
    assert (found.clipped_dark, found.clipped_bright) == (pytest.approx(0.1), pytest.approx(0.05))
    assert (found.height, found.width) == (1000, 2000)
    assert "100% of the pixels are black" in reasons(np.zeros((40, 40), np.uint8)).notes()
    assert "100% of the pixels are white" in reasons(np.full((40, 40), 255, np.uint8)).notes()


def test_brightness_is_the_mean_luma() -> None:
    found = reasons(np.full((8, 8, 3), (255, 0, 102), np.uint8))
    assert found.brightness == pytest.approx(0.299 + 0.114 * 0.4)


@pytest.mark.parametrize("std", [2.0, 5.0, 15.0])
def test_noise_is_its_standard_deviation(std: float) -> None:
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 200, 300)[None] + rng.normal(0, std, (300, 300))
    assert noise([ramp.astype(np.float32)]) == pytest.approx(std, rel=0.03)
    ramp[:200] = 0  # what is clipped has no noise, and does not count
    assert noise([ramp.astype(np.float32)]) == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("offset", [0, 3])
def test_blocks_are_found_wherever_they_begin(offset: int) -> None:
    rng = np.random.default_rng(1)
    blocks = np.kron(rng.normal(128, 10, (30, 30)), np.ones((8, 8)))[offset:, offset:]
    fine = rng.normal(0, 5, blocks.shape)
    assert blockiness([(blocks + fine).astype(np.float32)]) > 0.5
    assert blockiness([fine.astype(np.float32)]) < 0.05
    elevens = np.kron(rng.normal(128, 10, (22, 22)), np.ones((11, 11)))
    assert blockiness([(elevens + rng.normal(0, 5, elevens.shape)).astype(np.float32)]) < 0.3


def test_resolution_is_the_highest_frequency() -> None:
    across = np.arange(WINDOW, dtype=np.float32)
    for frequency in (0.1, 0.25, 0.4):  # cycles a pixel; 0.5 is the most
        wave = 128 + 40 * np.sin(2 * np.pi * frequency * across)[None].repeat(WINDOW, 0)
        assert resolution([wave]) == pytest.approx(2 * frequency, abs=0.04)
        assert resolution([wave.T.copy()]) == pytest.approx(2 * frequency, abs=0.04)


def test_sharpness_does_not_depend_on_contrast() -> None:
    luma = np.asarray(Image.open(PHOTOGRAPHS[0]).convert("L"), dtype=np.float32)
    assert sharpness([luma / 2 + 20]) == pytest.approx(sharpness([luma]), abs=1e-3)
    ramp = np.arange(100, dtype=np.float32)[None].repeat(100, 0)
    assert sharpness([ramp]) < 0.1 and sharpness([np.full((50, 50), 7, np.float32)]) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (9, 7), (16, 900), (385, 384), (1500, 1100)])
def test_images_of_any_size_are_measured(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    found = reasons(pixels)
    values = found.to_dict()
    assert all(np.isfinite(value) for value in values.values())
    assert all(0 <= values[n] <= 1 for n in ("clipped_dark", "brightness", "sharpness", "resolution"))
    assert (found.height, found.width) == size


def test_kinds_of_input_agree() -> None:
    pixels = np.asarray(Image.open(PHOTOGRAPHS[0]).convert("RGB"))
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    assert reasons(pixels) == reasons(planes) == reasons(planes / 255) == reasons(Image.fromarray(pixels))
    with pytest.raises(ImageError, match="no such file"):
        reasons("none.jpg")
    with pytest.raises(ImageError, match="pixels"):
        reasons(pixels, max_pixels=1000)
