"""`qmamba.train.adapt` and `qmamba adapt`, on a tiny network and a dozen photographs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

import qmamba
from qmamba import create_model
from qmamba.adapters import Adapter, read_adapter_config
from qmamba.checkpoints import save_checkpoint
from qmamba.cli import app
from qmamba.cli.adapt import RecipeOptions
from qmamba.data import Rated, rating_scale, read_manifest, rescaled
from qmamba.errors import AdapterError, RecipeError
from qmamba.metrics import bootstrap_interval, srcc
from qmamba.scoring import Scorer
from qmamba.train import QUICK, AdaptRecipe, adapt
from qmamba.train.adaptation import Adaptation, AdaptBatch
from qmamba.train.bank import Bank
from qmamba.train.engine import Run
from qmamba.train.folds import split_folds
from qmamba.train.held_out import HeldOut, calibrated
from qmamba.train.processes import accelerated
from rated_photos import rated_photos, write_manifest
from test_adapters import METHODS
from tiny_adapters import made
from tiny_scorer import tiny_config, tiny_network

RECIPE = AdaptRecipe(epochs=20, crops=4, batch=8, lr=3e-2, patience=4)


def base_network() -> torch.nn.Module:
    """A random network that slightly prefers bright photographs; its head is negated for that."""
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


@torch.no_grad()
def rated(bank: Bank, adapter: Adapter, batch: int = 9) -> Tensor:
    """Return an adapter's raw quality of the crops of a bank."""
    parts = [bank.features(slice(i, i + batch)) for i in range(0, len(bank), batch)]
    return torch.cat([adapter.after(bank.network, part)[:, 0] for part in parts])


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
def test_every_method_trains_only_its_own(
    method: str, folder: Path, ratings: list[Rated], tmp_path: Path
) -> None:
    """No gradient buffer, and no state of an optimiser, for anything in the base."""
    if method == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    scorer = qmamba.load(folder / "base")
    folds = split_folds(ratings, RECIPE.held_out, RECIPE.seed)
    task = Adaptation(scorer, folds, RECIPE, method)
    with torch.random.fork_rng(), accelerated(torch.device("cpu"), "float32") as processes:
        run = Run(task, RECIPE, tmp_path, processes)
        bank = Bank(folds["train"][:4], scorer, task.network, crops=2, seed=0)
        assert bank.keeps_features == (method not in ("full", "lora"))
        before = rated(bank, task.network)
        for _ in range(3):
            run.learn(iter([AdaptBatch(bank.features(slice(0, 8)), bank.mos)]), 1e-2)
        assert not torch.equal(rated(bank, task.network), before)
        own = {id(p) for p in task.network.parameters()}
        assert {id(p) for o in run.optimisers for p in o.state} == own
    assert all(p.grad is None and not p.requires_grad for p in scorer.network.parameters())


def test_a_bank_gives_what_the_whole_network_gives(ratings: list[Rated]) -> None:
    """Features of this network are larger than the pixels: within the limit for pixels, those are kept."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_model("lqmamba-n", widths=(32, 64, 32, 32), depths=(1, 1, 1, 1)).eval()
    scorer = Scorer(network, tiny_config())
    adapter, subset = made(scorer), ratings[:3]
    options: dict[str, Any] = {"crops": 3, "seed": 1}
    kept = Bank(subset, scorer, adapter, **options)
    limit = len(subset) * 3 * 3 * 64 * 64
    pixels = Bank(subset, scorer, adapter, most_bytes=limit, **options)
    assert kept.keeps_features and not pixels.keeps_features
    assert [part.shape for part in kept.features(slice(0, 9))] == [(9, 8, 8, 64)]
    assert torch.allclose(rated(kept, adapter, 4), rated(pixels, adapter), atol=1e-5)
    repeated = Bank(subset, scorer, adapter, **options)
    (first,), (second,) = (bank.features(slice(0, 9)) for bank in (kept, repeated))
    assert torch.equal(first, second)
    with pytest.raises(RecipeError, match="fewer crops"):
        Bank(subset, scorer, adapter, most_bytes=limit - 1, **options)


def test_seeded(adapted: Path, folder: Path, ratings: list[Rated], tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    repeated = adapt(folder / "base", ratings, tmp_path / "again", recipe=RECIPE)
    other = adapt(folder / "base", ratings, tmp_path / "other", recipe=replace(RECIPE, seed=1))
    assert weights(repeated) == weights(adapted) != weights(other)
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


def test_split_folds(ratings: list[Rated]) -> None:
    bare = [replace(r, fold="") for r in ratings]
    drawn = split_folds(bare, 0.3, 0)
    assert (len(drawn["train"]), len(drawn["val"]), len(drawn["test"])) == (9, 4, 0)
    assert {r.path for fold in drawn.values() for r in fold} == {r.path for r in ratings}
    assert split_folds(bare, 0.3, 0) == drawn != split_folds(bare, 0.3, 1)
    no_val = [replace(r, fold="test" if r.fold == "val" else "train") for r in ratings]
    drawn = split_folds(no_val, 0.3, 0)
    assert [len(fold) for fold in drawn.values()] == [6, 2, 5]
    pairs = [replace(r, reference=f"scene {i // 2}") for i, r in enumerate(bare[:12])]
    drawn = split_folds(pairs, 0.3, 0)
    scenes = {name: {r.reference for r in fold} for name, fold in drawn.items()}
    assert len(drawn["val"]) == 4 and not scenes["train"] & scenes["val"] and len(scenes["val"]) == 2
    for wrong, says in (
        ([replace(r, mos=r.mos * 5) for r in ratings], "rescaled"),
        (bare[:2], "two photographs or more"),
    ):
        with pytest.raises(RecipeError, match=says):
            split_folds(wrong, 0.2, 0)


@pytest.mark.parametrize("method", ["linear-probe", "ssf"])
def test_a_destructive_rate_keeps_the_base(
    method: str, folder: Path, ratings: list[Rated], tmp_path: Path
) -> None:
    """Ratings that the base already ranks right: every change is for the worse, and none is handed over."""
    base = qmamba.load(folder / "base")
    scores = base.score([r.path for r in ratings]).tolist()
    low, high = min(scores), max(scores)
    agreed = [replace(r, mos=(s - low) / (high - low)) for r, s in zip(ratings, scores, strict=True)]
    wild = replace(RECIPE, lr=30.0, patience=2, clip=1e6)
    adapter = adapt(folder / "base", agreed, tmp_path / "run", method=method, recipe=wild)
    config = read_adapter_config(adapter)
    assert config.training["best_step"] == 0 < config.training["steps"]
    assert config.results["val, before"] == config.results["val, after"]
    assert config.calibration == base.calibration
    kept = qmamba.load(folder / "base", adapter=adapter)
    assert kept.score([r.path for r in ratings]).tolist() == scores

    write_manifest(tmp_path / "agreed.csv", agreed)
    result = run(
        "--model", folder / "base", "--data", tmp_path / "agreed.csv", "--out", tmp_path / "cli",
        "--method", method, "--lr", "30", "--epochs", "3", "--push-to-hub", "me/never",
    )  # fmt: skip
    assert result.exit_code == 1 and "so the base is kept" in result.stderr, result.output
    assert result.stdout == f"{tmp_path / 'cli' / 'adapter'}\n"


def test_held_out_scores_are_those_of_the_scorer(
    folder: Path, ratings: list[Rated], adapted: Path, tmp_path: Path
) -> None:
    """Also where nothing fits into memory, and for adapters that change the network from its start."""
    for method in ("style-prompt", "full"):
        scorer = qmamba.load(folder / "base")
        adapter = made(scorer, method)
        for most_bytes in (1 << 30, 0):
            held = HeldOut(scorer, ratings[:3], adapter, most_bytes=most_bytes)
            scores = calibrated(held.rate(adapter), scorer.calibration)
            scorer.add_adapter("x", adapter)
            scorer.set_adapter("x")
            expected = scorer.score([r.path for r in ratings[:3]])
            scorer.delete_adapter("x")
            assert torch.allclose(scores, expected, atol=1e-6)


def test_what_is_logged_is_by_the_protocol(adapted: Path, folder: Path) -> None:
    """The best value in the log is the reported one, up to storing the weights in 16 bits."""
    best = max(event["val_srcc"] for event in log(folder / "run") if "val_srcc" in event)
    assert read_adapter_config(adapted).results["val, after"]["srcc"] == pytest.approx(best, abs=0.101)


@pytest.mark.parametrize(("scale", "turn"), [((1.0, 5.0), 1), ((100.0, 0.0), -1), (None, 1)])
def test_any_scale_gives_the_same_adapter(
    scale: tuple[float, float] | None,
    turn: int,
    adapted: Path,
    folder: Path,
    ratings: list[Rated],
    tmp_path: Path,
) -> None:
    worst, best = scale or (0.0, 100.0)
    other = [replace(r, mos=worst + r.mos * (best - worst)) for r in ratings]
    assert turn * (other[0].mos - other[-1].mos) > 0
    config = read_adapter_config(adapt(folder / "base", other, tmp_path, recipe=RECIPE, scale=scale))
    for when in ("before", "after"):
        want = read_adapter_config(adapted).results[f"val, {when}"]["srcc"]
        assert config.results[f"val, {when}"]["srcc"] == pytest.approx(want, abs=0.101)


def test_scales_are_found() -> None:
    def rated(*mos: float, scale: tuple[float, float] | None = None) -> list[Rated]:
        return [Rated(Path(f"{i}.png"), m, std=1.0, scale=scale) for i, m in enumerate(mos)]

    for mos, ends in (
        ((0.1, 0.9), (0, 1)), ((1.2, 4.8), (1, 5)), ((0.5, 4.0), (0, 5)), ((2.0, 6.5), (1, 7)),
        ((0.0, 9.0), (0, 10)), ((12.0, 80.0), (0, 100)), ((-3.0, 3.0), (-3, 3)), ((1.0, 800.0), (1, 800)),
    ):  # fmt: skip
        assert rating_scale(rated(*mos)) == ends
    assert rating_scale(rated(20.0, 104.0, scale=(0.0, 100.0))) == (0, 104)
    (first, second) = rescaled(rated(20.0, 95.0), (100.0, 0.0))
    assert (first.mos, second.mos) == pytest.approx((0.8, 0.05)) and first.std == pytest.approx(0.01)
    for ratings, scale, says in (
        (rated(0.5, 6.0), (1.0, 5.0), "scale 1 to 5, got 0.5"),
        (rated(1.0, 2.0), (3.0, 3.0), "two different"),
        ([], None, "got none"), (rated(500.0, 500.0), None, "must differ"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=says):
            rescaled(ratings, scale)


def test_the_time_is_estimated_before_it_starts(
    adapted: Path, folder: Path, ratings: list[Rated], tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    adapter = adapt(folder / "base", ratings, tmp_path, recipe=RECIPE, report=events.append)
    (told,) = [i for i, event in enumerate(events) if "seconds" in event and "note" in event]
    assert told == 0 and 0 < events[0]["seconds"] < 300 and "up to 80 steps" in events[0]["note"]
    assert weights(adapter) == weights(adapted)  # and it changed nothing


def test_ratings_that_run_the_other_way_are_noticed(
    folder: Path, ratings: list[Rated], tmp_path: Path
) -> None:
    base = qmamba.load(folder / "base")
    scores = base.score([r.path for r in ratings]).tolist()
    turned = [replace(r, mos=(max(scores) - s)) for r, s in zip(ratings, scores, strict=True)]
    events: list[dict[str, Any]] = []
    adapt(folder / "base", turned, tmp_path, recipe=replace(RECIPE, epochs=1), report=events.append)
    assert any("if lower ratings are better" in event.get("note", "") for event in events)


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

    common = ("--model", folder / "base", "--data", folder / "ratings.csv", "--epochs", "3", "--crops", "2")
    more = ("--lr", "0.003", "--option", "prompts=3", "--out", tmp_path / "run")
    result = run(*common, *more, "--progress")
    assert result.exit_code == 0, result.output
    adapter = tmp_path / "run" / "adapter"
    assert result.stdout == f"{adapter}\n"
    assert "val SRCC=" in result.stderr and "photograph 8/8" in result.stderr
    told = [line for line in result.stderr.splitlines() if line.startswith("qmamba: SRCC")]
    assert len(told) == 2 and " to " in told[0] and "also decided" in told[1]
    assert "qmamba: up to 3 steps" in result.stderr
    assert read_adapter_config(adapter).options["prompts"] == 3
    second = run(*common, *more, "--license", "MIT", "--trained-on", "Stills", "--trained-on", "More stills")
    config, card = read_adapter_config(adapter), (adapter / "README.md").read_text()
    assert (config.licence, config.trained_on) == ("MIT", ("Stills", "More stills"))
    assert "license: mit" in card and "Stills" in card
    assert second.exit_code == 0 and second.stdout == f"{adapter}\n"
    scored = CliRunner().invoke(
        app,
        [str(a) for a in ("score", folder / "photos", "-m", folder / "base", "-a", adapter, "-f", "jsonl")],
    )
    assert scored.exit_code == 0 and len(scored.stdout.splitlines()) == 13


def test_the_quick_preset_takes_few_steps() -> None:
    assert RecipeOptions(quick=True).recipe() == QUICK
    assert RecipeOptions(quick=True, epochs=2).recipe() == replace(QUICK, epochs=2)
    photographs = 160  # of 200, a fifth of which is held out
    assert photographs * QUICK.crops // QUICK.batch * QUICK.epochs == 120
    assert photographs * AdaptRecipe().crops // AdaptRecipe().batch * AdaptRecipe().epochs == 750


def test_time_is_up(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ("--model", folder / "base", "--data", folder / "ratings.csv", "--out", out, "--epochs", "2")
    result = run(*common, "--lr", "0.003", "--minutes", "0")
    assert result.exit_code == 3 and "time is up at step 1 of 2" in result.stderr, result.output
    result = run(*common, "--lr", "0.003")  # two steps may be too few to be better than the base
    assert result.exit_code in (0, 1) and (out / "adapter").is_dir()


def test_errors_of_the_command_are_one_line(folder: Path, tmp_path: Path) -> None:
    common = ("--data", folder / "ratings.csv", "--out", tmp_path / "run")
    for arguments, says in (
        (("--data", tmp_path / "no.csv", "--out", tmp_path / "run"), "no manifest at"),
        ((*common, "--model", "nothing"), "no model and no folder"),
        ((*common, "--model", folder / "base", "--option", "prompts"), "NAME=VALUE"),
        ((*common, "--model", folder / "base", "--option", "n=1"), "no option 'n'"),
        ((*common, "--scale", "1"), "--scale must be WORST:BEST"),
        ((*common, "--scale", "0.5:1"), "give another scale"),
        ((*common, "--push-to-hub", "mine"), "must be a Hub id"),
        ((*common, "--model", folder / "base", "--device", "warp"), "'warp' cannot be used"),
        ((*common, "--model", folder / "base", "--method", "lore"), "near names: lora"),
        (("--data", folder / "photos", "--out", tmp_path / "run"), "a folder; give NAME="),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and says in result.stderr, result.output
        assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_the_command_knows_every_method() -> None:
    assert run("--list").stdout.split() == qmamba.adapters.list_methods()
