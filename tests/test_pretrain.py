"""Pretraining on packed crops; the teacher, an extra, is replaced by one that sees in colours."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qmamba
from qmamba.data.distortions import DISTORTIONS
from qmamba.data.photos import CROP, Shards
from qmamba.errors import RecipeError
from qmamba.train import Phase, PretrainRecipe, load_recipe, pretrain, train
from qmamba.train.loop import start_from
from qmamba.train.teacher import Lesson, Teacher
from rated_photos import RECIPE, rated_photos

module = importlib.import_module("qmamba.train.pretraining")

PLAN = PretrainRecipe(
    name="tiny", arch="lqmamba-n", phases=(Phase(32, 4), Phase(64, 2)), crops=4, damaged=2,
    overrides={"widths": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}, lr=3e-3, ema=0.5, cooldown=0.0,
)  # fmt: skip


class ColourTeacher(nn.Module):
    """Local means of the three colours, in as many channels as the teacher has."""

    def __init__(self, tuned: Path | None = None) -> None:
        super().__init__()
        self.rates = tuned is not None

    def forward(self, images: Tensor) -> Lesson:
        pooled = [F.avg_pool2d(images, r, ceil_mode=True) for r in (4, 8, 16, 32)]
        features = [p.repeat(1, w // 3 + 1, 1, 1)[:, :w] for p, w in zip(pooled, Teacher.widths, strict=True)]
        return Lesson(features, images.mean((1, 2, 3)) if self.rates else None)


@pytest.fixture(autouse=True)
def teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Teacher", ColourTeacher)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 5, 5, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    np.save(folder / "crops-0000.npy", coarse[:8])
    np.save(folder / "crops-0001.npy", coarse[8:])
    np.save(folder / "mos.npy", np.array([np.nan] * 8 + [0.2, 0.4, 0.6, 0.8], np.float32))
    assert coarse.shape[1] == CROP
    return folder


def test_the_parts_of_a_batch(shards: Path) -> None:
    crops = Shards(shards)
    seen = []
    for step, size in ((0, 32), (1, 32), (2, 32), (4, 64)):
        batch = module.make_pretrain_batch(crops, PLAN, step)
        assert batch.crops.shape == (4 + 2 * 2, 3, size, size) and batch.crops.dtype == torch.uint8
        assert batch.mos.shape == (4,) and len(set(batch.originals.tolist())) == 2
        low, high = batch.levels
        assert (low >= 1).all() and (high > low).all() and (high <= 5).all()
        again = module.make_pretrain_batch(crops, PLAN, step)
        assert torch.equal(batch.crops, again.crops)
        seen += module._indices(len(crops), PLAN, step).tolist()
    assert sorted(seen[:12]) == list(range(12))  # three steps are an epoch
    halves = [module.make_pretrain_batch(crops, PLAN, 0, rank, 2) for rank in (0, 1)]
    assert [len(h.mos) for h in halves] == [2, 2]


def test_the_losses_by_hand() -> None:
    blur, brighten = (module.KINDS.index(name) for name in ("gaussian_blur", "brighten"))
    assert DISTORTIONS["gaussian_blur"].degrades and not DISTORTIONS["brighten"].degrades
    batch = module.PretrainBatch(
        torch.zeros(7, 3, 32, 32, dtype=torch.uint8), torch.tensor([float("nan"), 0.3, 0.5]),
        torch.tensor([0, 1]), torch.tensor([blur, brighten]), torch.tensor([[1.0, 2.0], [3.0, 5.0]]),
    )  # fmt: skip
    raw = torch.tensor([0.9, 0.3, 0.5, 0.8, 0.0, 0.85, 0.0])
    losses = module._score_losses(raw, batch, margin=0.1)
    assert losses["ranking"].item() == pytest.approx(0.0 + 0.25)  # 0.9 > 0.8 by 0.1; 0.85 is above 0.8
    assert losses["mos"].item() == pytest.approx(0.2 * 0.5 * (1 - 0.1 / 0.1), abs=1e-3)
    logits = torch.zeros(7, module.CLEAN + 1)
    logits[0, module.CLEAN] = logits[3, blur] = logits[5, blur] = 50
    logits[4, brighten] = logits[6, brighten] = 50
    level = torch.tensor([0.0, 9.0, 9.0, 0.2, 0.4, 0.6, 1.0])  # 9: of rated crops, left out
    damage = module._damage_losses(logits, level, batch)
    assert damage["kind"].item() == pytest.approx(0, abs=1e-6)
    assert damage["level"].item() == pytest.approx(0, abs=1e-6)


def test_a_run_learns_and_its_checkpoint_starts_a_fine_tuning(shards: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    plan = dataclasses.replace(PLAN, phases=(Phase(32, 40),))
    folder = pretrain(plan, shards, tmp_path / "run", report=events.append)
    features = [e["features"] for e in events]
    assert np.mean(features[-5:]) < 0.8 * np.mean(features[:5])
    assert events[-1]["lr"] == plan.lr  # held, not brought down
    scorer = qmamba.load(folder)
    assert 0 < scorer.score(np.zeros((64, 64, 3), np.uint8)) < 1
    photos = rated_photos(tmp_path / "photos")
    begun, kept = start_from(folder, PLAN), scorer.network.state_dict()
    assert begun.keys() == kept.keys() and all(torch.equal(begun[k], kept[k]) for k in kept)
    tuned = train(RECIPE, photos, tmp_path / "tuned", init=folder)
    again = train(RECIPE, photos, tmp_path / "random")
    weights = [(run / "model.safetensors").read_bytes() for run in (tuned, again)]
    assert weights[0] != weights[1]
    with pytest.raises(RecipeError, match="holds a lqmamba-n"):
        other = dataclasses.replace(RECIPE, arch="lqmamba-t", overrides={})
        train(other, photos, tmp_path / "t", init=folder)


def test_stopped_and_resumed_gives_the_same_bits(shards: Path, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 3:
            raise KeyboardInterrupt

    whole = pretrain(PLAN, shards, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(PLAN, shards, tmp_path / "parts", report=stop)
    parts = pretrain(PLAN, shards, tmp_path / "parts")
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_run_is_said(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no shards"):
        pretrain(PLAN, tmp_path, tmp_path / "run")
    with pytest.raises(RecipeError, match="must divide by processes"):
        pretrain(PLAN, shards, tmp_path / "run", processes=3)
    for wrong in ({"damaged": 5}, {"phases": (Phase(224, 1),)}, {"kind": -1.0}, {"cooldown": 2.0}):
        with pytest.raises(RecipeError):
            dataclasses.replace(PLAN, **wrong)
    assert isinstance(load_recipe("pretrain-lqmamba-n"), PretrainRecipe)
