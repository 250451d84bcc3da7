"""Crops: where they lie, that nothing random leaks, and how small images grow."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qmamba.errors import ArgumentError, CheckpointError, ImageError
from qmamba.images.resizing import resize
from qmamba.protocol import KINDS, MAX_ASPECT, Protocol, View, check_aspect, views, windows

SIZES = st.integers(224, 9000)


@given(height=SIZES, width=SIZES, most=st.integers(1, 60))
def test_grid_is_inside_capped_even_and_touches_the_edges(height: int, width: int, most: int) -> None:
    boxes = windows(height, width, Protocol(max_crops=most))
    assert 1 <= len(boxes) == len(set(boxes)) <= most
    for top, left, h, w in boxes:
        assert h == w == 224 and 0 <= top <= height - 224 and 0 <= left <= width - 224
    for side, positions in ((height, {box[0] for box in boxes}), (width, {box[1] for box in boxes})):
        ordered = sorted(positions)
        if len(ordered) == 1:
            assert ordered[0] == (side - 224) // 2
            continue
        assert ordered[0] == 0 and ordered[-1] == side - 224
        steps = np.diff(ordered)
        assert steps.max() - steps.min() <= 1
    assert boxes == sorted(boxes), "row by row"


@given(height=st.integers(224, 1120), width=st.integers(224, 1120))
def test_grid_covers_the_image_until_the_cap(height: int, width: int) -> None:
    boxes = windows(height, width, Protocol())
    assert len(boxes) == -(-height // 224) * -(-width // 224) <= 25
    seen = np.zeros((height, width), bool)
    for top, left, h, w in boxes:
        seen[top : top + h, left : left + w] = True
    assert seen.all()


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (224, 224, 1, 1),
        (225, 224, 2, 1),
        (384, 512, 2, 3),
        (4000, 6000, 5, 5),
        (224, 50_000, 1, 25),
        (7000, 300, 12, 2),
    ],
)
def test_grid_counts(height: int, width: int, rows: int, columns: int) -> None:
    boxes = windows(height, width, Protocol())
    assert (len({box[0] for box in boxes}), len({box[1] for box in boxes})) == (rows, columns)


def test_ties_take_a_row_first() -> None:
    boxes = windows(2000, 2000, Protocol(max_crops=20))
    assert (len({box[0] for box in boxes}), len({box[1] for box in boxes})) == (4, 5)


def test_random_places_depend_on_the_seed_and_the_size_only() -> None:
    protocol = Protocol(kind="random")
    first = windows(600, 800, protocol)
    assert len(first) == 10 and len(set(first)) > 5
    torch.manual_seed(123)
    windows(1000, 300, protocol)
    assert windows(600, 800, protocol) == first
    assert windows(600, 800, dataclasses.replace(protocol, seed=1)) != first
    assert len(windows(600, 800, dataclasses.replace(protocol, n_crops=3))) == 3
    many = windows(300, 260, dataclasses.replace(protocol, n_crops=3000))
    assert {box[0] for box in many} == set(range(77)) and {box[1] for box in many} == set(range(37))


def test_random_places_are_pinned() -> None:
    # Published scores depend on these; they must not change with a release of torch.
    places = [(94, 153, 224, 224), (41, 560, 224, 224), (365, 16, 224, 224)]
    assert windows(600, 800, Protocol(kind="random", n_crops=3)) == places


def test_whole() -> None:
    assert windows(100, 7, Protocol(kind="whole")) == [(0, 0, 100, 7)]


@pytest.mark.parametrize("kind", KINDS)
def test_global_random_state_stays(kind: str) -> None:
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    windows(500, 700, Protocol(kind=kind))
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


@pytest.mark.parametrize("kind", ["grid", "random"])
def test_too_small(kind: str) -> None:
    with pytest.raises(ValueError, match="smaller than a crop"):
        windows(223, 400, Protocol(kind=kind))


def test_dict_round_trip() -> None:
    protocol = Protocol(kind="random", crop=64, max_crops=7, n_crops=3, seed=5)
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "five"},
        {"crop": 31},
        {"crop": 224.0},
        {"crop": True},
        {"max_crops": 0},
        {"n_crops": 0},
        {"n_crops": "10"},
        {"seed": -1},
        {"seed": None},
        {"colour": 1},
    ],
)
def test_bad_fields(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError) as caught:
        Protocol.from_dict({**Protocol().to_dict(), **change})
    assert next(iter(change)) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_foreign_fields() -> None:
    fields = Protocol().to_dict()
    del fields["crop"]
    with pytest.raises(CheckpointError, match="missing field crop"):
        Protocol.from_dict(fields)
    with pytest.raises(CheckpointError):
        Protocol.from_dict([1, 2])  # type: ignore[arg-type]


# --- small images


def fit_side(image: torch.Tensor, crop: int, **limits: Any) -> torch.Tensor:
    """Return an image at the size at which crops of this side are cut from it."""
    (view,) = views(*image.shape[-2:], Protocol(crop=crop))
    return resize(image, view.height, view.width, **limits)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (224, 224, (224, 224)),
        (500, 224, (500, 224)),
        (223, 500, (224, 502)),
        (100, 150, (224, 336)),
        (1, 1, (224, 224)),
        (1, 300, (224, 67_200)),
        (3, 2, (336, 224)),
    ],
)
def test_sizes(height: int, width: int, size: tuple[int, int]) -> None:
    image = torch.rand(3, height, width)
    grown = fit_side(image, 224)
    assert grown.shape == (3, *size) and grown.dtype == torch.float32
    assert (grown is image) == (size == (height, width))


def test_values_stay_in_range_and_constants_constant() -> None:
    noise = torch.rand(2, 3, 20, 31).round()
    grown = fit_side(noise, 64)
    assert grown.shape == (2, 3, 64, 99) and grown.min() >= 0 and grown.max() <= 1
    assert torch.allclose(fit_side(torch.full((3, 9, 9), 0.3), 64), torch.tensor(0.3))
    ramp = torch.linspace(0, 1, 50).expand(3, 50, 50)
    assert (fit_side(ramp, 200).diff(dim=-1) >= -1e-6).all()


def test_uint8_and_float_agree() -> None:
    pixels = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    assert resize(pixels, 30, 40) is pixels
    assert torch.equal(fit_side(pixels, 64), fit_side(pixels / 255, 64))


def test_gradient_reaches_every_pixel() -> None:
    image = torch.rand(3, 12, 17, requires_grad=True)
    fit_side(image, 48).sum().backward()
    assert image.grad is not None and (image.grad > 0).all()


def test_limit() -> None:
    with pytest.raises(ImageError, match="enlarged") as caught:
        fit_side(torch.zeros(3, 1, 10_000), 224, name="line.png")
    text = str(caught.value)
    assert text.startswith("line.png") and "1 × 10000" in text and "max_pixels" in text and "\n" not in text
    with pytest.raises(ImageError):
        fit_side(torch.zeros(3, 100, 100), 224, max_pixels=224 * 224 - 1)
    assert fit_side(torch.zeros(3, 100, 100), 224, max_pixels=224 * 224).shape == (3, 224, 224)


# Scales


@pytest.mark.parametrize(("height", "width"), [(512, 512), (100, 150), (3000, 4000), (64, 64), (480, 270)])
def test_scales_bring_every_image_to_the_same_areas(height: int, width: int) -> None:
    first, second = views(height, width, Protocol("scales", max_crops=4, sides=(512, 256)))
    for view, side in ((first, 512), (second, 256)):
        assert view.height * view.width == pytest.approx(side**2, rel=0.02)
        assert view.height / view.width == pytest.approx(height / width, rel=0.02)
    assert first.windows == tuple(windows(first.height, first.width, Protocol(max_crops=4)))
    assert 2 <= len(first.windows) <= 4
    assert second.windows == ((0, 0, second.height, second.width),)


def test_scales_that_are_all_seen_whole() -> None:
    found = views(3000, 4000, Protocol("scales", max_crops=0, sides=(448, 480)))
    assert [view.windows for view in found] == [((0, 0, v.height, v.width),) for v in found]
    assert [round((v.height * v.width) ** 0.5) for v in found] == [448, 480]
    first, _ = views(10, 2000, Protocol("scales", max_crops=0))
    assert first.height == 64  # no crop has to fit
    with pytest.raises(ArgumentError, match="max_crops"):
        Protocol("whole", max_crops=0)


def test_scales_of_a_very_long_image_hold_a_crop() -> None:
    first, second = views(10, 2000, Protocol("scales"))
    assert (first.height, second.height) == (224, 64)
    assert first.width == pytest.approx(200 * 224, rel=0.1)


def test_windows_of_a_view_in_the_image() -> None:
    view = View(256, 512, ((0, 0, 256, 512), (32, 288, 224, 224)))
    assert view.in_image(view.windows[0], 1000, 2000) == (0, 0, 1000, 2000)
    assert view.in_image(view.windows[1], 1000, 2000) == (125, 1125, 875, 875)


def test_shrinking_takes_every_pixel_into_account() -> None:
    board = (torch.arange(400)[:, None] + torch.arange(400)) % 2 * torch.ones(3, 1, 1)
    assert torch.allclose(resize(board, 100, 100), torch.tensor(0.5), atol=0.02)
    pixels = torch.rand(1, 3, 90, 60, requires_grad=True)
    resize(pixels, 30, 20).sum().backward()
    assert pixels.grad is not None and (pixels.grad > 0).all()
    assert resize(pixels, 90, 60) is pixels
    with pytest.raises(ImageError, match="enlarged"):
        resize(board, 800, 800, max_pixels=200_000)
    assert resize(board, 300, 500, max_pixels=160_000).shape == (3, 300, 500)


@pytest.mark.parametrize("size", [(388, 517), (40, 900), (900, 40), (499, 701), (500, 300), (600, 300)])
def test_bytes_are_resized_to_the_bits_of_floats(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 500, 701), (2, 3, 130, 64)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        floats = pixels / 255
        assert torch.equal(resize(pixels, *size), resize(floats, *size))
        assert torch.equal(resize(pixels.transpose(-1, -2), *size), resize(floats.transpose(-1, -2), *size))


@pytest.mark.parametrize(
    "protocol", [Protocol("scales", max_crops=0, sides=(448, 480)), Protocol(), Protocol("random")]
)
def test_cost_is_bounded_whatever_the_shape(protocol: Protocol) -> None:
    def cost(height: int, width: int) -> int:
        return sum(h * w for view in views(height, width, protocol) for _, _, h, w in view.windows)

    most = max(cost(448, 448), protocol.crop**2 * protocol.max_crops, protocol.crop**2 * protocol.n_crops)
    for short in (1, 2, 17, 300):
        for ratio in (1, 3, 10, 30, MAX_ASPECT):
            assert cost(short, short * ratio) <= 1.5 * most
            assert cost(short * ratio, short) <= 1.5 * most


def test_images_too_thin_to_score_are_refused() -> None:
    check_aspect(1, MAX_ASPECT, "line.png")
    for size in ((1, 1000), (1000, 1), (2, 2 * MAX_ASPECT + 1)):
        with pytest.raises(ImageError, match=r"line.png: \d+ × \d+ is too thin to score"):
            check_aspect(*size, "line.png")


@pytest.mark.parametrize("sides", [(), (16,), (512.0,), "512", (True,), (10_000,)])
def test_sides_are_checked(sides: Any) -> None:
    with pytest.raises(ArgumentError, match="sides"):
        Protocol("scales", sides=sides)


def test_sides_survive_json() -> None:
    protocol = Protocol("scales", sides=(384, 200))
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
