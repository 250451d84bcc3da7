"""A scorer as a loss: the scores of `score`, and gradients that reach the pixels and are finite."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from qmamba.errors import ImageError
from qmamba.protocol import KINDS
from qmamba.scoring import Scorer
from tiny_scorer import photo, tiny_config, tiny_network, with_protocol


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


def test_batch_equals_score_of_the_same_pixels(scorer: Scorer) -> None:
    for kind, size in itertools.product(KINDS, [(64, 64), (100, 150), (40, 90)]):
        varied = with_protocol(scorer, kind=kind, n_crops=3)
        pixels = np.stack([photo(*size, seed) for seed in range(3)])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        scores = varied(batch)
        assert scores.shape == (3,) and scores.dtype == torch.float32
        assert torch.allclose(scores, varied.score(list(pixels)), atol=3e-6, rtol=0)


@pytest.mark.parametrize("what", ["black", "white", "constant", "random", "rounded"])
@pytest.mark.parametrize("size", [(64, 64), (50, 90), (130, 70)])
def test_gradients_reach_the_pixels_and_are_finite(scorer: Scorer, what: str, size: tuple[int, int]) -> None:
    batch = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    if what in ("black", "white", "constant"):
        batch = torch.full_like(batch, {"black": 0.0, "white": 1.0, "constant": 0.4}[what])
    elif what == "rounded":
        batch = batch.round()
    batch.requires_grad_()
    scores = scorer(batch)
    scores.sum().backward()
    assert batch.grad is not None and torch.isfinite(batch.grad).all()
    assert (batch.grad.flatten(1).abs().amax(1) > 0).all()
    assert all(parameter.grad is None for parameter in scorer.parameters())


def test_gradient_is_that_of_the_score(scorer: Scorer) -> None:
    batch = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(2))
    leaf = batch.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scorer(leaf).sum(), leaf)
    direction = gradient / gradient.norm()
    slope = (scorer(batch + 0.01 * direction) - scorer(batch - 0.01 * direction)) / 0.02
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_ascent_raises_the_score(scorer: Scorer) -> None:
    batch = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    start = float(scorer(batch.detach()))
    for _ in range(5):
        (gradient,) = torch.autograd.grad(scorer(batch).sum(), batch)
        batch = (batch + 0.02 * gradient / gradient.abs().max()).detach().requires_grad_()
    assert float(scorer(batch.detach())) > start


def test_scoring_first_does_not_spoil_gradients(scorer: Scorer) -> None:
    fresh = with_protocol(scorer)
    fresh.score(
        torch.rand(3, 64, 64)
    )  # whatever the network keeps from inference mode must not be needed later
    batch = torch.rand(1, 3, 64, 64, requires_grad=True)
    fresh(batch).sum().backward()
    assert batch.grad is not None
    with torch.inference_mode():
        assert fresh(torch.rand(1, 3, 64, 64)).shape == (1,)
    assert not torch.is_inference_mode_enabled()


def test_autocast(scorer: Scorer) -> None:
    batch = torch.rand(2, 3, 64, 64, requires_grad=True)
    want = scorer(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = scorer(batch)
    assert got.dtype == torch.float32 and torch.allclose(got, want, atol=0.05)
    got.sum().backward()
    assert batch.grad is not None and torch.isfinite(batch.grad).all()


def test_float_types_of_a_batch(scorer: Scorer) -> None:
    batch = torch.rand(2, 3, 64, 64)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        scores = scorer(batch.to(dtype))
        assert scores.dtype == torch.float32 and torch.allclose(scores, scorer(batch), atol=0.05)
    assert scorer(torch.zeros(0, 3, 64, 64)).shape == (0,)


@pytest.mark.parametrize(
    ("batch", "word"),
    [
        (torch.rand(3, 64, 64), "shape (3, 64, 64)"),
        (torch.rand(1, 1, 64, 64), "shape (1, 1, 64, 64)"),
        (torch.rand(1, 64, 64, 3), "shape (1, 64, 64, 3)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "divide by 255"),
        (torch.full((1, 3, 64, 64), 255.0), "[0, 1]"),
        (torch.full((1, 3, 64, 64), -2.0), "[0, 1]"),
        (torch.full((1, 3, 64, 64), math.nan), "NaN"),
        (torch.full((1, 3, 64, 64), math.inf), "[0, 1]"),
        ("photo.jpg", ".score()"),
        (np.zeros((1, 3, 64, 64), np.float32), "ndarray"),
    ],
)
def test_bad_batches(scorer: Scorer, batch: Any, word: str) -> None:
    with pytest.raises(ImageError) as caught:
        scorer(batch)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_slight_overshoot_of_a_batch_keeps_its_gradient(scorer: Scorer) -> None:
    batch = (torch.rand(1, 3, 64, 64) * 1.2 - 0.1).requires_grad_()
    scorer(batch).sum().backward()
    outside = (batch < 0) | (batch > 1)
    assert batch.grad is not None and outside.any() and (batch.grad[outside] != 0).any()
