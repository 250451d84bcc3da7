"""The paper's three tasks with a tiny network: what is learnt, how a run resumes, how it is shared."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import qmamba
from qmamba.data import Rated
from qmamba.errors import DataSetError, RecipeError
from qmamba.train import engine, tracking
from qmamba.train.paper import PaperRecipe, Transfer, Workshop, do_row
from qmamba.train.paper.rows import _add
from qmamba.train.paper.runs import folder_of, runs_of
from qmamba.train.paper.sets import Crops, RatedSet, hold_out, read_set, sized, split_set
from qmamba.train.paper.task import do_run
from qmamba.train.sampling import mixed_epoch
from rated_photos import rated_photos

pytest.importorskip("accelerate", reason="accelerate, which trains, is not installed")

OVERRIDES = {"widths": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "drop_path": 0.1}
TINY = PaperRecipe(
    task="single", name="tiny", arch="lqmamba-n", overrides=OVERRIDES, data=("bright",), convention="own",
    splits=1, epochs=2, crops=2, test_crops=2, crop=32, batch=6, lr=3e-3, save_every=2,
)  # fmt: skip
Done = tuple[dict[str, Any], Path]
TOML = """\
task = "single"
name = "tiny"
arch = "lqmamba-n"
data = ["bright"]
overrides = { widths = [8, 16, 32, 64], depths = [1, 1, 1, 1], drop_path = 0.0 }
convention = "own"
splits = 1
epochs = 4
crops = 2
test_crops = 2
crop = 32
batch = 6
lr = 3e-3
save_every = 2
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests: "bright" with folds, from 0.07 to 0.9; "stars", of the same pictures, from 1 to 5."""
    root = tmp_path_factory.mktemp("sets")
    photos = rated_photos(root / "photos", 15)
    folds = ("train", "train", "test", "val", "train")
    rows = [f"{r.path},{r.mos:.3f},{folds[i % 5]},r{i % 5}\n" for i, r in enumerate(photos)]
    (root / "bright.csv").write_text("image,mos,fold,reference\n" + "".join(rows))
    stars = [f"{r.path},{1 + 4 * r.mos:.3f}\n" for r in photos]
    (root / "stars.csv").write_text("image,mos\n" + "".join(stars))
    return root


def workshop(root: Path, out: Path, **options: Any) -> Workshop:
    return Workshop(root, out, cpu=True, **options)


def only(recipe: PaperRecipe, root: Path, out: Path, **options: Any) -> Done:
    """The results of the first run of a recipe, and its folder."""
    run = runs_of(recipe, 0)[0]
    return do_run(run, recipe, workshop(root, out, **options)), out / folder_of(run, recipe)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run that nothing interrupted."""
    return only(TINY, root, tmp_path_factory.mktemp("whole"))


# Sets


def set_of(name: str, count: int, root: Path) -> RatedSet:
    images = [Rated(root / f"{i}.png", i / count) for i in range(count)]
    return RatedSet(name, "", {"train": images})


def test_crops_of_an_epoch(root: Path) -> None:
    sets = [set_of("a", 10, root), set_of("b", 3, root)]
    plan = dataclasses.replace(TINY, data=("a", "b"), task="universal", crops=4, weights={"b": 0.5, "a": 1.5})
    crops = Crops(sets, plan, seed=1)
    assert crops.counts == [60, 6] and (crops.batch, crops.epoch_steps, crops.steps) == (6, 11, 22)
    first = mixed_epoch((10, 3), (60, 6), 1, 0)
    counts = Counter(first)
    assert all(counts[0, i] == 6 for i in range(10)) and all(counts[1, i] == 2 for i in range(3))
    assert first != mixed_epoch((10, 3), (60, 6), 1, 1) and first != mixed_epoch((10, 3), (60, 6), 2, 0)


def test_batch_goes_by_the_number_of_images(root: Path) -> None:
    plan = dataclasses.replace(TINY, data=("a",), batch=None, crops=10)
    assert Crops([set_of("a", 100, root)], plan, 0).batch == 32
    assert Crops([set_of("a", 5001, root)], plan, 0).batch == 128
    assert Crops([set_of("a", 2, root)], plan, 0).batch == 20  # no more than an epoch has
    with pytest.raises(RecipeError, match="too few for a batch"):
        Crops([set_of("a", 1, root)], dataclasses.replace(plan, crops=1), 0)


def test_one_scale_and_direction(root: Path) -> None:
    bright, stars = (
        split_set(n, read_set(n, root), dataclasses.replace(TINY, data=(n,), convention=c), 0)
        for n, c in (("bright", "own"), ("stars", "loda"))
    )
    assert {fold: len(images) for fold, images in bright.folds.items()} == {"train": 9, "val": 3, "test": 3}
    assert (bright.split, stars.split) == ("own-00", "loda-3407-00")
    for each in (bright, stars):
        mos = [r.mos for r in each.folds["train"]]
        assert min(mos) == 0 and max(mos) == 1
    by_path = {r.path: r.mos for fold in stars.folds.values() for r in fold}
    order = [by_path[r.path] for r in sorted(by_path and read_set("bright", root), key=lambda r: r.mos)]
    assert order == sorted(order)
    known = [Rated(Path("a"), 30.0, scale=(0.0, 100.0)), Rated(Path("b"), 60.0, scale=(0.0, 100.0))] * 6
    found = split_set("live", known, dataclasses.replace(TINY, convention="deiqt"), 0)
    assert {r.mos for fold in found.folds.values() for r in fold} == {0.3, 0.6}


def test_sizes(root: Path) -> None:
    photo = root / "photos" / "0.png"  # 80 × 96
    assert sized(photo, 0).shape == (3, 80, 96) and sized(photo, 40).shape == (3, 40, 48)
    assert sized(photo, [64, 32]).shape == (3, 64, 32) and sized(photo, 40).dtype == torch.uint8
    with pytest.raises(RecipeError, match="sizes must have the shorter side"):
        sized(photo, "small")
    plan = dataclasses.replace(TINY, data=("koniq10k",), convention="deiqt")
    assert split_set("koniq10k", read_set("stars", root), plan, 0).size == [384, 512]
    plan = dataclasses.replace(plan, sizes={"koniq10k": 0})
    assert split_set("koniq10k", read_set("stars", root), plan, 0).size == 0


def test_cached_images_are_the_same(root: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(TINY, sizes={"bright": 48}, epochs=1)
    (plain, first), (cached, second) = (
        only(plan, root, tmp_path / str(i), cache=cache) for i, cache in enumerate((None, tmp_path / "cache"))
    )
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 15 and plain == cached  # all images, each once
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert log(first) == log(second)
    each = split_set("bright", read_set("bright", root), plan, 0, cache=tmp_path / "cache")
    rated = each.folds["test"][0]
    assert torch.equal(each.pixels(rated), sized(rated.path, 48))
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    sizes = dataclasses.replace(plan, sizes={"bright": 0})  # as they are: nothing to keep
    split_set("bright", read_set("bright", root), sizes, 0, cache=tmp_path / "none").pixels(rated)
    assert not (tmp_path / "none").exists()


def test_an_unsupported_precision_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**options: Any) -> None:
        raise ValueError(f"{options['mixed_precision']} mixed precision requires a GPU")

    monkeypatch.setattr("accelerate.Accelerator", refuses)
    with pytest.raises(RecipeError, match="train in float16 here: fp16 mixed precision requires a GPU"):
        only(dataclasses.replace(TINY, precision="float16"), root, tmp_path)


def test_absent_sets(root: Path) -> None:
    for name in ("koniq10k", "nothing"):
        with pytest.raises(DataSetError, match=f"the set '{name}' is absent: no "):
            read_set(name, root)
    trained = [dataclasses.replace(r, fold="train") for r in read_set("stars", root)]
    with pytest.raises(DataSetError, match="two images or more are needed in the fold 'test' of own-00"):
        split_set("stars", trained, TINY, 0)
    assert split_set("stars", read_set("stars", root), TINY, 1).split == "deiqt-0-01"  # it has no folds


# A run


def test_a_run(whole: Done, root: Path) -> None:
    results, folder = whole
    assert results["split"] == "own-00" and results["steps"] == 6
    assert results["sets"]["bright"]["n"] == 3 and -1 <= results["sets"]["bright"]["srcc"] <= 1
    assert results["start"]["source"] == "" and json.loads((folder / "results.json").read_text()) == results
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in events if "val_srcc" in e] == [3, 6]
    assert not list(folder.glob("state*"))
    scorer = qmamba.load(folder / "checkpoint")
    assert scorer.protocol.kind == "random" and scorer.trained_on == ("bright",)
    assert 0 < scorer.score(root / "photos" / "0.png") < 1


def test_learning_curve(whole: Done) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the curve, is not installed")
    from PIL import Image

    with Image.open(whole[1] / "curve.png") as picture:
        assert picture.width > 500 and len(picture.convert("L").getcolors(256) or []) > 5


def test_it_learns(root: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(TINY, epochs=6, crops=6, schedule="steps")
    results, _ = only(plan, root, tmp_path)
    assert results["sets"]["bright"]["srcc"] == 1.0  # brightness, on three images


def test_what_has_been_done_is_not_done_again(
    whole: Done, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmamba.train.paper.task.fit", lambda *a, **k: pytest.fail("again"))
    assert only(TINY, root, whole[1].parents[1])[0] == whole[0]


def test_global_random_state_is_left_alone(root: Path, tmp_path: Path) -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = drawn()
    seed()
    only(dataclasses.replace(TINY, epochs=1), root, tmp_path)
    assert drawn() == expected


# Interruption


class DiedError(BaseException):
    """As a process that is killed: nothing is caught."""


def log(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, without the time that they took."""
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in event.items() if name != "seconds"} for event in events]


def same(folder: Path, whole: Path) -> None:
    assert (folder / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    name = Path("checkpoint") / "model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert log(folder) == log(whole)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5])
def test_died_in_a_step(
    step: int, whole: Done, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engine.Run.learn

    def dies(run: engine.Run, *args: Any) -> dict[str, float]:
        if run.step == step:
            raise DiedError
        return plain(run, *args)

    with monkeypatch.context() as patch, pytest.raises(DiedError):
        patch.setattr(engine.Run, "learn", dies)
        only(TINY, root, tmp_path)
    same(only(TINY, root, tmp_path)[1], whole[1])


@pytest.mark.parametrize("moment", ["half", "written"])
def test_died_while_a_state_was_saved(
    moment: str, whole: Done, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the second state takes the place of the first, with a file cut short or whole."""
    replace = Path.replace
    saved: list[Path] = []

    def dying_replace(self: Path, target: Path) -> Path:
        if self.name == "state.tmp":
            saved.append(target)
            if len(saved) == 2:
                if moment == "half":
                    self.write_bytes(b"half")
                raise DiedError
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(DiedError):
        patch.setattr(Path, "replace", dying_replace)
        only(TINY, root, tmp_path)
    same(only(TINY, root, tmp_path)[1], whole[1])


def test_stopped_by_its_watcher(whole: Done, root: Path, tmp_path: Path) -> None:
    """The state of that very step is saved, and the rest is done later; also while images are rated."""
    seen: list[int] = []

    def stop(event: dict[str, Any]) -> None:
        seen.append(event.get("step", -event.get("image", 0)))
        if (event.get("step") == 3 and "loss" in event) or event.get("image") == 2:
            raise DiedError

    for _ in range(2):
        with pytest.raises(DiedError):
            only(TINY, root, tmp_path, report=stop)
    assert seen == [1, 2, 3, 3, 4, 5, 6, 6, -1, -2]  # SRCC of step 3 is reported on resuming
    same(only(TINY, root, tmp_path)[1], whole[1])


def test_a_damaged_state_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DiedError):
        only(TINY, root, tmp_path, report=lambda e: (_ for _ in ()).throw(DiedError()))
    (state,) = tmp_path.glob("*/*/state.pt")
    state.write_bytes(b"broken")
    with pytest.raises(RecipeError, match=r"state\.pt is damaged; choose another folder, or delete it"):
        only(TINY, root, tmp_path)


def command(folder: Path, root: Path, out: Path, *launcher: str) -> list[str]:
    (folder / "tiny.toml").write_text(TOML)
    train = ["qmamba", "train", "tiny.toml", "--data", str(root), "--out", str(out), "--device", "cpu"]
    return [sys.executable, "-m", *launcher, *train]


def environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(Path(qmamba.__file__).parents[1]), *sys.path) if p)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    subprocess.run(
        command(out, root, out / "out"), cwd=out, env=environment(), check=True, capture_output=True
    )
    return out / "out"


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_killed_and_started_again(uninterrupted: Path, root: Path, tmp_path: Path) -> None:
    line = command(tmp_path, root, tmp_path / "out")
    with subprocess.Popen(line, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").glob("runs/*/*/state.pt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "out" / "results.json").exists()
    repeated = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert repeated.returncode == 0 and repeated.stdout == f"{tmp_path / 'out'}\n", repeated.stderr
    assert (tmp_path / "out" / "results.json").read_bytes() == (uninterrupted / "results.json").read_bytes()


def test_two_processes_learn_what_one_does(uninterrupted: Path, root: Path, tmp_path: Path) -> None:
    """Under `accelerate launch`, by gloo: the same batches, shared; sums in another order."""
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]
    line = command(tmp_path, root, tmp_path / "out", *launcher)
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(tmp_path / "out")) == 1
    logs, weights = [], []
    for out in (uninterrupted, tmp_path / "out"):
        (folder,) = out.glob("runs/*/split-00")
        logs.append([json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()])
        weights.append(load_file(folder / "checkpoint" / "model.safetensors"))
    assert [e["step"] for e in logs[0]] == [e["step"] for e in logs[1]]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-3, msg=name)
    first, second = (json.loads((o / "results.json").read_text()) for o in (uninterrupted, tmp_path / "out"))
    for metric in ("srcc", "plcc"):
        medians = [row["cells"][0]["median"][metric] for row in (first, second)]
        assert medians[0] == pytest.approx(medians[1], abs=0.02)


# Other ways


def test_accumulation_is_the_same_step(whole: Done, root: Path, tmp_path: Path) -> None:
    """Means of equal parts are the mean of the whole, for losses that look at each crop by itself."""
    still = dataclasses.replace(TINY, overrides={**OVERRIDES, "drop_path": 0.0}, epochs=1)
    one = only(still, root, tmp_path / "1")[1]
    three = only(dataclasses.replace(still, accumulate=3), root, tmp_path / "3")[1]
    first, second = (load_file(f / "checkpoint" / "model.safetensors") for f in (one, three))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=2e-3, msg=name)
    losses = [
        [json.loads(x)["loss"] for x in (f / "log.jsonl").read_text().splitlines() if "loss" in x]
        for f in (one, three)
    ]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_mixed_precision_and_summed_losses(root: Path, tmp_path: Path) -> None:
    losses = {"smooth-l1": 1.0, "plcc": 0.5, "ranking": 0.25}
    plan = dataclasses.replace(TINY, precision="bfloat16", losses=losses, epochs=1)
    results, folder = only(plan, root, tmp_path)
    assert results["sets"]["bright"]["srcc"] is not None
    for line in (folder / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        if "loss" in event:
            total = sum(weight * event[name] for name, weight in losses.items())
            assert event["loss"] == pytest.approx(total, abs=1e-4)


def test_universal(root: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(
        TINY, task="universal", data=("bright", "stars"), convention="deiqt", splits=2,
        weights={"stars": 2.0}, epochs=1, paper={"bright": (0.9, 0.8)},
    )  # fmt: skip
    row = do_row(plan, workshop(root, tmp_path / "runs"), tmp_path / "row.json")
    assert json.loads((tmp_path / "row.json").read_text())["cells"][0]["test"] == "bright"
    assert [cell["test"] for cell in row["cells"]] == ["bright", "stars"]
    assert len(list(tmp_path.glob("runs/*/split-*"))) == 2  # both sets are in one run
    for cell in row["cells"]:
        assert [s["split"] for s in cell["splits"]] == ["deiqt-0-00", "deiqt-0-01"]
        middle = sum(s["srcc"] for s in cell["splits"]) / 2
        assert cell["median"]["srcc"] == pytest.approx(middle, abs=1e-5)


@pytest.mark.parametrize("method", ["style-prompt", "full", "none"])
def test_transfer(method: str, root: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(
        TINY, task="transfer", data=(), adapter=method, epochs=1, convention="deiqt",
        transfers=(Transfer(("stars",), ("bright",)),),
    )  # fmt: skip
    row = do_row(plan, workshop(root, tmp_path), tmp_path / "row.json")
    (cell,) = row["cells"]
    assert (tuple(cell["sources"]), cell["test"], cell["start"]) == (("stars",), "bright", "the base")
    (base,) = tmp_path.glob("*stars-????????/split-00/checkpoint")
    (moved,) = tmp_path.glob("*-to-bright-*/split-00")
    before = qmamba.load(base)
    if method == "none":
        assert (
            not (moved / "adapter").exists()
            and json.loads((moved / "results.json").read_text())["steps"] == 0
        )
        return
    adapted = qmamba.load(base, adapter=moved / "adapter")
    photo = root / "photos" / "1.png"
    assert adapted.score(photo) != before.score(photo)


def test_learning_rates_are_chosen_on_held_out_references(root: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(
        TINY, task="transfer", data=(), adapter="linear-probe", epochs=1, convention="deiqt", held_out=0.25,
        rates=(1e-6, 3.0), transfers=(Transfer(("stars",), ("bright",)),), split_by={"bright": "image"},
    )  # fmt: skip
    row = do_row(plan, workshop(root, tmp_path / "runs"), tmp_path / "row.json")
    (line,) = row["cells"][0]["splits"]
    runs = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*-to-bright-*/split-00/results.json")]
    assert len(runs) == 2 and row["cells"][0]["median"]["srcc"] == line["srcc"]
    held = {f"{r['run']['adapter_lr']:g}": r["val"]["bright"]["srcc"] for r in runs}
    assert line["rates"] == held and all(r["val"]["bright"]["n"] == 3 for r in runs)
    assert held[line["rate"]] == max(held.values())
    (chosen,) = (r for r in runs if f"{r['run']['adapter_lr']:g}" == line["rate"])
    assert chosen["sets"]["bright"]["srcc"] == line["srcc"]
    assert line["split"] == "deiqt-0-00-by-image"
    config = qmamba.adapters.read_adapter_config(tmp_path / "runs" / line["weights"])
    assert config.base == "lqmamba-n-stars"
    assert config.training["name"] == "lqmamba-n-stars-to-bright-linear-probe"
    with pytest.raises(DataSetError, match="chosen on a fold 'val', which it lacks; set held_out"):
        do_row(dataclasses.replace(plan, held_out=0.0), workshop(root, tmp_path / "b"), tmp_path / "b.json")


def test_the_best_rate_counts() -> None:
    splits: list[dict[str, Any]] = []
    for rate, val, split in (("1", 0.5, "a"), ("2", 0.7, "a"), ("3", None, "a"), ("1", 0.1, "b")):
        _add(splits, {"split": split, "srcc": val, "rate": rate, "rates": {rate: val}})
    assert [line["rate"] for line in splits] == ["2", "1"]
    assert splits[0]["rates"] == {"1": 0.5, "2": 0.7, "3": None}


def test_held_out_references_are_whole(root: Path) -> None:
    rated = [Rated(root / f"{i}.png", i / 40, "train", reference=f"p{i % 8}") for i in range(40)]
    rated += [Rated(root / "x.png", 0.5, "test", reference="p0")]
    found = hold_out(rated, 0.25, True, 3)
    folds = {(r.reference, r.fold) for r in found[:-1]}
    assert len(folds) == 8 and sum(fold == "val" for _, fold in folds) == 2
    assert found[-1].fold == "test" and hold_out(rated, 0.25, True, 3) == found
    assert hold_out(rated, 0.25, True, 4) != found
    assert sum(r.fold == "val" for r in hold_out(rated, 0.25, False, 3)) == 10


def test_rows_share_runs(root: Path, tmp_path: Path) -> None:
    """Adapters of one base, and tables that print the same runs in two ways."""
    plan = dataclasses.replace(
        TINY, task="transfer", data=(), adapter="none", transfers=(Transfer(("stars",), ("bright",)),)
    )
    other = dataclasses.replace(plan, adapter="full", adapter_lr=1e-3, title="other")
    (base, first), (same_base, second) = runs_of(plan, 0), runs_of(other, 0)
    assert folder_of(base, plan) == folder_of(same_base, other)
    assert folder_of(first, plan) != folder_of(second, other)
    assert folder_of(base, plan) != folder_of(base, dataclasses.replace(plan, lr=1e-3))


def test_a_tracker_that_is_not_there(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "has_trackio", lambda: False)
    with pytest.raises(RecipeError, match=r"qmamba\[train,trackio\]"):
        only(TINY, root, tmp_path, log="trackio")


def test_tensorboard(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    _, folder = only(dataclasses.replace(TINY, epochs=1), root, tmp_path, log="tensorboard")
    assert list(folder.glob("**/events.out.*"))


def test_trackio(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupted run and its rest are one run there, of a name of its own; nothing of it is in stdout."""
    logs = tmp_path / "logs"
    monkeypatch.setenv("TRACKIO_DIR", str(logs))  # looked at when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed")

    def stop(event: dict[str, Any]) -> None:
        if event.get("step") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        only(TINY, root, tmp_path, log="trackio", report=stop)
    _, folder = only(TINY, root, tmp_path, log="trackio")
    trackio_of = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    (name,) = trackio_of.get_runs("qmamba")
    assert name == str(folder.relative_to(tmp_path))
    told = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [event for event in told if "loss" in event]
    found = [row for row in trackio_of.get_logs("qmamba", name) if "loss" in row]
    assert [row["step"] for row in found] == [event["step"] for event in steps] and len(steps) > 3
    assert [row["loss"] for row in found] == [event["loss"] for event in steps]
    assert not capsys.readouterr().out
