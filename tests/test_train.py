"""Training: losses, recipes, batches, and whole runs of a tiny network."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qmamba
from qmamba.data import Rated
from qmamba.errors import BackendError, CheckpointError, ImageError, RecipeError, UnknownModelError
from qmamba.models.lite0 import LITE0
from qmamba.train import (
    HeadRecipe,
    Phase,
    Recipe,
    WordsRecipe,
    batches,
    engine,
    list_recipes,
    load_recipe,
    train,
)
from qmamba.train.batches import choose, make_batch
from qmamba.train.losses import plcc_loss, ranking_loss, smooth_l1
from qmamba.train.optimisers import make_optimisers
from qmamba.train.prefetch import made_ahead
from qmamba.train.recipe_files import parse_recipe
from rated_photos import RECIPE, TOML, rated_photos

# Losses


def test_smooth_l1() -> None:
    # 0.5 is on the straight part, 0.5 - 0.1 / 2; 0.05 is on the parabola, 0.05² / (2 · 0.1)
    loss = smooth_l1(torch.tensor([0.5, 0.05]), torch.zeros(2), beta=0.1)
    assert float(loss) == pytest.approx((0.45 + 0.0125) / 2)


def test_plcc_loss() -> None:
    mos = torch.tensor([1.0, 3.0, 2.0])
    assert float(plcc_loss(torch.tensor([1.0, 2.0, 3.0]), mos)) == pytest.approx(0.25)  # PLCC 0.5
    assert float(plcc_loss(7 * mos - 2, mos)) == pytest.approx(0.0, abs=1e-6)
    assert float(plcc_loss(-mos, mos)) == pytest.approx(1.0)
    constant = torch.ones(3, requires_grad=True)
    plcc_loss(constant, mos).backward()
    assert constant.grad is not None and torch.isfinite(constant.grad).all()


def test_ranking_loss() -> None:
    better, worse = torch.tensor([0.9, 0.5, 0.9]), torch.tensor([0.8, 0.6, 0.1])
    assert float(ranking_loss(better, worse, 0.2)) == pytest.approx((0.1 + 0.3 + 0.0) / 3)
    assert float(ranking_loss(better, worse, torch.tensor([0.0, 0.1, 1.0]))) == pytest.approx(0.4 / 3)


# Recipes


def test_shipped_recipes() -> None:
    assert "lqmamba-n-biq2021" in list_recipes()
    for name in list_recipes():
        recipe = load_recipe(name)
        assert recipe.arch in [*qmamba.list_archs(), LITE0, "q-adapt"]
        assert isinstance(recipe, (HeadRecipe, WordsRecipe)) or recipe.steps > 0


def test_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOML + "[[phases]]\ncrop = 64\nsteps = 2\n")
    recipe = load_recipe(path)
    assert recipe == load_recipe(str(path))
    assert recipe.phases == (Phase(32, 8), Phase(64, 2)) and recipe.steps == 10
    assert [recipe.phase_at(step).crop for step in (0, 7, 8, 9)] == [32, 32, 64, 64]
    assert recipe.overrides == {"widths": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}
    assert parse_recipe('lr = 1\nname = "a"\narch = "b"\nphases = [{crop = 32, steps = 1}]').lr == 1


HEAD = 'name = "a"\narch = "b"\n'
PHASE = "[[phases]]\ncrop = 32\nsteps = 1\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "not valid TOML"),
        (PHASE, "lacks 'arch'; the keys are accumulate, arch,"),
        (HEAD, "lacks 'phases'"),
        (HEAD + "lrate = 1\n" + PHASE, "unknown key 'lrate'"),
        (HEAD + "phases = []\n", "at least one phase"),
        (HEAD + "phases = 3\n", "phases must be of type list, got 3"),
        (HEAD + "[[phases]]\ncrop = 32\n", "phases lacks 'steps'; the keys are crop,"),
        (HEAD + "[[phases]]\ncrop = 32\nsteps = 1\nlr = 1\n", "phases has the unknown key 'lr'"),
        (HEAD + "[[phases]]\ncrop = 16\nsteps = 1\n", "crop of at least 32.*crop = 16"),
        (HEAD + "[[phases]]\ncrop = 32.5\nsteps = 1\n", "crop must be of type int, got 32.5"),
        (HEAD + '[[phases]]\ncrop = "32"\nsteps = 1\n', "crop must be of type int"),
        (HEAD + "[[phases]]\ncrop = 32\nsteps = true\n", "steps must be of type int, got True"),
        (HEAD + 'lr = "high"\n' + PHASE, "lr must be of type float, got 'high'"),
        (HEAD + "images = 2.5\n" + PHASE, "images must be of type int"),
        (HEAD + "images = true\n" + PHASE, "images must be of type int"),
        (HEAD + "overrides = [1]\n" + PHASE, "overrides must be of type dict"),
        (HEAD + "images = 1\nranked = 0\n" + PHASE, "images must be at least 2, got 1"),
        (HEAD + "ranked = 25\n" + PHASE, r"ranked must be 0 to images \(24\), got 25"),
        (HEAD + "lr = 0\n" + PHASE, "lr must be above 0"),
        (HEAD + "lr = nan\n" + PHASE, "lr must be above 0"),
        (HEAD + "clip = inf\n" + PHASE, "clip must be at least 0"),
        (HEAD + 'optimiser = "sgd"\n' + PHASE, "optimiser must be one of adamw, muon, got 'sgd'"),
        (HEAD + "warmup = 1.0\n" + PHASE, "below 1"),
        (HEAD + "ema = 1.0\n" + PHASE, "below 1"),
        (HEAD + "validate_every = 0\n" + PHASE, "validate_every must be at least 1"),
        (HEAD + "seed = -1\n" + PHASE, "seed must be at least 0"),
        (HEAD + "margin = nan\n" + PHASE, "margin must be at least 0"),
        (HEAD + 'data = "koniq"\n' + PHASE, "must be one of biq2021, manifest, got 'koniq'"),
    ],
)
def test_bad_recipes(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as raised:
        parse_recipe(text, "mine.toml")
    assert "\n" not in str(raised.value)


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no recipe 'lqmamba-m'; give a \.toml file, or one of .*lqmamba-n"
    ):
        load_recipe("lqmamba-m")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "a.toml")


# Batches


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Rated]:
    return rated_photos(tmp_path_factory.mktemp("photos"))


def test_epochs_are_shuffled_wholes(photos: list[Rated]) -> None:
    nine = photos[:9]
    steps = [choose(nine, RECIPE, step) for step in range(6)]  # 36 photographs, four times nine
    drawn = [nine.index(rated) for step in steps for rated in step]
    epochs = [drawn[k : k + 9] for k in range(0, 36, 9)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert epochs[0] != epochs[1] != list(range(9))
    assert steps != [choose(nine, dataclasses.replace(RECIPE, seed=1), step) for step in range(6)]


def test_batches_are_a_function_of_seed_step_and_rank(photos: list[Rated]) -> None:
    one = make_batch(photos, RECIPE, 3)
    repeated = make_batch(photos, RECIPE, 3)
    for name in ("crops", "mos", "originals", "levels"):
        assert torch.equal(getattr(one, name), getattr(repeated, name))
    others = [
        make_batch(photos, RECIPE, 4),
        make_batch(photos, RECIPE, 3, rank=1, ranks=2),
        make_batch(photos, dataclasses.replace(RECIPE, seed=1), 3),
    ]
    assert not any(torch.equal(one.crops[:3], other.crops[:3]) for other in others)
    ahead = list(made_ahead(lambda step: make_batch(photos, RECIPE, step), 3, RECIPE.steps, workers=3))
    assert len(ahead) == RECIPE.steps - 3 and torch.equal(ahead[0].crops, one.crops)
    assert torch.equal(ahead[-1].crops, make_batch(photos, RECIPE, RECIPE.steps - 1).crops)
    assert list(made_ahead(lambda step: step, 5, 5)) == []


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_make_the_whole_batch(photos: list[Rated], ranks: int) -> None:
    recipe = dataclasses.replace(RECIPE, ranked=6)
    whole = make_batch(photos, recipe, 1)
    parts = [make_batch(photos, recipe, 1, rank, ranks) for rank in range(ranks)]
    assert sorted(torch.cat([p.mos for p in parts]).tolist()) == sorted(whole.mos.tolist())
    assert sum(len(p.crops) for p in parts) == len(whole.crops) == 6 + 2 * 6


def test_the_parts_of_a_batch(photos: list[Rated]) -> None:
    for step, size in ((0, 32), (8, 64)):
        batch = make_batch(photos, RECIPE, step)
        assert batch.crops.shape == (6 + 2 * 2, 3, size, size) and batch.crops.dtype == torch.uint8
        assert batch.mos.tolist() == pytest.approx([r.mos for r in choose(photos[:12], RECIPE, step)])
        assert batch.mos[batch.originals].tolist() == sorted(batch.mos.tolist(), reverse=True)[:2]
        mild, strong = batch.levels
        assert (mild >= 1).all() and (strong > mild).all() and (strong <= 5).all()
        originals = batch.crops[batch.originals].float()
        errors = [
            (copies.float() - originals).square().mean((1, 2, 3)) for copies in batch.crops[6:].split(2)
        ]
        assert (errors[0] >= 0).all() and (errors[1] >= errors[0]).all() and errors[1].sum() > 0


def test_photographs_smaller_than_a_crop_are_enlarged(photos: list[Rated]) -> None:
    recipe = dataclasses.replace(RECIPE, phases=(Phase(128, 1),))
    batch = make_batch(photos, recipe, 0)
    assert batch.crops.shape[2:] == (128, 128) and batch.crops.float().std() > 10


def test_with_sides_crops_are_cut_at_random_scales() -> None:
    ramp = torch.arange(256.0).expand(3, 256, 256).byte()  # brightness tells where a column was
    recipe = dataclasses.replace(RECIPE, sides=(64, 128))
    g = torch.Generator().manual_seed(0)
    spans = []
    for _ in range(300):
        view = batches._random_view(ramp, 32, recipe.sides, g)
        row = batches._shown(batches._square(ramp, view, view.scale), view)[0, 0].float()
        spans.append(float(row.max() - row.min()) / 256)  # of the photograph's width
    # From all of it to a crop of it at 128 pixels; the ends of a ramp are a bit flattened by shrinking.
    assert 0.2 < min(spans) < 0.3 and 0.9 < max(spans) <= 1
    sizes = [32 / span for span in spans]
    assert sum(size < 80 for size in sizes) / 300 == pytest.approx(0.5, abs=0.1)


def test_damage_is_done_at_a_scale_between_the_views_and_the_photographs_own() -> None:
    ramp = torch.arange(256.0).expand(3, 256, 256).byte()
    recipe = dataclasses.replace(RECIPE, sides=(64, 128))
    g = torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(100):
        view = batches._random_view(ramp, 32, recipe.sides, g)
        scale = batches._between(view.scale, g)
        assert view.scale <= scale <= 1
        square = batches._square(ramp, view, scale)
        sizes.append(square.shape[1] / round(32 / view.scale))
        seen = batches._shown(square, view).float()
        direct = batches._shown(batches._square(ramp, view, view.scale), view).float()
        assert seen.shape == (3, 32, 32) and (seen - direct).abs().max() <= 8  # the same part, twice as wide
    assert min(sizes) < 0.4 and max(sizes) > 0.9
    small = batches._random_view(ramp[:, :20], 32, recipe.sides, g)  # enlarged: damaged as it is seen
    assert batches._between(small.scale, g) == small.scale


# Whole runs


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "model.safetensors").read_bytes()


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def changed(**fields: Any) -> Recipe:
    return dataclasses.replace(RECIPE, **fields)


def states() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),
        torch.get_num_threads(),
    )


@pytest.fixture(scope="module")
def whole(photos: list[Rated], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    before = states()
    assert train(RECIPE, photos, out) == out / "checkpoint"
    assert states() == before
    return out


def test_a_run_makes_a_checkpoint_that_loads(whole: Path, photos: list[Rated]) -> None:
    scorer = qmamba.load(whole / "checkpoint")
    assert scorer.name == "tiny" and scorer.trained_on == ("manifest",)
    config = scorer.config
    assert config.dtype == "float16" and config.licence == "CC0-1.0"
    assert config.training["steps"] == 12 and config.training["recipe"]["lr"] == RECIPE.lr
    assert config.calibration.slope > 0
    curve = config.calibration(torch.linspace(-1, 2, 50))
    assert (curve.diff() > 0).all() and curve[0] > 0 and curve[-1] < 1
    scores = scorer.score([r.path for r in photos])
    assert ((scores > 0) & (scores < 1)).all()
    # Fitted by least squares on the train fold: scores are where MOS are, on average.
    rated = [i for i, r in enumerate(photos) if r.fold == "train"]
    assert float(scores[rated].mean()) == pytest.approx(np.mean([photos[i].mos for i in rated]), abs=0.05)


def test_the_log_of_a_run(whole: Path) -> None:
    steps = [event for event in log(whole) if "loss" in event]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert [event["step"] for event in log(whole) if "val_srcc" in event] == [6, 12]
    assert all({"steps", "lr", "smooth_l1", "plcc", "ranking", "seconds"} <= event.keys() for event in steps)
    rates = [event["lr"] for event in steps]
    assert rates == sorted(rates, reverse=True)  # a warm-up of 5 % is over before the first of 12 steps
    assert rates[0] < RECIPE.lr and rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_loss_falls(photos: list[Rated], tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    recipe = changed(phases=(Phase(32, 60),), ranked=0, warmup=0.1, validate_every=60)
    train(recipe, photos, tmp_path / "run", report=events.append)
    losses = [event["smooth_l1"] + event["plcc"] for event in events if "loss" in event]
    assert np.mean(losses[-12:]) < 0.6 * np.mean(losses[:12])
    rates = [event["lr"] for event in events if "loss" in event]
    assert rates[:6] == pytest.approx([recipe.lr * k / 6 for k in range(1, 7)])
    assert max(rates) == rates[5]


def test_stopped_by_its_watcher_and_resumed_gives_the_same_bits(
    whole: Path, photos: list[Rated], tmp_path: Path
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, photos, tmp_path, report=stop)
    assert not (tmp_path / "checkpoint").exists()
    events: list[dict[str, Any]] = []
    train(RECIPE, photos, tmp_path, report=events.append)
    assert events[0]["step"] == 8
    assert weights(tmp_path / "checkpoint") == weights(whole / "checkpoint")
    assert qmamba.load(tmp_path / "checkpoint").config == qmamba.load(whole / "checkpoint").config


def test_muon_trains_the_matrices_and_resumes_with_the_same_bits(photos: list[Rated], tmp_path: Path) -> None:
    recipe = changed(optimiser="muon", weight_decay=0.0)

    def stop(event: dict[str, Any]) -> None:
        if event["step"] == 7:
            raise KeyboardInterrupt

    train(recipe, photos, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, photos, tmp_path / "parts", report=stop)
    train(recipe, photos, tmp_path / "parts")
    assert weights(tmp_path / "parts" / "checkpoint") == weights(tmp_path / "whole" / "checkpoint")

    network = qmamba.create_model("lqmamba-n", **recipe.overrides)
    adamw, muon = make_optimisers(network, torch.nn.Linear(2, 3), recipe)
    muon.param_groups[0]["lr"] = recipe.lr
    names = {id(p): name for name, p in network.named_parameters()}
    turned = [names.pop(id(p)) for group in muon.param_groups for p in group["params"]]
    rest = [names.pop(id(p), "heads") for group in adamw.param_groups for p in group["params"]]
    assert not names and rest.count("heads") == 2
    assert len(turned) == 4 * 7 and all(name.endswith(".weight") for name in turned)
    assert {"head.fc.weight", "stages.0.blocks.0.ss2d.conv.weight", "stages.0.blocks.0.ss2d.A_log"} < {*rest}
    # An orthogonal step: all singular values of a matrix's change are alike.
    weight = network.get_parameter("stages.3.blocks.0.mlp.fc1.weight")
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    muon.step()
    change = torch.linalg.svdvals(weight.detach() - before)
    assert change.max() / change.min() < 2.5


def test_a_crash_between_two_saves_gives_the_same_bits(
    whole: Path, photos: list[Rated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = changed(save_every=4)
    learn = engine.Run.learn

    def fail(run: Any, *args: Any) -> dict[str, float]:
        if run.step == 6:
            raise MemoryError
        return learn(run, *args)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(engine.Run, "learn", fail)
        train(recipe, photos, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # cut off by the crash
    train(recipe, photos, tmp_path)
    assert weights(tmp_path / "checkpoint") == weights(whole / "checkpoint")
    untimed = [
        [{k: v for k, v in e.items() if k != "seconds"} for e in log(out)] for out in (whole, tmp_path)
    ]
    assert untimed[0] == untimed[1]  # steps that were done twice are there once


def test_a_run_that_has_ended_is_left_as_it_is(whole: Path, photos: list[Rated]) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert train(RECIPE, photos, whole) == whole / "checkpoint"
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before
    with pytest.raises(RecipeError, match="resume it, or choose another folder"):
        train(RECIPE, photos, whole, resume=False)


def test_a_folder_of_another_recipe_is_refused(whole: Path, photos: list[Rated]) -> None:
    before = log(whole)
    with pytest.raises(RecipeError, match="another recipe or other data; choose another folder"):
        train(changed(lr=1e-4), photos, whole)
    assert log(whole) == before


def test_a_damaged_state_is_refused(photos: list[Rated], tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(RecipeError, match=r"state\.pt is damaged"):
        train(RECIPE, photos, tmp_path)


@pytest.mark.parametrize("state", [{"model": torch.zeros(2), "epoch": 3}, [1, 2], {"recipe": "", "step": 1}])
def test_a_foreign_state_is_refused(state: Any, photos: list[Rated], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(RecipeError, match=r"state\.pt is not a state of this version's training") as raised:
        train(RECIPE, photos, tmp_path)
    assert "\n" not in str(raised.value)
    assert torch.load(tmp_path / "state.pt", weights_only=True) is not None  # it is left as it is


@pytest.mark.parametrize(
    ("fields", "options", "error", "says"),
    [
        ({}, {"processes": 0}, RecipeError, "processes must be 1 to 64, got 0"),
        (
            {},
            {"processes": 4},
            RecipeError,
            r"images \(6\) and ranked \(2\) must divide by the number of proc.* \(4\)",
        ),
        ({}, {"device": "warp"}, BackendError, "'warp' cannot be used here"),
        ({"name": "../mine"}, {}, CheckpointError, "'name'"),
        ({"arch": "lqmamba-m"}, {}, UnknownModelError, "lqmamba-n"),
        ({"overrides": {"depth": 1}}, {}, RecipeError, "overrides do not fit: .*depth"),
        ({"overrides": {"widths": [8, 16]}}, {}, RecipeError, "overrides do not fit"),
        ({"lr": 1e30, "phases": (Phase(32, 5),)}, {}, RecipeError, "diverged at step"),
    ],
)
def test_runs_that_cannot_be(
    photos: list[Rated], tmp_path: Path, fields: Any, options: Any, error: Any, says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        train(changed(**fields), photos, tmp_path / "run", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_ratings_that_do_not_fit(photos: list[Rated], tmp_path: Path) -> None:
    for fold in ("train", "val"):
        with pytest.raises(RecipeError, match=f"fold '{fold}' must have two photographs or more, got 0"):
            train(RECIPE, [r for r in photos if r.fold != fold], tmp_path)
    with pytest.raises(RecipeError, match="fold 'val' must have two photographs or more, got 1"):
        train(RECIPE, [*(r for r in photos if r.fold == "train"), photos[0]], tmp_path)
    with pytest.raises(RecipeError, match=r"MOS must be in \[0, 1\]"):
        train(RECIPE, [dataclasses.replace(r, mos=100 * r.mos) for r in photos], tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not a photograph")
    broken = [dataclasses.replace(r, path=tmp_path / "broken.png") for r in photos]
    with pytest.raises(ImageError, match=r"broken\.png"):
        train(RECIPE, broken, tmp_path)


# Several processes


def test_two_processes(photos: list[Rated], tmp_path: Path) -> None:
    before = states()
    events: list[dict[str, Any]] = []
    folder = train(RECIPE, photos, tmp_path, processes=2, report=events.append)
    assert states() == before
    assert [e["step"] for e in events if "loss" in e] == list(range(1, 13))
    scores = qmamba.load(folder).score([r.path for r in photos])
    # The calibration is fitted to the train fold as both processes rated it.
    rated = [i for i, r in enumerate(photos) if r.fold == "train"]
    assert float(scores[rated].mean()) == pytest.approx(np.mean([photos[i].mos for i in rated]), abs=0.05)


def test_an_error_in_another_process_is_raised_here(photos: list[Rated], tmp_path: Path) -> None:
    recipe = changed(images=2, ranked=2)
    rated = [r for r in photos if r.fold == "train"]
    theirs = choose(rated, recipe, 0)[1]  # the second photograph of a step is the other's
    theirs.path.rename(hidden := theirs.path.with_suffix(".hidden"))
    try:
        with pytest.raises(ImageError, match=theirs.path.name):
            train(recipe, photos, tmp_path, processes=2)
    finally:
        hidden.rename(theirs.path)


def test_a_script_without_a_guard_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from qmamba.train import train\n"
        "from rated_photos import RECIPE, rated_photos\n"
        "train(RECIPE, rated_photos(Path('photos')), 'out', processes=2)\n"
    )
    folders = [str(Path(qmamba.__file__).parents[1]), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "if __name__ == '__main__':" in done.stderr.splitlines()[-1]
