"""Maps: what each position adds to a score sums to the score, and damage shows where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

import qmamba
from qmamba.calibration import Calibration
from qmamba.errors import CapabilityError, ImageError
from qmamba.scoring import Scorer
from qmamba.scoring.quality_map import local_values
from tiny_adapters import config_for, made
from tiny_scorer import encode, photo, tiny_config, tiny_network, with_protocol

EXAMPLES = Path(__file__).parents[1] / "examples"
PROTOCOLS = (
    {"kind": "grid"},
    {"kind": "random", "n_crops": 3},
    {"kind": "whole"},
    {"kind": "scales", "sides": (96, 64)},
    {"kind": "scales", "sides": (80, 112), "max_crops": 0},
)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.mark.parametrize("fields", PROTOCOLS, ids=lambda f: "-".join(map(str, f.values())))
@pytest.mark.parametrize("size", [(64, 64), (70, 151), (40, 200)])
def test_the_parts_sum_to_the_score(scorer, fields, size) -> None:
    scorer, image = with_protocol(scorer, **fields), photo(*size)
    found = scorer.quality_map(image)
    assert found.score == scorer.score(image)
    assert len(found.windows) == len(found.scores) == len(found.shares) > 1
    assert found.scores.dtype == found.shares.dtype == torch.float32
    assert float(found.shares.sum()) == pytest.approx(1, abs=1e-5)
    assert float((found.scores * found.shares).sum()) == pytest.approx(found.score, abs=1e-6)
    assert found.scores.std() > 1e-3  # it tells positions apart
    # Every part has its crop's score for a mean, not only all of them together.
    means = [grid.mean() for grids in found.parts for grid in grids]
    torch.testing.assert_close(torch.stack(means), scorer.crop_scores(image).scores, rtol=0, atol=1e-6)


def test_windows_tile_their_parts() -> None:
    scorer = with_protocol(Scorer(tiny_network(), tiny_config()), kind="whole")
    seen = np.zeros((70, 151), int)
    for top, left, height, width in scorer.quality_map(photo(70, 151)).windows:
        assert min(top, left) >= 0 and min(height, width) > 0
        seen[top : top + height, left : left + width] += 1
    assert (seen == 1).all()


def test_a_picture_of_the_map(scorer) -> None:
    found = with_protocol(scorer, kind="whole").quality_map(photo(96, 128))
    picture, grid = found.image(), found.parts[0][0].numpy()
    assert picture.shape == (96, 128) and picture.dtype == np.float32
    # Position (i, j) lies at pixel (32 i, 32 j); between two there is a straight line.
    np.testing.assert_allclose(picture[::32, ::32], grid, atol=1e-5)
    np.testing.assert_allclose(picture[16, 32], (grid[0, 1] + grid[1, 1]) / 2, atol=1e-5)
    np.testing.assert_allclose(picture[70:, 100:], grid[2, 3], atol=0.2)
    assert found.image(10, 20).shape == (10, 20)


def test_what_was_not_seen_has_no_value(scorer) -> None:
    scorer = with_protocol(scorer, kind="random", n_crops=2)
    found = scorer.quality_map(photo(300, 400))
    unseen = np.ones((300, 400), bool)
    for top, left, height, width in with_protocol(scorer, kind="random", n_crops=2).crop_scores(
        photo(300, 400)
    )[0]:
        unseen[top : top + height, left : left + width] = False
    assert unseen.any() and (np.isnan(found.image()) == unseen).all()


@pytest.mark.parametrize("method", ["style-prompt", "style-prompt-r", "linear-probe", "full", "ssf", "lora"])
def test_an_adapter_draws_its_own_map(scorer, method) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    scorer, image = with_protocol(scorer), photo(100, 130)
    plain = scorer.quality_map(image)
    scorer.add_adapter("it", made(scorer, method), config_for(scorer, method))
    scorer.set_adapter("it")
    found = scorer.quality_map(image)
    assert found.score == scorer.score(image) != plain.score
    assert float((found.scores * found.shares).sum()) == pytest.approx(found.score, abs=1e-6)
    with scorer.disable_adapter():
        assert torch.equal(scorer.quality_map(image).scores, plain.scores)


def test_narrow_types_sum_too(scorer) -> None:
    narrow = with_protocol(scorer).to(torch.bfloat16)
    found = narrow.quality_map(photo(70, 90))
    assert found.score == narrow.score(photo(70, 90))
    assert float((found.scores * found.shares).sum()) == pytest.approx(found.score, abs=1e-6)


def test_the_same_map_again_and_from_any_kind_of_input(scorer) -> None:
    state = torch.random.get_rng_state()
    first = scorer.quality_map(photo(90, 120))
    repeated = scorer.quality_map(encode(photo(90, 120)), batch_size=32)
    assert torch.equal(first.scores, repeated.scores) and first.windows == repeated.windows
    assert np.array_equal(first.image(), repeated.image())
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scorer.quality_map(photo(90, 120)).scores, first.scores)


def test_what_cannot_be_mapped(scorer, tmp_path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        scorer.quality_map(tmp_path / "none.png")
    other = Scorer(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)), tiny_config())
    with pytest.raises(CapabilityError, match="Sequential has no quality map"):
        other.quality_map(photo(64, 64))


def test_values_follow_the_calibration() -> None:
    calibration = Calibration(slope=2.0, offset=0.3)
    raw, positions = torch.tensor([[0.4]]), torch.tensor([[[0.3, 0.5]]])
    scores, values = local_values(raw, positions, calibration)
    raw = raw[:, 0]
    step = float(calibration(raw + 1e-3) - calibration(raw - 1e-3)) / 2e-3
    assert scores == calibration(raw)
    torch.testing.assert_close(values - scores, torch.tensor([[[-0.1, 0.1]]]) * step, rtol=1e-3, atol=0)


def test_a_blurred_half_is_the_worse_half() -> None:
    image = Image.open(EXAMPLES / "coffee.jpg").convert("RGB")
    width, height = image.size
    scorer = qmamba.load()
    before = scorer.quality_map(image).image()
    for left in (0, width // 2):
        damaged, half = image.copy(), slice(left, left + width // 2)
        box = (half.start, 0, half.stop, height)
        damaged.paste(image.filter(ImageFilter.GaussianBlur(4)).crop(box), box)
        after = scorer.quality_map(damaged).image()
        assert after[:, half].mean() < np.delete(after, half, axis=1).mean()
        # It is the damaged half that loses most, whatever the two showed before.
        lost = before - after
        assert lost[:, half].mean() > 2 * abs(np.delete(lost, half, axis=1).mean())


@pytest.mark.parametrize("name", ["astronaut.jpg", "cameraman.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg"])
def test_an_undamaged_photograph_does_not_look_damaged(name: str) -> None:
    """On the default colour scale of 0 to 1 it stays clear of both ends, and most of it near the middle."""
    found = qmamba.load().quality_map(EXAMPLES / name)
    low, high = found.limits()
    places = (found.coarse() - low) / (high - low)
    assert places.min() > 0.15 and places.max() < 0.85
    assert np.quantile(places, 0.1) > 0.3 and np.quantile(places, 0.9) < 0.7
