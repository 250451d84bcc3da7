"""The distortions: what all of them promise, what single ones do, and their page in the documentation."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qmamba
from qmamba.data import DISTORTIONS, Distortion
from qmamba.data.distortions import KADID_KINDS
from qmamba.data.distortions._base import distortion
from qmamba.data.distortions._lab import from_lab, to_lab
from qmamba.errors import DistortionError, ImageError, MissingImageError

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))
LEVELS = (1, 2, 3, 4, 5)
ALL = pytest.mark.parametrize("damage", DISTORTIONS.values(), ids=list(DISTORTIONS))
FAMILIES = {"blur", "colour", "compression", "noise", "brightness", "spatial", "sharpness"}
# What a photograph without colour does not show.
COLOUR_ONLY = {"colour_diffusion", "colour_saturation_hsv", "colour_saturation_lab"}


def example(index: int) -> np.ndarray:
    with Image.open(EXAMPLES[index]) as opened:
        return np.array(opened.convert("RGB"))


def crop(index: int = 0, side: int = 96) -> np.ndarray:
    return np.ascontiguousarray(example(index)[60 : 60 + side, 150 : 150 + side])


def error(first: np.ndarray, second: np.ndarray) -> float:
    """The mean squared difference."""
    return float(((first.astype(np.float64) - second) ** 2).mean())


# --- what all of them promise ---


def test_the_registry_has_all_of_kadid() -> None:
    assert {*KADID_KINDS, "denoise"} <= set(DISTORTIONS) and len(KADID_KINDS) == 24
    assert {damage.family for damage in DISTORTIONS.values()} == FAMILIES
    assert qmamba.list_distortions() == list(DISTORTIONS)


@ALL
def test_it_is_described(damage: Distortion) -> None:
    assert DISTORTIONS[damage.name] is damage and damage.name == damage.name.lower()
    assert len(damage.levels) == 5
    steps = [b - a for a, b in pairwise(damage.levels)]
    assert all(s > 0 for s in steps) or all(s < 0 for s in steps)
    assert damage.summary and damage.parameter and "\n" not in damage.summary + damage.parameter


@ALL
def test_shape_type_input_and_seed(damage: Distortion) -> None:
    pixels = crop()
    before = pixels.copy()
    pixels.flags.writeable = False
    for level in LEVELS:
        damaged = damage(pixels, level, seed=3)
        assert damaged.shape == pixels.shape and damaged.dtype == np.uint8
        assert damaged.flags.c_contiguous and damaged.flags.writeable
        assert not np.shares_memory(damaged, pixels) and not np.array_equal(damaged, pixels)
        np.testing.assert_array_equal(damaged, damage(pixels, level, seed=3))
        others = [damage(pixels, level, seed=seed) for seed in (4, 5)]
        assert damage.random != all(np.array_equal(damaged, other) for other in others)
    np.testing.assert_array_equal(pixels, before)


@ALL
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 13), (40, 1), (1, 300), (33, 17)], ids=str)
def test_sizes(damage: Distortion, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for level in (1, 5):
        damaged = damage(pixels, level)
        assert damaged.shape == pixels.shape and damaged.dtype == np.uint8


@ALL
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_images(damage: Distortion, value: int) -> None:
    flat = np.full((48, 40, 3), value, np.uint8)
    unmoved = (
        {"blur", "colour", "compression"} if value == 128 else {"blur", "colour", "brightness", "sharpness"}
    )
    for level in LEVELS:
        damaged = damage(flat, level)
        assert damaged.shape == flat.shape
        if damage.family in unmoved and damage.name != "mean_shift":
            assert np.abs(damaged.astype(int) - flat).max() <= 1


@ALL
def test_views_of_larger_arrays(damage: Distortion) -> None:
    pixels = crop()
    np.testing.assert_array_equal(damage(pixels[::-1, ::2], 3), damage(pixels[::-1, ::2].copy(), 3))


def test_random_state_is_left_alone() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

    def state() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist()

    before = state()
    first = [d(crop(), 4) for d in DISTORTIONS.values()]
    assert state() == before
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    for damage, damaged in zip(DISTORTIONS.values(), first, strict=True):
        np.testing.assert_array_equal(damage(crop(), 4), damaged)


def test_grey_stays_grey_where_colour_is_not_added() -> None:
    grey = np.repeat(crop(1)[..., :1], 3, axis=2)
    adds = {"colour_shift", "white_noise", "colour_noise", "impulse_noise", "multiplicative_noise", "denoise"}
    for name, damage in DISTORTIONS.items():
        if name not in adds | {"colour_block"}:
            damaged = damage(grey, 3).astype(int)
            assert np.ptp(damaged, axis=2).max() <= 1, name
        if name in COLOUR_ONLY:
            np.testing.assert_array_equal(damaged, grey)


@pytest.mark.parametrize("damage", [d for d in DISTORTIONS.values() if d.degrades], ids=lambda d: d.name)
def test_a_higher_level_is_further_from_the_photograph(damage: Distortion) -> None:
    for index, path in enumerate(EXAMPLES):
        if damage.name in COLOUR_ONLY and path.stem == "cameraman":
            continue
        photo = example(index)[:320, :320]
        errors = [error(damage(photo, level), photo) for level in LEVELS]
        assert errors[0] > 0 and all(a < b for a, b in pairwise(errors)), (path.name, errors)


@ALL
def test_levels_are_spaced(damage: Distortion) -> None:
    """No step that is next to nothing, and none that is most of the way, in decibels over the photographs."""
    photos = [example(i)[:320, :320] for i in range(len(EXAMPLES)) if EXAMPLES[i].stem != "cameraman"]
    errors = np.array([[error(damage(photo, level), photo) for level in LEVELS] for photo in photos])
    steps = np.diff(10 * np.log10(errors).mean(axis=0))
    assert steps.min() > 0.4 and steps.max() < 0.55 * steps.sum(), steps.round(1)


# --- what single ones do ---


def test_noise_has_the_stated_strength() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    for name, scale in (("white_noise", 1.0), ("multiplicative_noise", 128.0)):
        damage = DISTORTIONS[name]
        for level in (1, 2, 3):
            noise = damage(grey, level).astype(float) - 128
            assert noise.std() == pytest.approx(damage.levels[level - 1] * scale, rel=0.03)
            assert abs(noise.mean()) < 0.5
    noisy = DISTORTIONS["colour_noise"](grey, 2).astype(float)
    assert np.ptp(noisy @ (0.299, 0.587, 0.114)) < 3  # the luminance is where it was
    hit = DISTORTIONS["impulse_noise"](grey, 4)
    assert (hit == 0).mean() == pytest.approx(0.04, rel=0.1)
    assert (hit == 255).mean() == pytest.approx(0.04, rel=0.1)
    left = DISTORTIONS["denoise"](grey, 3).astype(float) - 128
    assert left.std() < DISTORTIONS["denoise"].levels[2] / 3


def test_codecs_are_real() -> None:
    photo = example(0)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=15)
    with Image.open(buffer) as image:
        np.testing.assert_array_equal(DISTORTIONS["jpeg"](photo, 3), np.asarray(image))
    buffer = io.BytesIO()
    Image.fromarray(photo).save(
        buffer, "JPEG2000", quality_mode="rates", quality_layers=[75], irreversible=True, no_jp2=True
    )
    assert buffer.tell() == pytest.approx(photo.size / 75, rel=0.05)
    with Image.open(buffer) as image:
        assert error(DISTORTIONS["jpeg2000"](photo, 3), np.asarray(image)) < 10


def test_a_pillow_without_jpeg_2000(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check_codec", lambda _: False)
    with pytest.raises(DistortionError, match=r"^jpeg2000: .*without OpenJPEG"):
        DISTORTIONS["jpeg2000"](crop(), 1)


def test_few_colours_and_few_values() -> None:
    photo = example(3)
    for level in LEVELS:
        colours = np.unique(DISTORTIONS["colour_quantization"](photo, level).reshape(-1, 3), axis=0)
        assert len(colours) <= DISTORTIONS["colour_quantization"].levels[level - 1]
        values = np.unique(DISTORTIONS["quantization"](photo, level))
        assert len(values) == DISTORTIONS["quantization"].levels[level - 1]


def test_quantization_is_optimal() -> None:
    three = np.array([10, 12, 14, 100, 104, 240], np.uint8)
    pixels = np.repeat(three, 3).reshape(1, 6, 3)
    assert DISTORTIONS["quantization"](pixels, 5)[0, :, 0].tolist() == [12, 12, 12, 102, 102, 240]


def test_blurs_average() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    disc = DISTORTIONS["lens_blur"](point, 4) > 0
    rows, columns, _ = np.nonzero(disc)
    assert np.hypot(rows - 20, columns - 20).max() <= DISTORTIONS["lens_blur"].levels[3]
    line = DISTORTIONS["motion_blur"](point, 3, seed=1)[..., 0]
    rows, columns = np.nonzero(line)
    assert 9 <= np.hypot(np.ptp(rows), np.ptp(columns)) <= 12
    assert int(line.sum()) == pytest.approx(255, abs=25)
    step = np.pad(np.zeros((60, 30, 3), np.uint8), ((0, 0), (0, 30), (0, 0)), constant_values=200)
    for name in ("gaussian_blur", "lens_blur"):
        soft = DISTORTIONS[name](step, 3)[30, :, 0].astype(int)
        assert soft[0] == 0 and soft[-1] == 200 and (np.diff(soft) >= 0).all()
        assert abs(int(soft[29]) + int(soft[30]) - 200) <= 2


def test_blocks_are_flat_and_patches_come_from_near() -> None:
    tall = DISTORTIONS["pixelate"](crop(), 3)
    assert (tall[:5, :5] == tall[0, 0]).all() and (tall[5:10, 90:95] == tall[5, 90]).all()
    covered = DISTORTIONS["colour_block"](np.zeros((512, 512, 3), np.uint8), 3)
    assert (covered.max(axis=2) > 0).mean() == pytest.approx(0.1, abs=0.03)
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(200, axis=0)
    for name, reach in (("non_eccentricity_patch", 16), ("jitter", 25)):
        moved = DISTORTIONS[name](ramp, 5).astype(int) - ramp
        assert 0 < np.abs(moved).max() <= reach


def test_brightness_keeps_black_and_white() -> None:
    ends = np.array([[[0, 0, 0], [255, 255, 255], [119, 119, 119]]], np.uint8)
    for name in ("brighten", "darken", "contrast_change"):
        for level in LEVELS:
            assert DISTORTIONS[name](ends, level)[0, :2, 0].tolist() == [0, 255]
    assert DISTORTIONS["brighten"](ends, 1)[0, 2, 0] > 119 > DISTORTIONS["darken"](ends, 1)[0, 2, 0]
    assert to_lab(DISTORTIONS["darken"](ends, 2))[0, 0, 2] == pytest.approx(36, abs=0.3)


def test_lab_there_and_back() -> None:
    axis = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 1, 3)
    np.testing.assert_array_equal(from_lab(to_lab(colours)), colours)
    red = to_lab(np.array([[[255, 0, 0]]], np.uint8))[:, 0, 0]
    assert red.tolist() == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


def test_one_more_is_one_function() -> None:
    @distortion("colour", (1, 2, 3, 4, 5), "nothing")
    def negative(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
        """Turn values around.

        And more.
        """
        return 255 - pixels

    assert (negative.name, negative.summary, negative.degrades) == ("negative", "Turn values around", False)
    assert negative(np.zeros((1, 1, 3), np.uint8), 1).tolist() == [[[255, 255, 255]]]


# --- qmamba.distort ---


def test_kinds_of_images(tmp_path: Path) -> None:
    pixels = crop()
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    expected = DISTORTIONS["white_noise"](pixels, 2, seed=5)
    for image in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), Image.fromarray(pixels)):
        damaged = qmamba.distort(image, "white_noise", 2, seed=5)
        assert isinstance(damaged, Image.Image) and damaged.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(damaged), expected)
    np.testing.assert_array_equal(qmamba.distort(pixels, "white_noise", level=2, seed=5), expected)
    np.testing.assert_array_equal(qmamba.distort(pixels / 255.0, "white_noise", 2, seed=5), expected)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    damaged = qmamba.distort(tensor, "white_noise", 2, seed=5)
    assert damaged.dtype == torch.uint8 and damaged.is_contiguous()
    np.testing.assert_array_equal(damaged.permute(1, 2, 0).numpy(), expected)
    assert qmamba.distort(pixels[..., 0], "jpeg", 1).shape == pixels.shape


@pytest.mark.parametrize(
    ("name", "level", "seed", "says"),
    [
        ("gausian_blur", 1, 0, r"'gausian_blur'; near names: gaussian_blur"),
        ("blur", 1, 0, r"'blur'; near names: gaussian_blur, lens_blur, motion_blur"),
        ("color_noise", 1, 0, r"near names: colour_noise$"),
        ("", 1, 0, r"''; names: gaussian_blur, .*, contrast_change"),
        (None, 1, 0, r"no distortion is named None"),
        ("jpeg", 0, 0, r"an integer from 1 to 5, got 0"),
        ("jpeg", 6, 0, r"1 to 5, got 6"),
        ("jpeg", 2.5, 0, r"1 to 5, got 2\.5"),
        ("jpeg", True, 0, r"1 to 5, got True"),
        ("jpeg", 1, -1, r"seed must be an integer of at least 0, got -1"),
        ("jpeg", 1, "a", r"seed must be .* got 'a'"),
    ],
)  # fmt: skip
def test_distort_refuses(name: str, level: int, seed: int, says: str) -> None:
    with pytest.raises(DistortionError, match=says) as raised:
        qmamba.distort(crop(), name, level, seed=seed)
    assert "\n" not in str(raised.value)


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingImageError):
        qmamba.distort(tmp_path / "none.png", "jpeg", 1)
    with pytest.raises(ImageError):
        qmamba.distort(np.zeros((4, 4, 5), np.uint8), "jpeg", 1)
    for pixels in (np.zeros((4, 4)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), "photo.png"):
        with pytest.raises(DistortionError, match=r"^jpeg: pixels must "):
            DISTORTIONS["jpeg"](pixels, 1)  # type: ignore[arg-type]


def test_numpy_integers_are_integers() -> None:
    damaged = qmamba.distort(crop(), "jitter", np.int64(2), seed=np.uint32(7))
    np.testing.assert_array_equal(damaged, qmamba.distort(crop(), "jitter", 2, seed=7))


def test_import_qmamba_leaves_them_for_later() -> None:
    code = "import sys, qmamba; print([m for m in sys.modules if m.startswith('qmamba.data')])"
    environment = os.environ | {"PYTHONPATH": str(Path(qmamba.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"


# --- the documentation ---


def row(damage: Distortion) -> str:
    """Return its row in the table of the page."""
    levels = ", ".join(f"{parameter:g}" for parameter in damage.levels)
    cells = f"`{damage.name}`", damage.summary, damage.parameter, levels, "yes" if damage.degrades else ""
    return f"| {' | '.join(cells)} |"


def test_the_page_says_what_the_registry_says() -> None:
    text = (ROOT / "docs" / "distortions.md").read_text(encoding="utf-8")
    table = text.split("## KADID-10k's levels")[0].splitlines()
    assert [line for line in table if line.startswith("| `")] == list(map(row, DISTORTIONS.values()))
    assert "ours, not KADID-10k's" in text
    sheet = ROOT / "docs" / "assets" / "distortions.jpg"
    assert sheet.name in text and sheet.stat().st_size <= 500_000


def test_the_example_of_the_page_keeps_the_rules() -> None:
    text = (ROOT / "docs" / "distortions.md").read_text(encoding="utf-8").split("## One more")[1]
    names: dict[str, object] = {"np": np}
    exec(text.split("```python\n")[1].split("```")[0], names)
    (damage,) = (value for value in names.values() if isinstance(value, Distortion))
    assert row(damage) in text.splitlines() and damage.family in FAMILIES
    test_shape_type_input_and_seed(damage)
    test_views_of_larger_arrays(damage)
    for value in (0, 128, 255):
        test_flat_images(damage, value)
    for shape in ((1, 1), (7, 13)):
        test_sizes(damage, shape)
