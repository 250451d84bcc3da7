"""JPEG files decoded at a fraction of their size, where that is asked for and the protocol allows it."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qmamba.errors import ImageError
from qmamba.images import decode, decode_for
from qmamba.protocol import Protocol, least_size
from qmamba.scoring import Scorer, load
from tiny_scorer import photo, quick_config, tiny_config, tiny_network


def smooth(height: int, width: int) -> Image.Image:
    """A picture without fine detail, which any way of shrinking leaves alike."""
    return Image.fromarray(photo(12, 16, 3)).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=95, **options)
    return buffer.getvalue()


@pytest.fixture
def scorer() -> Scorer:
    found = Scorer(tiny_network(), quick_config())  # sees about 64 × 64 pixels
    found.draft = True
    return found


def test_how_far_an_image_may_be_reduced() -> None:
    protocol = Protocol("scales", max_crops=0, sides=(64, 100))
    assert least_size(800, 800, protocol) == (200, 200)
    assert least_size(400, 1600, protocol) == (128, 512), "the shorter side of a view is at least 64"
    for kind in ("grid", "random", "whole"):
        assert least_size(800, 600, Protocol(kind)) == (800, 600)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_largest_reduction_that_is_large_enough(scorer: Scorer, factor: int) -> None:
    data = jpeg(smooth(128 * factor + 3, 128 * factor + 5))
    found = scorer.decoded(data)
    assert (found.height, found.width) == (128 * factor + 3, 128 * factor + 5)
    sides = [-(-side // factor) for side in (found.height, found.width)]
    assert list(found.pixels.shape) == [3, *sides]
    scorer.draft = False
    assert torch.equal(scorer.decoded(data).pixels, decode(data))


@pytest.mark.parametrize("kind", ["plain", "progressive", "grey", "cmyk", "mpo", *range(2, 9)])
def test_any_jpeg_scores_alike(scorer: Scorer, kind: Any) -> None:
    image = smooth(700, 900)
    data = jpeg(image)
    if kind == "progressive":
        data = jpeg(image, progressive=True)
    elif kind in ("grey", "cmyk"):
        data = jpeg(image.convert({"grey": "L", "cmyk": "CMYK"}[kind]))
    elif kind == "mpo":
        data = jpeg(image, "MPO", save_all=True, append_images=[smooth(700, 900).rotate(180)])
    elif kind != "plain":
        exif = Image.Exif()
        exif[0x0112] = kind
        data = jpeg(image, exif=exif.tobytes())
    reduced = scorer.decoded(data)
    whole = decode(data)
    assert (reduced.height, reduced.width) == tuple(whole.shape[1:]) and reduced.pixels.shape[1] < 400
    small = torch.nn.functional.interpolate(
        whole[None].float(), reduced.pixels.shape[1:], mode="bilinear", antialias=True
    )[0]
    assert (small - reduced.pixels.float()).abs().mean() < 1.5
    want = scorer.crop_scores(data)
    scorer.draft = False
    exact = scorer.crop_scores(data)
    assert want.windows == exact.windows and want.mean == pytest.approx(exact.mean, abs=0.03)


def test_everything_else_is_left_alone(scorer: Scorer, tmp_path: Path) -> None:
    image = smooth(700, 900)
    image.save(tmp_path / "a.png")
    opened = Image.open(io.BytesIO(jpeg(image)))
    for given in (tmp_path / "a.png", opened, np.asarray(image), decode(tmp_path / "a.png")):
        assert scorer.decoded(given).pixels.shape == (3, 700, 900)
    scorer.config = tiny_config()  # a grid
    assert scorer.decoded(jpeg(image)).pixels.shape == (3, 700, 900)


def test_all_that_reads_a_file_sees_the_same(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(smooth(700, 900)))
    score = scorer.score(path)
    with path.open("rb") as file:
        assert scorer.score(file) == score
    assert scorer.score([path, path]).tolist() == [score, score]
    assert scorer.crop_scores(path).mean == scorer.quality_map(path).score == score
    assert scorer.quality_map(scorer.decoded(path)).score == score
    assert (scorer.quality_map(path).height, scorer.quality_map(path).width) == (700, 900)
    assert copy.deepcopy(scorer).score(path) == pickle.loads(pickle.dumps(scorer)).score(path) == score
    scorer.draft = False
    assert scorer.score(path) != score


def test_limits_are_those_of_the_whole_image(scorer: Scorer) -> None:
    data = jpeg(smooth(700, 900))
    with pytest.raises(ImageError, match=r"0\.6 megapixels, more than the limit"):
        scorer.score(data, max_pixels=600_000)
    with pytest.raises(ImageError, match="truncated"):
        scorer.score(data[: len(data) // 2])
    with pytest.raises(ImageError, match="too thin"):
        scorer.score(jpeg(smooth(20, 1200)))


def test_load_has_the_option() -> None:
    assert load(draft=True).draft and not load().draft
    path = Path(__file__).parents[1] / "examples" / "rocket.jpg"
    assert torch.equal(decode_for(path, lambda height, width: (height, width)).pixels, decode(path))
