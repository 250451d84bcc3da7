"""`qmamba map` and `qmamba compare`."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import qmamba
from qmamba.cli import app
from qmamba.cli._rows import Comparison
from qmamba.cli.compare import ranked
from qmamba.scoring import Scorer
from tiny_scorer import encode, photo, tiny_config, tiny_network


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.fixture(scope="module")
def model(scorer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    scorer.save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(made):
        path.write_bytes(encode(photo(100, 160, seed)))
    return made


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_map_is_drawn(model, photos, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "map.png"
    done = run("map", photos[0], "-o", out, "-m", model)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{out}\n", "")
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert pixels.shape[1] > 1.5 * pixels.shape[0] > 300
    # Yellow on the bar, which neither a violet beginning nor the photograph's side has.
    right = pixels[:, -pixels.shape[1] // 6 :].reshape(-1, 3)
    assert ((right[:, 0] > 220) & (right[:, 1] > 200) & (right[:, 2] < 140)).sum() > 50
    assert run("map", photos[0], "-o", out, "-m", model).exit_code == 2
    before = out.read_bytes()
    assert run("map", photos[0], "-o", out, "-m", model, "--force").exit_code == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize("backend", ["module://of_a_notebook.backend_inline", "none"])
def test_a_map_is_drawn_from_a_notebooks_shell(model, photos, tmp_path, backend) -> None:
    pytest.importorskip("matplotlib")
    source, out = str(Path(qmamba.__file__).parents[1]), tmp_path / "map.png"
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "qmamba", "map", photos[0], "-m", model, "-o", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and out.is_file(), done.stderr


def test_a_title_is_no_formula(model, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a $x^{ & <b> 写真 {}.png"
    path.write_bytes(encode(photo(64, 300)))
    done = run("map", path, "-o", tmp_path / "m.svg", "-m", model)
    assert (done.exit_code, done.stderr) == (0, "")


def test_a_fixed_colour_scale(model, photos, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    for name, ends in (("a", "0:1"), ("b", "0:0.5"), ("c", "0:1")):
        out = tmp_path / f"{name}.png"
        done = run("map", photos[0], "-o", out, "-m", model, "--range", ends)
        assert done.exit_code == 0, done.stderr
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[2] != pictures[1]
    for ends, says in (("1", "must be LOW:HIGH"), ("1:0", "must rise, got 1 to 0"), ("nan:1", "must rise")):
        done = run("map", photos[0], "-o", tmp_path / "no.png", "-m", model, "--range", ends)
        assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "no.png").exists()


def test_maps_that_cannot_be_drawn(model, photos, tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    for image, out, reason in (
        (photos[0], tmp_path / "map.xyz", "got .xyz"),
        (photos[0], photos[0], "--force"),
        (photos[0], tmp_path, "a folder"),
        (photos[0], tmp_path / "no" / "map.png", "no such folder"),
        (tmp_path / "none.png", tmp_path / "map.png", "no such file"),
    ):
        done = run("map", image, "-o", out, "-m", model)
        assert done.exit_code == 2 and reason in done.stderr and done.stderr.count("\n") == 1
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    done = run("map", photos[0], "-o", tmp_path / "map.png", "-m", model)
    assert done.exit_code == 2 and 'pip install "qmamba[plot]"' in done.stderr
    assert not (tmp_path / "map.png").exists()


def test_compare_lists_the_best_first(model, scorer, photos) -> None:
    done = run("compare", *photos, "-m", model, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.exit_code == 0 and list(rows[0]) == ["path", "score", "difference", "std", "error"]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    for row in rows:
        score, std = scorer.score(row["path"], return_std=True)
        assert float(row["score"]) == pytest.approx(score, abs=1e-6)
        assert float(row["std"]) == pytest.approx(std, abs=1e-6)
        assert float(row["difference"]) == pytest.approx(score - max(scores), abs=2e-6)
    repeated = json.loads(run("compare", *photos[::-1], "-m", model, "--format", "json").stdout)
    assert [row["path"] for row in repeated] == [row["path"] for row in rows]
    assert repeated[0]["difference"] == 0 and repeated[0]["error"] is None


def test_compare_says_what_it_could_not_score(model, photos, tmp_path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"nothing")
    done = run("compare", bad, *photos, "-m", model)
    lines = done.stdout.splitlines()
    assert done.exit_code == 1 and "1 of 4" in done.stderr
    assert lines[0].split() == ["score", "diff", "std", "image"] and len(lines) == 5
    assert "+0.0000" in lines[1] and lines[-1].lstrip().startswith("-  ") and "not an image" in lines[-1]
    assert run("compare", tmp_path / "*.gif", "-m", model).exit_code == 2


def test_ranking_keeps_the_order_of_equals() -> None:
    rows = [Comparison("x", error="bad"), Comparison("a", 0.5), Comparison("b", 0.7), Comparison("c", 0.5)]
    found = ranked(iter(rows))
    assert [row.path for row in found] == ["b", "a", "c", "x"]
    assert [row.difference for row in found] == [0.0, pytest.approx(-0.2), pytest.approx(-0.2), None]
    assert ranked(iter([rows[0]])) == [rows[0]]
