"""Scores: the same image always gets the same one, and a large or tiny one gets one or a clear no."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from qmamba.errors import ImageError
from qmamba.images import decode
from qmamba.images.resizing import resize, unit
from qmamba.protocol import KINDS, Protocol, views, windows
from qmamba.scoring import Scorer
from tiny_scorer import encode, photo, tiny_config, tiny_network, with_protocol


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Images of every kind and of various sizes."""
    folder = tmp_path_factory.mktemp("images")
    photos = [
        photo(height, width, height) for height, width in ((64, 64), (90, 130), (70, 65), (40, 50), (200, 64))
    ]
    (folder / "a.png").write_bytes(encode(photos[0]))
    (folder / "b.png").write_bytes(encode(photos[1]))
    return [
        str(folder / "a.png"),
        folder / "b.png",
        encode(photos[2]),
        io.BytesIO(encode(photos[3])),
        Image.fromarray(photos[4]),
        Image.fromarray(photos[1]).convert("L"),
        photos[2],
        photos[3].astype(np.float64) / 255,
        torch.from_numpy(photos[4]).permute(2, 0, 1),
        torch.from_numpy(photos[0]).permute(2, 0, 1) / 255,
    ]


# --- what a scorer is


def test_attributes(scorer: Scorer) -> None:
    assert (
        scorer.lower_better is False and scorer.score_range == (0.0, 1.0) and scorer.trained_on == ("none",)
    )
    assert scorer.name == "tiny" and scorer.protocol.crop == 64
    assert "tiny" in repr(scorer)
    devices = [key for key, value in vars(scorer).items() if isinstance(value, (torch.device, torch.Tensor))]
    assert not devices, "device state belongs to the parameters"


def test_frozen_and_always_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.9), nn.Linear(3, 1))
    network.train()
    scorer = Scorer(network, tiny_config())
    outer = nn.ModuleDict({"scorer": scorer, "own": nn.Linear(2, 2)})
    for module in (outer.train(), outer.train(True)):
        assert module.training and not any(part.training for part in scorer.modules())
    assert scorer.train() is scorer
    assert not any(parameter.requires_grad for parameter in scorer.parameters())
    batch = torch.rand(2, 3, 64, 64)
    assert torch.equal(scorer(batch), scorer(batch)), "no dropout"


def test_copies_and_pickles_score_the_same(scorer: Scorer) -> None:
    image = photo(70, 90)
    for twin in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        assert twin.score(image) == scorer.score(image)


# --- one score for one image


def test_list_equals_singles_bit_for_bit_in_any_order(scorer: Scorer, mixed: list[Any]) -> None:
    singles = [scorer.score(image) for image in mixed]
    assert all(type(score) is float and 0 < score < 1 for score in singles)
    assert len({round(score, 4) for score in singles}) >= 5, (
        "the images must differ for this test to mean anything"
    )
    scores = scorer.score(mixed)
    assert scores.shape == (len(mixed),) and scores.dtype == torch.float32 and scores.device.type == "cpu"
    assert scores.tolist() == singles
    order = np.random.default_rng(0).permutation(len(mixed)).tolist()
    assert scorer.score([mixed[i] for i in order]).tolist() == [singles[i] for i in order]
    assert scorer.score(mixed[:3]).tolist() == singles[:3]


def test_kinds_of_one_image_agree(scorer: Scorer, mixed: list[Any]) -> None:
    scores = scorer.score(mixed)
    for a, b in ((0, 9), (2, 6), (3, 7), (4, 8)):
        assert scores[a] == pytest.approx(float(scores[b]), abs=1e-6)


def test_sequences(scorer: Scorer, mixed: list[Any]) -> None:
    paths = [str(image) for image in mixed[:2]]
    want = scorer.score(paths)
    table = pd.DataFrame({"path": paths}, index=[7, 3])
    for images in (
        tuple(paths),
        iter(paths),
        table.path.to_numpy(),
        np.array(paths),
    ):
        assert torch.equal(scorer.score(images), want)
    for column in (table.path, pd.Series(mixed[:2], index=[7, 3])):
        found = scorer.score(column)
        assert isinstance(found, pd.Series) and found.index.tolist() == [7, 3]
        assert found.dtype == np.float32 and found.tolist() == want.tolist()
    batch = torch.rand(3, 3, 70, 64)
    assert torch.equal(scorer.score(batch), scorer.score(list(batch)))
    assert scorer.score(batch[:1]).shape == (1,) and type(scorer.score(batch[0])) is float
    assert scorer.score([]).shape == (0,) and scorer.score([]).dtype == torch.float32


def test_score_is_the_mean_of_its_calibrated_crops(scorer: Scorer) -> None:
    pixels = photo(150, 100)
    boxes, parts, weights = scorer.crop_scores(pixels)
    assert boxes == windows(150, 100, scorer.protocol) and len(boxes) == 4 == len(parts)
    assert weights.tolist() == [0.25] * 4
    assert scorer.score(pixels) == pytest.approx(float(parts.mean()), abs=1e-7)
    mean, std = scorer.config.preprocessing.tensors()
    for (top, left, height, width), part in zip(boxes, parts, strict=True):
        crop = torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1) / 255
        with torch.no_grad():
            raw = scorer.network(((crop - mean) / std)[None])
        # this network's loud random weights turn the last bits of float32 into 1e-5 of the raw number
        assert float(part) == pytest.approx(1 / (1 + math.exp(-(0.5 * float(raw) + 0.1))), abs=1e-5)


def test_deviations_of_the_parts(scorer: Scorer) -> None:
    images = [photo(150, 100), photo(64, 64), photo(70, 200, seed=3)]
    scores, deviations = scorer.score(images, return_std=True)
    assert torch.equal(scores, scorer.score(images))
    for image, deviation in zip(images, deviations.tolist(), strict=True):
        parts = scorer.crop_scores(image)
        assert deviation == pytest.approx(float(parts.scores.std(correction=0)), abs=1e-6)
        assert scorer.score(image, return_std=True) == pytest.approx((parts.mean, deviation), abs=1e-6)
    assert deviations[1] == 0 < deviations[0]
    scores, deviations = scorer.score([images[0], b"no image"], return_std=True, on_error="nan")
    assert scores.isnan().tolist() == deviations.isnan().tolist() == [False, True]


def test_scales_count_the_same(scorer: Scorer) -> None:
    scales = with_protocol(scorer, kind="scales", sides=(128, 64))
    image = photo(100, 130)
    boxes, parts, weights = scales.crop_scores(image)
    assert len(boxes) == 5 and weights.tolist() == [0.125] * 4 + [0.5]
    assert boxes[4] == (0, 0, 100, 130)
    assert scales.score(image) == pytest.approx(float(parts[:4].mean() + parts[4]) / 2, abs=1e-6)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    assert float(scales(batch)) == pytest.approx(scales.score(image), abs=1e-5)


def test_batch_size_changes_no_more_than_rounding(scorer: Scorer) -> None:
    image = photo(150, 200)
    scores = [scorer.score(image, batch_size=size) for size in (1, 3, 32)]
    assert max(scores) - min(scores) < 5e-6  # products of other shapes may add up in another order


def test_same_in_threads(scorer: Scorer, mixed: list[Any]) -> None:
    images = [image for image in mixed if not isinstance(image, io.BytesIO)]
    want = scorer.score(images)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(got, want) for got in pool.map(scorer.score, [images] * 4))


@pytest.mark.parametrize("kind", KINDS)
def test_protocols_leave_global_random_state_alone(scorer: Scorer, kind: str) -> None:
    scorer = with_protocol(scorer, kind=kind, n_crops=3)
    image = photo(80, 100)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()
    first = scorer.score([image, image])
    scorer(torch.rand(1, 3, 80, 100, generator=torch.Generator().manual_seed(1)))
    assert before == (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    assert torch.equal(scorer.score([image, image]), first) and first[0] == first[1]


def test_protocols_differ(scorer: Scorer) -> None:
    image = photo(100, 300)
    scores = {kind: with_protocol(scorer, kind=kind).score(image) for kind in KINDS}
    assert len(set(scores.values())) == len(KINDS)
    assert with_protocol(scorer, kind="random", seed=1).score(image) != scores["random"]
    pixels = unit(decode(image))[None]
    whole = with_protocol(scorer, kind="whole")
    assert whole.score(image) == pytest.approx(float(whole(pixels)), abs=1e-6)


def test_bits_do_not_depend_on_earlier_calls(scorer: Scorer) -> None:
    image = photo(100, 100)
    first = scorer.score(image)
    scorer.score(photo(300, 64))
    scorer(torch.rand(2, 3, 64, 64))
    assert scorer.score(image) == first


# --- small and large images


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *itertools.product(("grid", "random"), ((1, 1), (1, 50), (50, 1), (63, 64), (5, 7))),
        *itertools.product(("whole",), ((1, 1), (63, 64), (5, 7))),
    ],
)
def test_small_images_are_enlarged(scorer: Scorer, kind: str, size: tuple[int, int]) -> None:
    scorer = with_protocol(scorer, kind=kind, n_crops=2)
    pixels = photo(*size)
    score = scorer.score(pixels)
    assert 0 < score < 1
    (view,) = views(*size, Protocol(crop=64))
    grown = resize(decode(pixels), view.height, view.width)
    assert min(grown.shape[1:]) == 64 and score == pytest.approx(scorer.score(grown), abs=1e-6)


def test_enlarging_beyond_the_limit_is_refused() -> None:
    scorer = Scorer(tiny_network(), tiny_config().replace(protocol=Protocol()))
    line = np.zeros((1, 50, 3), np.uint8)
    with pytest.raises(ImageError) as caught:
        scorer.score(line, max_pixels=1_000_000)
    text = str(caught.value)
    assert "1 × 50" in text and "224 × 11200" in text and "max_pixels" in text and "\n" not in text
    scores = scorer.score([line, photo(224, 224)], on_error="nan", max_pixels=1_000_000)
    assert scores.isnan().tolist() == [True, False]


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (9, 500)])
def test_an_image_too_thin_to_score_is_refused(scorer: Scorer, size: tuple[int, int]) -> None:
    line = photo(*size)
    with pytest.raises(ImageError, match="too thin to score"):
        scorer.score(line)
    with pytest.raises(ImageError, match=r"batch: .* is too thin"):
        scorer(torch.zeros(1, 3, *size))
    assert scorer.score([line, photo(64, 64)], on_error="nan").isnan().tolist() == [True, False]


def test_max_pixels(scorer: Scorer) -> None:
    image = photo(100, 100)
    assert 0 < scorer.score(image, max_pixels=10_000) < 1
    with pytest.raises(ImageError, match="max_pixels"):
        scorer.score(image, max_pixels=9_999)
    with pytest.raises(ImageError, match="enlarged"):
        scorer.score(photo(60, 60), max_pixels=3_700)
