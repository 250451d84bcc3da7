"""Training on the ratings of several sets: one scale, a share of every batch, what selects."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import qmamba
from qmamba.data import Rated
from qmamba.errors import RecipeError
from qmamba.metrics import srcc
from qmamba.train import Recipe, train
from qmamba.train.batches import choose, make_batch
from qmamba.train.rated_sets import on_one_scale, quantiles
from qmamba.train.recipe_files import parse_recipe
from rated_photos import rated_photos

TOML = """
name = "tiny"
arch = "lqmamba-n"
data = "manifest"
overrides = { widths = [8, 16, 32, 64], depths = [1, 1, 1, 1] }
images = 6
ranked = 2
noisy = 0.5
scale = "a"
as_is = ["c"]
sides = [64]
calibration_images = 4
validate_every = 4

[sets]
a = 3
b = 2
c = 1

[[phases]]
crop = 32
steps = 4
"""


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> list[Rated]:
    """Three sets: "a" in [0, 1], "b" of the same photographs from -50 to 50, and "c" in [0, 1]."""
    photos = rated_photos(tmp_path_factory.mktemp("photos"))
    a, c = ([dataclasses.replace(r, set=name) for r in photos] for name in "ac")
    b = [dataclasses.replace(r, set="b", mos=100 * r.mos**3 - 50) for r in photos]
    return [*a, *b, *c]


def recipe() -> Recipe:
    made = parse_recipe(TOML)
    assert isinstance(made, Recipe)
    return made


def test_quantiles_share_ties_and_stay_within_bounds() -> None:
    ordered = np.array([0.0, 1.0, 1.0, 1.0, 2.0])
    assert quantiles(ordered, np.array([-5.0, 1.0, 1.5, 99.0])).tolist() == [0.0, 0.5, 0.8, 1.0]


def test_sets_come_to_one_scale_in_their_own_order(rated: list[Rated]) -> None:
    mapped = on_one_scale(rated, "abc", "a", "c")
    scores = {name: [r.mos for r in mapped if r.set == name] for name in "abc"}
    assert scores["a"] == scores["c"] == [r.mos for r in rated if r.set == "a"]
    training = [i for i, r in enumerate(rated[:12]) if r.fold == "train"]
    # A monotone map of the same opinions comes back, as far as quantiles of eight can tell.
    assert np.allclose(np.array(scores["b"])[training], np.array(scores["a"])[training], atol=0.06)
    assert srcc(scores["b"], [r.mos for r in rated[12:24]]) == pytest.approx(1, abs=0.02)
    assert min(scores["b"]) >= 0 and max(scores["b"]) <= 1


def test_a_missing_set_is_named(rated: list[Rated]) -> None:
    with pytest.raises(RecipeError, match="none of the set 'd'; their column set has a, b, c"):
        on_one_scale(rated, "abd", "a")
    with pytest.raises(RecipeError, match="'b' must have images in the fold 'train'"):
        on_one_scale([r for r in rated if r.set != "b" or r.fold == "val"], "ab", "a")


def test_every_batch_has_each_sets_share(rated: list[Rated]) -> None:
    for step in range(5):
        assert Counter(r.set for r in choose(rated, recipe(), step)) == {"a": 3, "b": 2, "c": 1}
    drawn = [r.path.name for step in range(4) for r in choose(rated, recipe(), step) if r.set == "a"]
    assert sorted(drawn) == sorted(r.path.name for r in rated if r.set == "a")  # an epoch of twelve
    halves = [make_batch(rated, recipe(), 1, rank, ranks=2).mos for rank in (0, 1)]
    assert sorted(torch.cat(halves)) == sorted(make_batch(rated, recipe(), 1).mos)


def test_camera_noise_replaces_some_distortions(rated: list[Rated]) -> None:
    plain = dataclasses.replace(recipe(), noisy=0.0)
    always = dataclasses.replace(recipe(), noisy=1.0)
    assert torch.equal(make_batch(rated, plain, 0).mos, make_batch(rated, always, 0).mos)
    noise = make_batch(rated, always, 0)
    again = make_batch(rated, always, 0)
    assert torch.equal(noise.crops, again.crops)
    mild, strong = noise.crops[6:].float().view(2, 2, 3, 32, 32)
    clean = noise.crops[noise.originals].float()
    assert ((strong - clean).square().mean((1, 2, 3)) > (mild - clean).square().mean((1, 2, 3))).all()


def test_training_on_sets(rated: list[Rated], tmp_path: Path) -> None:
    events: list[dict[str, float]] = []
    folder = train(recipe(), rated, tmp_path, report=events.append)
    config = qmamba.load(folder).config
    assert config.trained_on == ("a", "b", "c")
    # Only the set whose scale it is selects: validating on "b" as well would compare across sets.
    assert [set(e) for e in events if "val_srcc" in e] == [{"step", "val_srcc", "val_plcc"}]
    assert config.calibration is not None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sets": {}}, "scale and as_is must come with sets"),
        ({"sets": {"a": 3, "b": 2, "c": 2}}, "6 in all"),
        ({"sets": {"a": 6, "b": 0}}, "at least 1 image each"),
        ({"scale": "d"}, "must be one of a, b, c, got 'd'"),
        ({"scale": ""}, "must be one of a, b, c, got ''"),
        ({"as_is": ("d",)}, "must be one of a, b, c, got 'd'"),
        ({"noisy": 1.5}, "noisy must be a share from 0 to 1"),
    ],
)
def test_bad_recipes(changed: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        dataclasses.replace(recipe(), **changed)  # type: ignore[arg-type]
