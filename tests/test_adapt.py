"""`qmamba.train.adapt` and `qmamba adapt`, on a tiny network and a dozen photographs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import qmamba
from qmamba import create_model
from qmamba.adapters import read_adapter_config
from qmamba.checkpoints import save_checkpoint
from qmamba.cli import app
from qmamba.cli.adapt import Method
from qmamba.data import Rated, read_manifest
from qmamba.errors import AdapterError, RecipeError
from qmamba.metrics import bootstrap_interval, srcc
from qmamba.scoring import Scorer
from qmamba.train import AdaptRecipe, adapt
from qmamba.train.adaptation import _Adapter, _Batch, _folds, _plan
from qmamba.train.bank import Bank
from qmamba.train.parallel import Team
from rated_photos import rated_photos, write_manifest
from test_adapters import METHODS
from tiny_adapters import made
from tiny_scorer import tiny_config, tiny_network

RECIPE = AdaptRecipe(epochs=20, crops=4, batch=8, lr=3e-2, patience=4)


def base_network() -> torch.nn.Module:
    """A random network that likes bright photographs a little: with its head turned round, as it happens."""
    network = tiny_network()
    with torch.no_grad():
        network.head.fc.weight.neg_()
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, photographs that are darker and darker, and their manifest."""
    path = tmp_path_factory.mktemp("adapt")
    save_checkpoint(path / "base", base_network(), tiny_config())
    write_manifest(path / "ratings.csv", rated_photos(path / "photos", 13))
    return path


@pytest.fixture(scope="module")
def ratings(folder: Path) -> list[Rated]:
    return read_manifest(folder / "ratings.csv")


@pytest.fixture(scope="module")
def adapted(folder: Path, ratings: list[Rated]) -> Path:
    return adapt(folder / "base", ratings, folder / "run", recipe=RECIPE)


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_learns(adapted: Path, folder: Path, ratings: list[Rated]) -> None:
    config = read_adapter_config(adapted)
    before, after = (config.results[f"val, {when}"] for when in ("before", "after"))
    assert after["srcc"] > before["srcc"] + 0.2 and after["n"] == 5
    val = [r for r in ratings if r.fold == "val"]
    scores = qmamba.load(folder / "base").score([r.path for r in val])
    mos = [r.mos for r in val]
    low, high = bootstrap_interval(srcc, scores, mos)
    assert before["srcc"] == pytest.approx(srcc(scores, mos), abs=1e-4)
    assert (before["srcc_low"], before["srcc_high"]) == pytest.approx((low, high), abs=1e-4)


def test_what_was_measured_is_what_is_loaded(adapted: Path, folder: Path, ratings: list[Rated]) -> None:
    val = [r for r in ratings if r.fold == "val"]
    scorer = qmamba.load(folder / "base", adapter=adapted)
    scores, config = scorer.score([r.path for r in val]), read_adapter_config(adapted)
    assert srcc(scores, [r.mos for r in val]) == pytest.approx(config.results["val, after"]["srcc"], abs=1e-4)
    mean = sum(r.mos for r in val) / len(val)
    assert float(scores.mean()) == pytest.approx(mean, abs=0.05)  # it is calibrated
    assert (
        config.base == "tiny"
        and config.dtype == "float16"
        and str(folder) not in json.dumps(config.to_dict())
    )


def test_the_base_stays_as_it_is(folder: Path, adapted: Path) -> None:
    base = qmamba.load(folder / "base")
    assert base.base_sha256() == read_adapter_config(adapted).base_sha256
    want = base_network().state_dict()
    assert all(torch.equal(value, want[name]) for name, value in base.network.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_only_its_own(method: str, folder: Path, ratings: list[Rated]) -> None:
    """No gradient buffer, and no state of an optimiser, for anything in the base."""
    if method == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    scorer = qmamba.load(folder / "base")
    folds = _folds(ratings, RECIPE)
    learner = _Adapter(_plan(scorer, folds, method, {}, RECIPE), scorer)
    bank = Bank(
        folds["train"][:4], scorer.base(), learner.network, scorer.protocol, crops=2, seed=0,
        preprocessing=scorer.config.preprocessing,
    )  # fmt: skip
    assert bank.keeps_features == (method not in ("full", "lora"))
    before = bank.rate(learner.network, 4)
    for _ in range(3):
        learner.learn(_Batch(bank.features(slice(0, 8)), bank.mos), Team())
    assert not torch.equal(bank.rate(learner.network, 4), before)
    own = {id(p) for p in learner.network.parameters()}
    assert {id(p) for o in learner.optimisers for p in o.state} == own
    assert all(p.grad is None and not p.requires_grad for p in scorer.network.parameters())


def test_a_bank_gives_what_the_whole_network_gives(ratings: list[Rated]) -> None:
    """Features of this network are larger than the pixels: within the limit for pixels, those are kept."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_model("lqmamba-n", widths=(32, 64, 32, 32), depths=(1, 1, 1, 1)).eval()
    scorer = Scorer(network, tiny_config())
    adapter, some = made(scorer), ratings[:3]
    options: dict[str, Any] = {"crops": 3, "seed": 1, "preprocessing": scorer.config.preprocessing}
    kept = Bank(some, scorer.base(), adapter, scorer.protocol, **options)
    limit = len(some) * 3 * 3 * 64 * 64
    pixels = Bank(some, scorer.base(), adapter, scorer.protocol, most_bytes=limit, **options)
    assert kept.keeps_features and not pixels.keeps_features
    assert kept.features(slice(0, 9)).shape == (9, 8, 8, 64)
    assert torch.allclose(kept.rate(adapter, 4), pixels.rate(adapter, 9), atol=1e-5)
    again = Bank(some, scorer.base(), adapter, scorer.protocol, **options)
    assert torch.equal(again.features(slice(0, 9)), kept.features(slice(0, 9)))
    with pytest.raises(RecipeError, match="fewer crops"):
        Bank(some, scorer.base(), adapter, scorer.protocol, most_bytes=limit - 1, **options)


def test_seeded(adapted: Path, folder: Path, ratings: list[Rated], tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = adapt(folder / "base", ratings, tmp_path / "again", recipe=RECIPE)
    other = adapt(folder / "base", ratings, tmp_path / "other", recipe=replace(RECIPE, seed=1))
    assert weights(again) == weights(adapted) != weights(other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("stop", [1, 6, 7])
def test_interrupted_runs_end_with_the_same_bytes(
    stop: int, adapted: Path, folder: Path, ratings: list[Rated], tmp_path: Path
) -> None:
    """Also when it ends between the last step of an epoch and the look at the held-out part."""

    def report(event: dict[str, Any]) -> None:
        if event.get("step") == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(folder / "base", ratings, tmp_path, recipe=RECIPE, report=report)
    assert not (tmp_path / "adapter").exists()
    assert weights(adapt(folder / "base", ratings, tmp_path, recipe=RECIPE)) == weights(adapted)
    steps = [event["step"] for event in log(tmp_path) if "loss" in event]
    assert steps == list(range(1, steps[-1] + 1))


def test_early_stopping_keeps_the_best(folder: Path, ratings: list[Rated], tmp_path: Path) -> None:
    """With a rate that destroys what it touches, the best weights are early ones, and it ends soon."""
    wild = replace(RECIPE, lr=3.0, patience=2, epochs=40)
    config = read_adapter_config(adapt(folder / "base", ratings, tmp_path, method="ssf", recipe=wild))
    looks = [event for event in log(tmp_path) if "val_srcc" in event]
    best, steps = config.training["best_step"], config.training["steps"]
    after = [event["val_srcc"] for event in looks if event["step"] > best]
    assert len(after) == 2 and looks[-1]["step"] == steps < 40 * 4
    until = [event["val_srcc"] for event in looks if event["step"] <= best]
    assert not until or until[-1] == max(until) >= max(after)


def test_folds(ratings: list[Rated]) -> None:
    bare = [replace(r, fold="") for r in ratings]
    drawn = _folds(bare, AdaptRecipe(held_out=0.3))
    assert (len(drawn["train"]), len(drawn["val"]), len(drawn["test"])) == (9, 4, 0)
    assert {r.path for fold in drawn.values() for r in fold} == {r.path for r in ratings}
    assert _folds(bare, AdaptRecipe(held_out=0.3)) == drawn != _folds(bare, AdaptRecipe(held_out=0.3, seed=1))
    no_val = [replace(r, fold="test" if r.fold == "val" else "train") for r in ratings]
    drawn = _folds(no_val, AdaptRecipe(held_out=0.3))
    assert [len(fold) for fold in drawn.values()] == [6, 2, 5]
    pairs = [replace(r, reference=f"scene {i // 2}") for i, r in enumerate(bare[:12])]
    drawn = _folds(pairs, AdaptRecipe(held_out=0.3))
    scenes = {name: {r.reference for r in fold} for name, fold in drawn.items()}
    assert len(drawn["val"]) == 4 and not scenes["train"] & scenes["val"] and len(scenes["val"]) == 2
    for wrong, says in (
        ([replace(r, mos=r.mos * 5) for r in ratings], "rescale"),
        (bare[:2], "two photographs or more"),
    ):
        with pytest.raises(RecipeError, match=says):
            _folds(wrong, AdaptRecipe())


def test_a_test_fold_is_what_is_measured(folder: Path, ratings: list[Rated], tmp_path: Path) -> None:
    moved = [replace(r, fold="test") if i in (2, 5, 8) else r for i, r in enumerate(ratings)]
    config = read_adapter_config(adapt(folder / "base", moved, tmp_path, recipe=RECIPE))
    assert list(config.results) == ["test, before", "test, after"]
    assert config.results["test, after"]["n"] == sum(r.fold == "test" for r in moved)


def test_mistakes(adapted: Path, folder: Path, ratings: list[Rated], tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"epochs": 0, "batch": 1, "held_out": 1.0, "crops": 0}
    for key, value in wrong.items():
        with pytest.raises(RecipeError, match=key):
            AdaptRecipe(**{key: value})
    with pytest.raises(AdapterError, match="no option"):
        adapt(folder / "base", ratings, tmp_path / "x", options={"n": 1})
    with pytest.raises(RecipeError, match="another recipe"):
        adapt(folder / "base", ratings, folder / "run", recipe=replace(RECIPE, seed=4))
    with pytest.raises(RecipeError, match="unfinished run"):
        adapt(folder / "base", ratings, folder / "run", recipe=RECIPE, resume=False)
    with pytest.raises(RecipeError, match="another recipe"):
        adapt(folder / "base", ratings[:-1], folder / "run", recipe=RECIPE)
    assert not (tmp_path / "x").exists()


# The command


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in ("adapt", *arguments)])


def test_the_command(folder: Path, tmp_path: Path) -> None:

    common = ("--base", folder / "base", "--data", folder / "ratings.csv", "--epochs", "3", "--crops", "2")
    more = ("--lr", "0.003", "--option", "prompts=3", "--out", tmp_path / "run")
    result = run(*common, *more, "--progress")
    assert result.exit_code == 0, result.output
    adapter = tmp_path / "run" / "adapter"
    assert result.stdout == f"{adapter}\n"
    assert "val SRCC=" in result.stderr and "photograph 8/8" in result.stderr
    told = [line for line in result.stderr.splitlines() if line.startswith("qmamba: SRCC")]
    assert len(told) == 2 and " to " in told[0] and "also chose" in told[1]
    assert read_adapter_config(adapter).options["prompts"] == 3
    again = run(*common, *more)
    assert again.exit_code == 0 and again.stdout == f"{adapter}\n"
    scored = CliRunner().invoke(
        app,
        [str(a) for a in ("score", folder / "photos", "-m", folder / "base", "-a", adapter, "-f", "jsonl")],
    )
    assert scored.exit_code == 0 and len(scored.stdout.splitlines()) == 13


def test_time_is_up(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ("--base", folder / "base", "--data", folder / "ratings.csv", "--out", out, "--epochs", "2")
    result = run(*common, "--lr", "0.003", "--minutes", "0")
    assert result.exit_code == 3 and "time is up at step 1 of 2" in result.stderr, result.output
    result = run(*common, "--lr", "0.003")
    assert result.exit_code == 0 and (out / "adapter").is_dir()


def test_errors_of_the_command_are_one_line(folder: Path, tmp_path: Path) -> None:
    common = ("--data", folder / "ratings.csv", "--out", tmp_path / "run")
    for arguments, says in (
        (("--data", tmp_path / "no.csv", "--out", tmp_path / "run"), "no manifest at"),
        ((*common, "--base", "nothing"), "no model and no folder"),
        ((*common, "--base", folder / "base", "--option", "prompts"), "NAME=VALUE"),
        ((*common, "--base", folder / "base", "--option", "n=1"), "no option 'n'"),
        ((*common, "--base", folder / "base", "--device", "warp"), "'warp' cannot be used"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and says in result.stderr, result.output
        assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_the_command_knows_every_method() -> None:
    assert sorted(method.value for method in Method) == qmamba.adapters.list_methods()
