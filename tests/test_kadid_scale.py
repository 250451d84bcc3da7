"""KADID-10k's levels as a scale of the distortions: table, interpolation, and what each level does."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qmamba
from qmamba.data import DISTORTIONS, KadidScale, kadid_quality
from qmamba.data.distortions import KADID_KINDS, kadid_parameter
from qmamba.data.distortions._kadid_operations import _smooth
from qmamba.data.distortions.kadid import stretch_values
from qmamba.errors import DistortionError

ROOT = Path(__file__).parents[1]
LEVELS = (1, 2, 3, 4, 5)
EVERY_KIND = pytest.mark.parametrize("name", KADID_KINDS)
# A sigma of 0.1 pixels, a path of one pixel, a factor of 1 and a shift of 0 leave a photograph as it is.
UNCHANGED = {("gaussian_blur", 1), ("motion_blur", 1), ("colour_saturation_lab", 1), ("mean_shift", 3)}
# The parameter falls where the level rises.
FALLING = {
    "colour_quantization",
    "colour_saturation_hsv",
    "jpeg",
    "mean_shift",
    "quantization",
    "contrast_change",
}
# Whose levels go from one side of the original to the other.
TWO_SIDED = {"mean_shift", "contrast_change"}


def photo() -> np.ndarray:
    """(384, 512, 3) uint8, with values from 0 to 255."""
    with Image.open(ROOT / "examples" / "astronaut.jpg") as image:
        return stretch_values(np.array(image.convert("RGB").resize((512, 384))))


def crop(side: int = 160) -> np.ndarray:
    return stretch_values(np.ascontiguousarray(photo()[60 : 60 + side, 150 : 150 + side]))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """The root of the mean squared difference."""
    return float(np.sqrt(((first.astype(np.float64) - second) ** 2).mean()))


# --- what every kind promises ---


def test_every_kind_of_the_data_set_but_denoise() -> None:
    assert [name for name in DISTORTIONS if name in KADID_KINDS] == list(KADID_KINDS)
    assert len(KADID_KINDS) == 24 and "denoise" in DISTORTIONS and "denoise" not in KADID_KINDS


@EVERY_KIND
def test_levels_change_pixels_and_repeat(name: str) -> None:
    pixels = crop()
    pixels.flags.writeable = False
    for level in LEVELS:
        damaged = DISTORTIONS[name](pixels, level, seed=3, scale="kadid")
        assert damaged.shape == pixels.shape and damaged.dtype == np.uint8
        assert damaged.flags.c_contiguous and damaged.flags.writeable
        assert not np.shares_memory(damaged, pixels)
        assert ((name, level) in UNCHANGED) == np.array_equal(damaged, pixels), level
        np.testing.assert_array_equal(damaged, DISTORTIONS[name](pixels, level, seed=3, scale="kadid"))
        others = [DISTORTIONS[name](pixels, level, seed=seed, scale="kadid") for seed in (4, 5)]
        same = all(np.array_equal(damaged, other) for other in others)
        assert same == (not DISTORTIONS[name].random or (name, level) in UNCHANGED), level


@pytest.mark.parametrize("name", [name for name in KADID_KINDS if name not in TWO_SIDED])
def test_a_higher_level_is_further_from_the_photograph(name: str) -> None:
    pixels = photo()
    levels = [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]
    errors = [distance(DISTORTIONS[name](pixels, level, scale="kadid"), pixels) for level in levels]
    # Between two levels a step may be too small for whole numbers, or a path or block fall elsewhere.
    assert all(b >= 0.97 * a for a, b in pairwise(errors)), errors
    assert all(b > a for a, b in pairwise(errors[::2])), errors


@pytest.mark.parametrize("name", sorted(TWO_SIDED))
def test_two_sided_kinds_change_the_image_least_in_the_middle(name: str) -> None:
    pixels = photo()
    one, two, three, four, five = (
        distance(DISTORTIONS[name](pixels, level, scale="kadid"), pixels) for level in LEVELS
    )
    assert one > two > three and three <= four < five


@EVERY_KIND
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 13), (40, 1), (1, 300), (33, 17)], ids=str)
def test_sizes(name: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for level in (1, 4.5):
        for scale in ("kadid", KadidScale(reference_side=4000), KadidScale(reference_side=40, stretch=False)):
            damaged = DISTORTIONS[name](pixels, level, scale=scale)
            assert damaged.shape == pixels.shape and damaged.dtype == np.uint8


@EVERY_KIND
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_images(name: str, value: int) -> None:
    flat = np.full((48, 40, 3), value, np.uint8)
    for level in LEVELS:
        damaged = DISTORTIONS[name](flat, level, scale="kadid")
        assert damaged.shape == flat.shape
        if DISTORTIONS[name].family in {"blur", "colour"}:
            assert np.abs(damaged.astype(int) - flat).max() <= 1


# --- the table and what lies between its levels ---


def test_the_table_is_the_published_one() -> None:
    source = ROOT.parent / "shared" / "data" / "kadid_severity.csv"
    if not source.exists():
        pytest.skip("shared/data/kadid_severity.csv is not here")
    with source.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "denoise"]
    assert len(rows) == 120
    for row in rows:
        name, level = row["kind"], int(row["level"])
        assert kadid_parameter(name, level) == pytest.approx(float(row["parameter"]))
        mean, std = kadid_quality(name, level)
        assert (mean, std) == pytest.approx((float(row["mean_dmos"]), float(row["sd_over_contents"])))


@EVERY_KIND
def test_between_levels_all_is_monotone(name: str) -> None:
    for level in LEVELS[:-1]:
        steps = np.linspace(level, level + 1, 9)
        parameters = [kadid_parameter(name, step) for step in steps]
        assert all((b < a) == (name in FALLING) and a != b for a, b in pairwise(parameters))
        for figures in zip(*(kadid_quality(name, step) for step in steps), strict=True):
            differences = np.diff(figures)
            assert (differences <= 1e-12).all() or (differences >= -1e-12).all()


def test_parameters_between_levels() -> None:
    assert kadid_parameter("gaussian_blur", 3.5) == pytest.approx(2**0.5)
    assert kadid_parameter("mean_shift", 3.5) == pytest.approx(-0.04)
    assert kadid_parameter("colour_saturation_hsv", 4.25) == pytest.approx(-0.1)
    assert kadid_quality("jpeg", 4.5).mean == pytest.approx((1.945 + 1.350) / 2)
    photo_ = photo()
    values = np.unique(DISTORTIONS["quantization"](photo_, 1.5, scale=KadidScale(stretch=False)))
    assert len(values) == 18  # between 20 and 16, a whole number
    np.testing.assert_array_equal(
        DISTORTIONS["jpeg"](photo_, 3.0, scale="kadid"),
        DISTORTIONS["jpeg"](photo_, np.int64(3), scale="kadid"),
    )


# --- the stretch and the size ---


def test_stretch_before_and_after() -> None:
    pixels = crop() // 2 + 60  # values from 60 to 187
    for name in ("gaussian_blur", "darken", "white_noise", "high_sharpen"):
        damaged = DISTORTIONS[name](pixels, 4, scale="kadid")
        assert (damaged.min(), damaged.max()) == (0, 255)
        # A narrower image gives the result of the one that it is stretched to.
        np.testing.assert_array_equal(
            damaged, DISTORTIONS[name](stretch_values(pixels), 4, scale="kadid"), err_msg=name
        )
    soft = DISTORTIONS["gaussian_blur"](pixels, 4, scale=KadidScale(stretch=False))
    assert soft.min() >= 60 and soft.max() <= 187


def test_a_mean_shift_is_stretched_to_the_whole_range() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    for scale in ("kadid", KadidScale(stretch=False)):
        brighter = DISTORTIONS["mean_shift"](ramp, 1, scale=scale)[..., 0].ravel()
        assert brighter[0] == 0 and (brighter == 255).sum() == 39 and brighter[128] == 151
        darker = DISTORTIONS["mean_shift"](ramp, 5, scale=scale)[..., 0].ravel()
        assert darker[-1] == 255 and (darker == 0).sum() == 39 and darker[128] == 106
    # Of a crop, the values are taken as part of a photograph's whole range.
    part = DISTORTIONS["mean_shift"](ramp[4:8], 1, scale=KadidScale(stretch=False))
    np.testing.assert_array_equal(part, DISTORTIONS["mean_shift"](ramp, 1, scale="kadid")[4:8])


def test_lengths_follow_the_reference_side() -> None:
    spot = np.zeros((201, 201, 3), np.uint8)
    spot[88:113, 88:113] = 255

    def width(name: str, side: float) -> float:
        damaged = DISTORTIONS[name](spot, 4, scale=KadidScale(reference_side=side))
        rows, columns, _ = np.nonzero(damaged > 0)
        return float(np.hypot(np.ptp(rows) - 24, np.ptp(columns) - 24))

    for name in ("lens_blur", "motion_blur"):
        assert width(name, 2048) == pytest.approx(4 * width(name, 512), rel=0.2)
    pixels = photo()
    large = KadidScale(reference_side=1024, stretch=False)
    blocks = DISTORTIONS["pixelate"](pixels, 5, scale=large)
    assert (blocks[1:] == blocks[:-1]).all(axis=2).mean() > 0.8  # about 7 rows a block
    # As many blocks per area of what is seen: 4 times the area has a fourth of them, 4 times as large.
    flat = np.zeros((768, 1024, 3), np.uint8)
    for scale in (large, KadidScale(stretch=False)):
        covered = DISTORTIONS["colour_block"](flat, 5, scale=scale).any(axis=2).mean()
        assert covered == pytest.approx(10 * 32**2 / (512 * 384), rel=0.15)


# --- what single ones do ---


def test_noise_has_the_variance_of_the_table() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    plain = KadidScale(stretch=False)
    for level in LEVELS:
        for name, factor in (("white_noise", 255.0), ("multiplicative_noise", 128.0)):
            noise = DISTORTIONS[name](grey, level, scale=plain).astype(float) - 128
            std = factor * kadid_parameter(name, level) ** 0.5
            assert noise.std() == pytest.approx(std, rel=0.05)
        noise = DISTORTIONS["colour_noise"](grey, level, scale=plain).astype(float) - 128
        std = 255 * kadid_parameter("colour_noise", level) ** 0.5
        # BT.601: the luminance weighted by 0.299, 0.587 and 0.114 holds the noise of Y alone.
        luminance = noise @ (0.299, 0.587, 0.114)
        assert luminance.std() == pytest.approx(std * 255 / 219, rel=0.05)
        assert (noise[..., 2] - luminance).std() == pytest.approx(std * 2.017, rel=0.05)
        hit = DISTORTIONS["impulse_noise"](grey, level, scale=plain) != 128
        assert hit.mean() == pytest.approx(kadid_parameter("impulse_noise", level), rel=0.2)


def test_tone_curves_pass_through_their_points() -> None:
    tone = np.rint(255 * np.array([0.0, 0.3, 0.5, 0.7, 1.0])).astype(np.uint8)
    pixels = tone.reshape(1, 5, 1).repeat(3, axis=2)
    for level in LEVELS:
        amount = kadid_parameter("contrast_change", level)
        curve = DISTORTIONS["contrast_change"](pixels, level, scale="kadid")[0, :, 0] / 255
        points = [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1]
        assert curve.tolist() == pytest.approx(points, abs=0.01)
        middle = DISTORTIONS["darken"](pixels, level, scale="kadid")[0, 2, 0] / 255
        assert middle == pytest.approx(0.5 - kadid_parameter("darken", level) / 2, abs=0.01)
        brighter = DISTORTIONS["brighten"](pixels, level, scale="kadid")[0, :, 0] / 255
        assert (brighter[0], brighter[4]) == (0, 1)
        amount = kadid_parameter("brighten", level)
        assert 0.5 + amount / 4 < brighter[2] <= min(1, 0.51 + amount / 2)
    dark = DISTORTIONS["darken"](pixels, 5, scale="kadid")[0, :, 0]
    assert dark[1] == 0  # the curve runs below 0 there, and is clipped


def test_saturation_turns_hues_around_below_zero() -> None:
    pixels = np.array([[[200, 100, 100], [100, 150, 100], [0, 0, 0], [255, 255, 255]]], np.uint8)
    faded = DISTORTIONS["colour_saturation_hsv"](pixels, 4, scale="kadid")[0]
    assert (np.ptp(faded, axis=1) == 0).all()
    red, green, *_ = DISTORTIONS["colour_saturation_hsv"](pixels, 5, scale="kadid")[0].astype(int)
    assert red[0] < red[1] == red[2] and green[1] < green[0] == green[2]


def test_small_discs_grow_with_every_step_of_the_level() -> None:
    step = np.pad(np.zeros((20, 20, 3), np.uint8), ((0, 0), (0, 20), (0, 0)), constant_values=255)
    levels = np.linspace(1, 2, 6)
    soft = [DISTORTIONS["lens_blur"](step, level, scale="kadid")[10, :, 0].astype(int) for level in levels]
    errors = [distance(each, step[10, :, 0]) for each in soft]
    assert all(b > a for a, b in pairwise(errors))
    assert all(abs(each[19] + each[20] - 255) <= 2 and (np.diff(each) >= 0).all() for each in soft)


def test_a_step_of_smoothing_is_a_gaussian() -> None:
    plane = photo()[:301, :407, 1].astype(np.float32)
    for sigma in (2.0, 3.5, 6.0, 9.5, 20.0):
        reach = round(4 * sigma)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        padded = np.pad(plane, reach, mode="symmetric").astype(np.float64)
        for _ in range(2):  # along the columns, then along the rows
            padded = np.array([np.convolve(row, weights / weights.sum(), "valid") for row in padded]).T
        assert distance(_smooth(plane, sigma), padded) < 0.01 * distance(plane, padded), sigma


def test_jitter_moves_about_as_far_as_it_says() -> None:
    ramp = np.arange(0, 250, 2, dtype=np.uint8)[None, :, None].repeat(125, axis=0).repeat(3, axis=2)
    for level in LEVELS[2:]:
        moved = DISTORTIONS["jitter"](ramp, level, scale=KadidScale(stretch=False)).astype(float) - ramp
        # Five passes add up in variance; a pass averages what the earlier ones did to neighbours.
        std = moved[10:-10, 20:-20].std() / 2 / kadid_parameter("jitter", level)
        assert 1.0 < std < 5**0.5 + 0.05


def test_patches_and_blocks_are_as_many_as_the_table_says() -> None:
    ramp = np.arange(512, dtype=np.float64) // 2
    pixels = np.broadcast_to(ramp[None, :, None], (384, 512, 3)).astype(np.uint8)
    plain = KadidScale(stretch=False)
    moved = np.abs(DISTORTIONS["non_eccentricity_patch"](pixels, 3, scale=plain).astype(int) - pixels)
    assert 0 < moved.max() <= 4 and (moved > 0).any(axis=2).sum() <= 60 * 16**2
    for level in LEVELS:
        blocks = DISTORTIONS["colour_block"](np.zeros_like(pixels), level, scale=plain).any(axis=2)
        count = kadid_parameter("colour_block", level)
        assert 0.6 * count * 32**2 < blocks.sum() <= count * 32**2


# --- the interfaces and errors ---


def test_qmamba_distort_takes_the_scale() -> None:
    pixels = crop()
    expected = DISTORTIONS["jpeg"](pixels, 2.5, scale="kadid")
    np.testing.assert_array_equal(qmamba.distort(pixels, "jpeg", 2.5, scale="kadid"), expected)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    damaged = qmamba.distort(tensor, "jpeg", 2.5, scale=KadidScale())
    np.testing.assert_array_equal(damaged.permute(1, 2, 0).numpy(), expected)
    assert not np.array_equal(
        qmamba.distort(pixels, "jpeg", 2), qmamba.distort(pixels, "jpeg", 2, scale="kadid")
    )


@pytest.mark.parametrize(
    ("name", "level", "scale", "says"),
    [
        ("denoise", 1, "kadid", r"^the scale 'kadid' has no 'denoise'; it needs a learned denoiser"),
        ("jpeg", 0.99, "kadid", r"^the level must be a number from 1 to 5 on the scale 'kadid', got 0\.99"),
        ("jpeg", 5.01, "kadid", r"got 5\.01"),
        ("jpeg", float("nan"), "kadid", r"got nan"),
        ("jpeg", True, "kadid", r"got True"),
        ("jpeg", "3", "kadid", r"got '3'"),
        ("jpeg", None, "kadid", r"got None"),
        ("jpeg", 3.0, "qmamba", r"an integer from 1 to 5, got 3\.0"),
        ("jpeg", 1, "KADID", r"^scale must be one of qmamba, kadid, got 'KADID'"),
        ("jpeg", 1, 7, r"^scale must be .*got 7"),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, level: object, scale: object, says: str) -> None:
    with pytest.raises(DistortionError, match=says):
        DISTORTIONS[name](crop(32), level, scale=scale)  # type: ignore[arg-type]


def test_quality_and_scale_refuse_too() -> None:
    with pytest.raises(DistortionError, match=r"no 'blur'; names: gaussian_blur, "):
        kadid_quality("blur", 1)
    with pytest.raises(DistortionError, match=r"from 1 to 5 .* got 6"):
        kadid_quality("jpeg", 6)
    for side in (0, -3.0, float("inf")):
        with pytest.raises(DistortionError, match=r"reference_side must be positive"):
            KadidScale(reference_side=side)


# --- the documentation ---


def test_the_page_has_the_table() -> None:
    text = (ROOT / "docs" / "distortions.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.split("## KADID-10k's levels")[1].split("## One more")[0].splitlines()
        if line.startswith("| `")
    ]
    assert [row[0] for row in rows] == [f"`{name}`" for name in KADID_KINDS]
    for name, (_, _, parameters, ratings) in zip(KADID_KINDS, rows, strict=True):
        assert parameters == ", ".join(f"{kadid_parameter(name, level):g}" for level in LEVELS)
        assert ratings == ", ".join(f"{kadid_quality(name, level).mean:.2f}" for level in LEVELS)
