"""Adapters on a scorer: peft's verbs, several on one model, one for each image, threads, the command line."""

from __future__ import annotations

import copy
import json
import pickle
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import qmamba
from qmamba.adapters import create
from qmamba.checkpoints import save_checkpoint
from qmamba.cli import app
from qmamba.errors import AdapterError, CheckpointError, ImageError
from qmamba.scoring import Scorer
from test_adapters import METHODS
from tiny_adapters import CALIBRATION, config_for, made, saved
from tiny_scorer import photo, tiny_config, tiny_network

IMAGES = [photo(64, 64), photo(90, 70, 1), photo(64, 100, 2)]


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.fixture
def two(scorer: Scorer) -> Scorer:
    scorer.add_adapter("stills", made(scorer, seed=3), config_for(scorer))
    scorer.add_adapter("upscaled", made(scorer, "ssf", seed=4), config_for(scorer, "ssf"))
    return scorer


def with_each(scorer: Scorer) -> dict[str | None, list[float]]:
    """Scores by every adapter, and by none."""
    found: dict[str | None, list[float]] = {}
    for name in (*scorer.adapters, None):
        scorer.set_adapter(name)
        found[name] = scorer.score(IMAGES).tolist()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_adapter_changes_no_score(scorer: Scorer, method: str) -> None:
    if method == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    before = scorer.score(IMAGES)
    scorer.add_adapter("fresh", create(method, scorer.base()))
    scorer.set_adapter("fresh")
    assert scorer.active_adapter == "fresh"
    assert torch.equal(scorer.score(IMAGES), before)


@pytest.mark.parametrize("method", METHODS)
def test_disabling_restores_every_bit(scorer: Scorer, method: str) -> None:
    if method == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, of_batch = scorer.score(IMAGES), scorer(batch)
    scorer.add_adapter("mine", made(scorer, method), config_for(scorer, method))
    assert torch.equal(scorer.score(IMAGES), before), "an adapter is not active before set_adapter"
    scorer.set_adapter("mine")
    adapted = scorer.score(IMAGES)
    assert (adapted - before).abs().min() > 1e-3
    assert not torch.allclose(scorer(batch), of_batch, atol=1e-3)
    with scorer.disable_adapter():
        assert scorer.active_adapter is None
        assert torch.equal(scorer.score(IMAGES), before) and torch.equal(scorer(batch), of_batch)
    assert scorer.active_adapter == "mine" and torch.equal(scorer.score(IMAGES), adapted)
    scorer.delete_adapter("mine")
    assert scorer.active_adapter is None and torch.equal(scorer.score(IMAGES), before)


def test_several_live_on_one_model(two: Scorer) -> None:
    scores = with_each(two)
    assert len({tuple(row) for row in scores.values()}) == 3
    mixed = two.score(IMAGES, adapters=["upscaled", None, "stills"])
    assert mixed.tolist() == [scores["upscaled"][0], scores[None][1], scores["stills"][2]]
    assert two.active_adapter is None
    two.set_adapter("stills")
    assert two.score(IMAGES, adapters=[None] * 3).tolist() == scores[None]
    assert two.score(IMAGES[0], adapters=["upscaled"]) == scores["upscaled"][0]
    assert two.score([IMAGES[0], None], adapters=["upscaled"] * 2, on_error="nan").isnan().tolist() == [
        False,
        True,
    ]
    two.delete_adapter("upscaled")
    assert two.active_adapter == "stills" and list(two.adapters) == ["stills"]


def test_the_score_is_the_adapters_own_calibration_of_its_raw_output(two: Scorer) -> None:
    two.set_adapter("stills")
    assert two.calibration == CALIBRATION
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (two.config.preprocessing.mean, two.config.preprocessing.std)
    )
    adapter = two.adapter_in_use()
    assert adapter is not None
    raw = adapter(two.base(), (batch - mean) / std)[:, 0]
    assert torch.allclose(two(batch), CALIBRATION(raw), atol=1e-6)
    parts = two.crop_scores(IMAGES[1])
    assert parts.mean == two.score(IMAGES[1])
    assert [s for _, s in two.iter_scores(IMAGES)] == two.score(IMAGES).tolist()


def test_switching_costs_less_than_a_millisecond(two: Scorer) -> None:
    times = []
    for i in range(200):
        began = time.perf_counter()
        two.set_adapter(("stills", "upscaled", None)[i % 3])
        times.append(time.perf_counter() - began)
    assert statistics.median(times) < 1e-3


def test_frozen_and_in_evaluation_mode(two: Scorer) -> None:
    nn.ModuleList([two]).train()
    assert not any(module.training for module in two.modules())
    assert not any(p.requires_grad for p in two.parameters())
    two.set_adapter("stills")
    batch = torch.rand(1, 3, 64, 64, requires_grad=True)
    two(batch).sum().backward()
    assert batch.grad is not None and batch.grad.isfinite().all() and batch.grad.any()


def test_copies_and_types(two: Scorer) -> None:
    two.set_adapter("stills")
    want = two.score(IMAGES)
    for other in (copy.deepcopy(two), pickle.loads(pickle.dumps(two))):
        assert torch.equal(other.score(IMAGES), want)
        other.set_adapter(None)
        assert two.active_adapter == "stills"
    half = copy.deepcopy(two).to(torch.bfloat16)
    assert torch.allclose(half.score(IMAGES), want, atol=0.05)
    late = Scorer(tiny_network().double(), tiny_config())
    late.add_adapter("stills", made(Scorer(tiny_network(), tiny_config())))
    late.set_adapter("stills")
    assert late.score(IMAGES).isfinite().all()


def test_lora_survives_copies_of_the_scorer(scorer: Scorer) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    scorer.add_adapter("lora", made(scorer, "lora"), config_for(scorer, "lora"))
    scorer.set_adapter("lora")
    want = scorer.score(IMAGES)
    for other in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        assert torch.equal(other.score(IMAGES), want)
    assert torch.allclose(copy.deepcopy(scorer).double().score(IMAGES), want, atol=1e-4)


def test_threads(two: Scorer) -> None:
    """Some change the active adapter, some disable it, some name one an image: each score is a whole one."""
    scores = with_each(two)

    def work(i: int) -> bool:
        if i % 3 == 0:
            two.set_adapter(("stills", "upscaled")[i % 2])
            return two.score(IMAGES).tolist() in (scores["stills"], scores["upscaled"])
        if i % 3 == 1:
            with two.disable_adapter():
                return bool(two.score(IMAGES).tolist() == scores[None])
        return bool(two.score(IMAGES, adapters=["stills"] * 3).tolist() == scores["stills"])

    two.set_adapter("stills")
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))
    assert two.active_adapter in ("stills", "upscaled")


def test_an_iterator_keeps_the_adapter_that_it_began_with(two: Scorer) -> None:
    scores = with_each(two)
    two.set_adapter("stills")
    stream: Iterator[Any] = two.iter_scores(IMAGES)
    two.set_adapter(None)
    assert [score for _, score in stream] == scores["stills"]
    two.set_adapter("stills")
    with two.disable_adapter():
        stream = two.iter_scores(IMAGES)
    assert [score for _, score in stream] == scores[None]


def test_names(two: Scorer) -> None:
    for verb in (two.set_adapter, two.delete_adapter):
        with pytest.raises(AdapterError, match="'other' here: stills, upscaled"):
            verb("other")
    with pytest.raises(AdapterError, match="'other'"):
        two.score(IMAGES, adapters=["stills", "other", None])
    for adapters in (["stills"], [None] * 4):
        with pytest.raises(AdapterError, match="there are 3 images"):
            two.score(IMAGES, adapters=adapters)
    with pytest.raises(AdapterError, match="a list"):
        two.score(IMAGES, adapters="stills")
    for name in ("", "a.b", "keys", "training", "../up", None, 3):
        with pytest.raises(AdapterError, match="is called by"):
            two.add_adapter(name, made(two))  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        two.set_adapter("stills")
        two.score(None)


def test_only_networks_of_ours_take_adapters(tmp_path: Path, scorer: Scorer) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3))[:, None] + self.weight

    with pytest.raises(AdapterError, match="not for a Other"):
        Scorer(Other(), tiny_config()).load_adapter(saved(tmp_path, scorer))


@pytest.mark.skipif(getattr(torch.compiler, "is_exporting", None) is None, reason="torch before 2.7")
def test_an_adapted_network_of_a_scorer_compiles(two: Scorer) -> None:
    two.set_adapter("stills")
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    try:
        assert torch.allclose(torch.compile(two, backend="aot_eager")(batch), two(batch), atol=1e-5)
    finally:
        torch.compiler.reset()


def test_what_is_exported_has_the_active_adapter(two: Scorer) -> None:
    from qmamba.integrations.onnx import _Scored

    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for name in ("stills", None):
        two.set_adapter(name)
        found.append(_Scored(two)(batch))
        assert torch.allclose(found[-1], two(batch), atol=1e-6)
    assert not torch.allclose(*found, atol=1e-3)


# From disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "base", tiny_network(), tiny_config())
    base = qmamba.load(tmp_path / "base")
    saved(tmp_path / "stills", base)
    Image.fromarray(np.asarray(IMAGES[0])).save(tmp_path / "photo.png")
    return tmp_path


def test_load_with_an_adapter(folder: Path) -> None:
    scorer = qmamba.load(folder / "base", adapter=folder / "stills")
    assert scorer.active_adapter == "default" and scorer.calibration == CALIBRATION
    later = qmamba.load(folder / "base")
    config = later.load_adapter(str(folder / "stills"), "stills")
    assert later.active_adapter is None and config.method == "style-prompt"
    later.set_adapter("stills")
    assert later.score(IMAGES).tolist() == scorer.score(IMAGES).tolist()
    assert later.score(IMAGES[0]) != qmamba.load(folder / "base").score(IMAGES[0])
    half = qmamba.load(folder / "base", adapter=folder / "stills", dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert torch.allclose(half.score(IMAGES), scorer.score(IMAGES), atol=0.02)
    with pytest.raises(AdapterError, match="its folder, or a Hub id"):
        later.load_adapter("nowhere")
    with pytest.raises(CheckpointError, match="is a file"):
        later.load_adapter(folder / "photo.png")


def test_the_command_line(folder: Path) -> None:
    def run(*arguments: Any) -> Any:
        command = ["score", folder / "photo.png", "--model", folder / "base", "--format", "json", *arguments]
        return CliRunner().invoke(app, [str(a) for a in command])

    plain, adapted = (json.loads(run(*a).stdout)[0]["score"] for a in ((), ("--adapter", folder / "stills")))
    scorer = qmamba.load(folder / "base", adapter=folder / "stills")
    assert adapted == pytest.approx(scorer.score(folder / "photo.png"), abs=1e-6) and adapted != plain
    refused = run("--adapter", folder / "base")
    assert refused.exit_code == 2 and "not an adapter" in refused.stderr and refused.stderr.count("\n") == 1
    (folder / "r.csv").write_text("image,mos\nphoto.png,0.5\nphoto.png,0.6\n")
    command = ["evaluate", "--model", folder / "base", "--data", folder / "r.csv", "-a", folder / "stills"]
    told = CliRunner().invoke(app, [str(a) for a in command])
    assert told.exit_code == 0 and f"tiny with {folder / 'stills'}" in told.stdout
