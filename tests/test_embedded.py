"""The model inside the package: what it promises for real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qmamba
from qmamba.images import decode

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
LEVELS = (1, 2, 3, 4, 5)
SHRINK = (1.5, 2.0, 3.0, 4.0, 6.0)


def damaged(photo: Path, kind: str, level: int) -> Image.Image:
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    if kind != "shrunk and enlarged":
        return qmamba.distort(picture, kind, level)
    small = [round(side / SHRINK[level - 1]) for side in picture.size]
    return picture.resize(small, Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def scorer():
    return qmamba.load("lqmamba-n")


@pytest.fixture(scope="module")
def originals(scorer):
    return dict(zip(EXAMPLES, scorer.score(EXAMPLES).tolist(), strict=True))


def test_the_default_is_the_embedded_model(originals):
    assert "lqmamba-n" in qmamba.list_models()
    assert len(EXAMPLES) >= 4
    assert qmamba.score(EXAMPLES[0]) == originals[EXAMPLES[0]]
    assert all(0 < score < 1 for score in originals.values())


@pytest.mark.parametrize("photo", EXAMPLES, ids=lambda p: p.stem)
@pytest.mark.parametrize("kind", ["gaussian_blur", "white_noise", "jpeg", "shrunk and enlarged"])
def test_damaged_photographs_score_lower_and_lower(scorer, originals, photo, kind):
    scores = [originals[photo], *(scorer.score(damaged(photo, kind, level)) for level in LEVELS)]
    seen = [round(s, 4) for s in scores]
    # Most photographs that it was rated on are small JPEG files: what lightly damages one looks normal to it.
    more = {"gaussian_blur": 0.01, "shrunk and enlarged": 0.05, "white_noise": 0.02}.get(kind, 0.0)
    assert scores[1:] == sorted(scores[1:], reverse=True), seen
    assert scores[1] <= scores[0] + more and scores[3] < scores[0], seen


def test_every_kind_of_input_is_the_same_photograph(originals):
    path = EXAMPLES[1]
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = [path, str(path), path.read_bytes(), picture, array, tensor, tensor / 255, array / 255.0]
    assert qmamba.score(kinds).tolist() == pytest.approx([originals[path]] * len(kinds), abs=1e-6)


def test_gradient_ascent_raises_the_score(scorer):
    """As a loss: a few steps on the pixels of a JPEG-crushed crop must move its score up."""
    image = qmamba.distort(decode(EXAMPLES[0])[:, 100:324, 100:324], "jpeg", 5)[None] / 255
    pixels = image.clone().requires_grad_()
    before = scorer(pixels)
    (gradient,) = torch.autograd.grad(before.sum(), pixels)
    assert gradient.isfinite().all()
    step = gradient / gradient.abs().max() * 0.01
    with torch.no_grad():
        assert scorer((image + step).clamp(0, 1)) > before


def test_its_card_says_what_a_user_must_know(scorer):
    config = scorer.config
    card = (Path(qmamba.__file__).parent / "weights" / "lqmamba-n" / "README.md").read_text(encoding="utf-8")
    assert scorer.trained_on and "BIQ2021" in card
    assert config.limits and config.limits.strip()[:40] in card
    measured = config.results["BIQ2021 test fold"]
    assert measured["n"] == 886
    assert measured["srcc_low"] < measured["srcc"] < measured["srcc_high"]
    assert measured["srcc"] >= 0.70
