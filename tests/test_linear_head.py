"""Heads fitted in closed form: what is kept, what is learned, what is refused."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import qmamba
from qmamba.checkpoints import ModelConfig
from qmamba.cli import app
from qmamba.data import Rated
from qmamba.errors import CapabilityError, CheckpointError, RecipeError
from qmamba.metrics import srcc
from qmamba.models.statistics import channel_statistics
from qmamba.scoring import Scorer
from qmamba.train import HeadRecipe, fit_head, load_recipe
from qmamba.train.ridge import Block, fit, pooled_moments, standardised

SIZES: dict[str, Any] = {"widths": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
RECIPE = HeadRecipe(
    name="tiny", arch="lqmamba-n", overrides={**SIZES, "head": "statistics"}, sides=(64, 80), strength=0.01,
    calibrated_on="photos", licence="MIT",
)  # fmt: skip


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = qmamba.create_model("lqmamba-n", **SIZES)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    config = ModelConfig(name="base", arch="lqmamba-n", overrides=SIZES)
    folder = tmp_path_factory.mktemp("base") / "base"
    Scorer(network, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> list[Rated]:
    """Noise is bad in two sets of other units; in pairs the noisier image is the worse one."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for name, count, unit, zero in (
        ("photos", 24, 1.0, 0.0),
        ("stills", 12, -80.0, 0.0),
        ("pairs", 12, 1.0, 0.0),
    ):
        for i in range(count):
            noise = float(rng.random()) if name != "pairs" else (i % 2) * 0.5 + 0.2
            base = np.full((72, 96, 3), 60 + 100 * rng.random(3))
            pixels = np.clip(base + noise * 60 * rng.standard_normal((72, 96, 3)), 0, 255).astype(np.uint8)
            path = folder / f"{name}-{i}.png"
            Image.fromarray(pixels).save(path)
            mos = zero + abs(unit) * (1 - noise)
            fold = "val" if name == "photos" and i >= 16 else "train"
            reference = str(i // 2) if name == "pairs" else str(i)
            found.append(Rated(path, mos, fold, reference=reference, set=name))
    return found


def test_the_head_ranks_all_sets_and_the_network_below_is_kept(
    init: Path, ratings: list[Rated], tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, pairs=("pairs",))
    events: list[dict[str, Any]] = []
    scorer = qmamba.load(fit_head(recipe, ratings, tmp_path, init=init, report=events.append))
    assert events[-1] == {"step": 48, "steps": 48}
    for name in ("photos", "stills"):
        members = [r for r in ratings if r.set == name]
        assert srcc(scorer.score([r.path for r in members]), [r.mos for r in members]) > 0.65, name
    pairs = scorer.score([r.path for r in ratings if r.set == "pairs"]).view(-1, 2)
    assert (pairs[:, 0] > pairs[:, 1]).all()
    below, base = scorer.network.state_dict(), qmamba.load(init).network.state_dict()
    assert all(torch.equal(below[k], base[k].half().float()) for k in base if not k.startswith("head."))
    assert scorer.config.trained_on == ("photos", "stills", "pairs") and scorer.config.licence == "MIT"
    mos = torch.tensor([r.mos for r in ratings if r.set == "photos"])
    scores = scorer.score([r.path for r in ratings if r.set == "photos"])
    assert (scores - mos).abs().mean() < 0.2  # calibrated on them


def test_raw_quality_is_the_ridge_regression(init: Path, ratings: list[Rated], tmp_path: Path) -> None:
    photos = [dataclasses.replace(r, set="") for r in ratings if r.set == "photos"]
    recipe = dataclasses.replace(RECIPE, calibrated_on="", sides=(64,))
    scorer = qmamba.load(fit_head(recipe, photos, tmp_path, init=init))
    rows = np.load(tmp_path / "statistics.npy")
    trained = np.array([r.fold == "train" for r in photos])
    mos = np.array([r.mos for r in photos])
    block = Block(rows[trained], standardised(mos[trained]))
    wanted = fit(pooled_moments([block.moments]), 0.01).predict(rows)
    held_out = srcc(wanted[~trained], mos[~trained])
    assert scorer.config.training["val_srcc"] == {"": pytest.approx(held_out, abs=1e-4)}
    found = [float(scorer.raw_parts(r.path).raw.mean()) for r in photos]
    np.testing.assert_allclose(found, wanted, atol=0.03)  # weights are float16
    network = scorer.network
    for _, (_, each) in scorer.look(network.forward_features, qmamba.images.decode(photos[0].path), "x"):
        np.testing.assert_allclose(channel_statistics(each)[0].detach(), rows[0], rtol=1e-2, atol=1e-2)


def test_an_interrupted_run_resumes(
    init: Path, ratings: list[Rated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmamba.train.linear_head.SAVE_EVERY", 10)

    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_head(RECIPE, ratings, tmp_path / "parts", init=init, report=stop)
    assert len(np.load(tmp_path / "parts" / "statistics.npy")) == 20
    steps: list[int] = []
    parts = fit_head(RECIPE, ratings, tmp_path / "parts", init=init, report=lambda e: steps.append(e["step"]))
    assert steps == list(range(21, 49))
    with pytest.raises(RecipeError, match="another recipe or other data"):
        fit_head(dataclasses.replace(RECIPE, sides=(64,)), ratings, tmp_path / "parts", init=init)
    whole = fit_head(RECIPE, ratings, tmp_path / "whole", init=init)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_what_cannot_be_fitted_is_said(init: Path, ratings: list[Rated], tmp_path: Path) -> None:
    def fails(error: type[Exception], message: str, rated: list[Rated] = ratings, **changes: Any) -> None:
        with pytest.raises(error, match=message):
            fit_head(dataclasses.replace(RECIPE, **changes), rated, tmp_path, init=init)

    fails(RecipeError, "names the set 'polyu', got ratings of photos, stills, pairs", pairs=("polyu",))
    fails(RecipeError, "calibrated_on must be one of photos, stills, pairs, got none", calibrated_on="")
    fails(RecipeError, "got ratings of none", rated=[])
    fails(RecipeError, "whose ratings differ", rated=[dataclasses.replace(r, mos=0.5) for r in ratings])
    fails(RecipeError, r"must lie in \[0, 1\]", calibrated_on="stills")
    fails(CheckpointError, "of another network than lqmamba-n", overrides={"head": "statistics"})
    fails(CapabilityError, "reads no statistics", overrides=SIZES)
    for wrong in ({"strength": 0.0}, {"images": 1}, {"calibration_images": 1}, {"head": "mlp"}):
        with pytest.raises(RecipeError):
            dataclasses.replace(RECIPE, **wrong)


def test_the_shipped_recipe_and_the_command(init: Path, ratings: list[Rated], tmp_path: Path) -> None:
    assert isinstance(load_recipe("lqmamba-n-head"), HeadRecipe)
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\narch = "lqmamba-n"\nhead = "ridge"\nsides = [64]\ncalibrated_on = "photos"\n'
        '[overrides]\nwidths = [8, 12, 16, 24]\ndepths = [1, 1, 1, 1]\nhead = "statistics"\n'
    )
    with (tmp_path / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mos", "fold", "reference", "set"])
        writer.writerows([r.path, r.mos, r.fold, r.reference, r.set] for r in ratings)
    command = [
        "train",
        str(tmp_path / "tiny.toml"),
        "-d",
        str(tmp_path / "ratings.csv"),
        "-o",
        str(tmp_path / "o"),
    ]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "must have --init" in refused.stderr
    done = CliRunner().invoke(app, [*command, "--init", str(init), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'o' / 'checkpoint'}\n"
