"""`qmamba train` and `qmamba evaluate`, in this process where that is enough."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import qmamba
from qmamba import metrics
from qmamba.cli import app
from qmamba.data import Rated, read_manifest
from qmamba.scoring import Scorer
from qmamba.train import load_recipe
from rated_photos import TOML, rated_photos, write_manifest

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, their manifest, a recipe, and a checkpoint that the command has trained."""
    folder = tmp_path_factory.mktemp("train")
    write_manifest(folder / "ratings.csv", rated_photos(folder / "photos"))
    (folder / "tiny.toml").write_text(TOML)
    result = train(folder, folder / "run", "--progress", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{folder / 'run' / 'checkpoint'}\n"
    assert "8/8" in result.stderr and "loss=0." in result.stderr and "val SRCC=" in result.stderr
    return folder


def train(folder: Path, out: Path, *options: str) -> Result:
    return run("train", folder / "tiny.toml", "--data", folder / "ratings.csv", "--out", out, *options)


def ratings(folder: Path) -> list[Rated]:
    return read_manifest(folder / "ratings.csv")


# train


def test_list_of_recipes() -> None:
    result = run("train", "--list")
    assert result.exit_code == 0
    names = result.stdout.split()
    assert "lqmamba-n-biq2021" in names and all(load_recipe(name) for name in names)


def test_trained_checkpoint_scores(folder: Path) -> None:
    result = run("score", folder / "photos", "--model", folder / "run" / "checkpoint", "--format", "json")
    assert result.exit_code == 0
    assert all(0 < row["score"] < 1 for row in json.loads(result.stdout))


def test_silent_unless_asked_on_no_terminal(folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path / "run", "--threads", "1")
    assert result.exit_code == 0 and result.stderr == ""
    weights = [out / "checkpoint" / "model.safetensors" for out in (folder / "run", tmp_path / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_same_command_after_the_end_only_names_the_checkpoint(folder: Path) -> None:
    result = train(folder, folder / "run")
    assert (result.exit_code, result.stdout) == (0, f"{folder / 'run' / 'checkpoint'}\n")
    result = train(folder, folder / "run", "--fresh")
    assert result.exit_code == 2 and "choose another folder" in result.stderr


def test_train_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(TOML.replace("images", "imagse", 1))
    data, out = folder / "ratings.csv", tmp_path / "out"
    for arguments, says in (
        (["nothing", "--data", data, "--out", out], "no recipe 'nothing'"),
        ([bad, "--data", data, "--out", out], "unknown key 'imagse'"),
        ([folder / "tiny.toml", "--data", tmp_path / "no.csv", "--out", out], "no manifest at"),
        (["lqmamba-n-biq2021", "--data", tmp_path, "--out", out], "no BIQ2021 at"),
        ([folder / "tiny.toml", "--data", data, "--out", out, "--processes", "5"], "must divide"),
        ([folder / "tiny.toml", "--data", data, "--out", out, "--device", "warp"], "'warp' cannot be used"),
    ):
        result = run("train", *arguments)
        assert result.exit_code == 2 and says in result.stderr, result.output
        assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert not out.exists()
    assert run("train", folder / "tiny.toml").exit_code == 2


def endless(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A run that is long enough to be interrupted."""
    recipe = TOML.replace("steps = 8", "steps = 100000").replace("validate_every = 4", "validate_every = 9")
    (folder / "long.toml").write_text(recipe.replace('"tiny"', '"long"'))
    path = os.pathsep.join(p for p in (str(Path(qmamba.__file__).parents[1]), *sys.path) if p)
    command = ["train", "long.toml", "--data", "ratings.csv", "--out", "long", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "qmamba", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@posix
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_loses_no_step(folder: Path, processes: int) -> None:
    """As a terminal does it: the signal goes to the helper processes too."""
    with endless(folder, "--processes", str(processes)) as process:
        log = folder / "long" / "log.jsonl"
        before = len(log.read_text().splitlines()) if log.exists() else 0
        deadline = time.monotonic() + 60
        while not log.exists() or len(log.read_text().splitlines()) < before + 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert f"give the same command again to resume from step {last}\n" in err
    assert "Traceback" not in err
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "loss" in line]
    assert steps == list(range(1, last + 1))  # the second of these runs has resumed the first


# evaluate


def evaluate(folder: Path, *options: str | Path) -> Result:
    return run("evaluate", "--model", folder / "run" / "checkpoint", "--resamples", "20", *options)


def test_evaluate_measures_what_the_library_measures(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    data = folder / "ratings.csv"
    result = evaluate(folder, "--data", data, "--fold", "train", "--format", "json", "--out", table)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rated = [r for r in ratings(folder) if r.fold == "train"]
    scores = qmamba.load(folder / "run" / "checkpoint").score([r.path for r in rated]).tolist()
    mos = [r.mos for r in rated]
    assert report["model"] == "tiny" and report["fold"] == "train" and report["failed"] == 0
    assert report["protocol"]["kind"] == "grid"
    found = report["results"]
    assert found["n"] == 8
    for name in ("srcc", "plcc", "krcc", "rmse"):
        assert found[name] == pytest.approx(metrics.METRICS[name](np.array(scores), np.array(mos)))
        low, high = metrics.bootstrap_interval(metrics.METRICS[name], scores, mos, n=20)
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(r.path) for r in rated]
    assert [float(row["mos"]) for row in rows] == mos
    assert [float(row["score"]) for row in rows] == pytest.approx(scores, abs=1e-6)
    assert {row["error"] for row in rows} == {""}


def test_a_run_in_short_legs(folder: Path, tmp_path: Path) -> None:
    legs = 0
    while (result := train(folder, tmp_path / "run", "--minutes", "0", "--threads", "1")).exit_code == 3:
        legs += 1
        assert f"time is up at step {legs} of 8" in result.stderr
    assert result.exit_code == 0 and legs == 7
    want, got = (f / "checkpoint" / "model.safetensors" for f in (folder / "run", tmp_path / "run"))
    assert want.read_bytes() == got.read_bytes()


def test_another_architecture(folder: Path, tmp_path: Path) -> None:
    toml = (
        (folder / "tiny.toml")
        .read_text()
        .replace('"tiny"', '"lqmamba-n-x"')
        .replace("steps = 8", "steps = 1")
    )
    (folder / "one.toml").write_text(toml)
    result = run(
        "train",
        folder / "one.toml",
        "-d",
        folder / "ratings.csv",
        "-o",
        tmp_path / "run",
        "--arch",
        "qmamba-x",
    )
    assert result.exit_code == 2 and "qmamba-x" in result.stderr


def test_the_table(folder: Path) -> None:
    pytest.importorskip("scipy")
    result = evaluate(folder, "--data", folder / "ratings.csv", "--fold", "all", "--protocol", "whole")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "model     tiny" and lines[2:4] == ["protocol  whole", "images    12"]
    assert [line.split("  ")[0] for line in lines[6:]] == [
        "SRCC", "PLCC", "PLCC, fitted", "KRCC", "RMSE", "RMSE, fitted",
    ]  # fmt: skip
    assert all(" to " in line for line in lines[6:])
    result = evaluate(folder, "--data", folder / "ratings.csv", "--fold", "val", "--resamples", "0")
    assert "interval" not in result.stdout and " to " not in result.stdout


def test_without_scipy_the_fitted_ones_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    result = evaluate(folder, "--data", folder / "ratings.csv", "--fold", "train", "--format", "json")
    assert result.exit_code == 0
    results = json.loads(result.stdout)["results"]
    assert {"srcc", "plcc", "krcc", "rmse"} <= results.keys()
    assert not any("fitted" in key for key in results)
    assert result.stderr.count("\n") == 2 and "PLCC, fitted: " in result.stderr and "scipy" in result.stderr


def test_failing_images_are_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a photograph")
    rated = [*ratings(folder)[:5], Rated(tmp_path / "bad.png", 0.5), *ratings(folder)[5:]]
    data = write_manifest(tmp_path / "ratings.csv", [Rated(r.path, r.mos) for r in rated])
    out = tmp_path / "scores.csv"
    result = evaluate(folder, "--data", data, "--format", "json", "--out", out, "--progress")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["failed"] == 1 and report["results"]["n"] == 12 and report["fold"] == "all"
    assert "bad.png" in result.stderr and "1 of 13 images could not be scored" in result.stderr
    with out.open(newline="") as file:
        row = list(csv.DictReader(file))[5]
    assert row["score"] == "" and "bad.png" in row["error"]
    data = write_manifest(tmp_path / "ratings.csv", [rated[5], Rated(rated[0].path, 0.5)])
    result = evaluate(folder, "--data", data, "--out", out)
    assert result.exit_code == 2 and "scores.csv: exists already" in result.stderr
    result = evaluate(folder, "--data", data, "--out", out, "--force")
    assert result.exit_code == 2 and "1 of 2 images could be scored" in result.stderr


def test_rows_that_repeat_an_image_are_counted(folder: Path, tmp_path: Path) -> None:
    rated = [Rated(r.path, r.mos) for r in ratings(folder)]
    data = write_manifest(tmp_path / "ratings.csv", [*rated, rated[0], Rated(rated[0].path, 0.3)])
    result = evaluate(folder, "--data", data, "--format", "json")
    assert result.exit_code == 0 and "2 of 14 rows name an image that a row before them has" in result.stderr
    report = json.loads(result.stdout)
    assert report["repeated"] == 2 and report["results"]["n"] == 14
    once = evaluate(folder, "--data", write_manifest(data, rated), "--format", "json")
    assert json.loads(once.stdout)["repeated"] == 0 and "before them" not in once.stderr


def test_a_model_whose_lower_scores_are_better(folder: Path, tmp_path: Path) -> None:
    scorer = qmamba.load(folder / "run" / "checkpoint")
    worse = Scorer(scorer.network, scorer.config.replace(lower_better=True, score_range=(1, 5)))
    worse.save_pretrained(tmp_path / "worse")
    data = "--data", folder / "ratings.csv", "--fold", "all"
    want = json.loads(evaluate(folder, *data, "--format", "json").stdout)
    options = "--model", tmp_path / "worse", *data, "--resamples", "20"
    found = json.loads(run("evaluate", *options, "--format", "json").stdout)
    assert found["lower_better"] and not want["lower_better"]
    for name in ("srcc", "plcc", "krcc"):
        assert found["results"][name] == pytest.approx(want["results"][name], abs=1e-5)
    assert "lower is better; turned around" in run("evaluate", *options).stdout


def test_folds(folder: Path, tmp_path: Path) -> None:
    data = write_manifest(tmp_path / "ratings.csv", ratings(folder))  # has train and val, and no test
    result = evaluate(folder, "--data", data)
    assert result.exit_code == 2 and "--fold must be one of train, val, all" in result.stderr
    tested = [Rated(r.path, 100 * r.mos, r.fold.replace("val", "test")) for r in ratings(folder)]
    result = evaluate(folder, "--data", write_manifest(data, tested), "--format", "json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["fold"] == "test" and report["results"]["n"] == 4
    assert "RMSE is meaningful only after the fit" in result.stderr


def test_evaluate_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    data = folder / "ratings.csv"
    cases: tuple[tuple[list[Any], str], ...] = (
        (["--data", tmp_path], "a folder; give NAME="),
        (["--data", f"biq2021={tmp_path}"], "no BIQ2021 at"),
        (["--data", f"biq2022={tmp_path}"], "near names: biq2021"),
        (["--data", data, "--fold", "all", "--model", "lqmamba-x"], "lqmamba-x"),
        (["--data", data, "--fold", "all", "--out", tmp_path / "no" / "scores.csv"], "no such folder"),
    )
    for arguments, says in cases:
        result = evaluate(folder, *arguments)
        assert result.exit_code == 2 and says in result.stderr, result.output
        assert result.stderr.count("\n") == 1 and result.stdout == ""
