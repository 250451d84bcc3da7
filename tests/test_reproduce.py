"""`qmamba reproduce` and `qmamba train` with the paper's recipes, and the page of results."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import qmamba.train.paper.recipe as recipes
from dataset_trees import TREES, add_generator
from qmamba.checkpoints import read_config
from qmamba.cli import app
from qmamba.train import load_recipe
from qmamba.train.paper import list_paper_recipes
from qmamba.train.paper.report import lines_of, row_text
from qmamba.train.paper.rows import config_sha256, empty_row
from qmamba.train.paper.sets import read_set, split_set
from qmamba.train.recipe_files import parse_recipe
from rated_photos import rated_photos

pytest.importorskip("accelerate", reason="accelerate, which trains, is not installed")
sys.path.append(str(Path(__file__).parents[1] / "docs"))

from make_results import results_page

ROW = """\
task = "single"
name = "tiny"
title = "Tiny"
arch = "lqmamba-n"
data = ["bright", "koniq10k"]
overrides = { widths = [8, 16, 32, 64], depths = [1, 1, 1, 1] }
epochs = 1
crops = 2
test_crops = 2
crop = 32
batch = 6

[paper]
bright = [0.9, 0.8]
koniq10k = [0.94, 0.93]
"""


DIGESTS = {"split_sha256": "1" * 64, "images_sha256": "2" * 64, "weights": ""}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipped table with one tiny row, and a data root that lacks one of its two sets."""
    (tmp_path / "recipes" / "table9").mkdir(parents=True)
    (tmp_path / "recipes" / "table9" / "tiny.toml").write_text(ROW)
    monkeypatch.setattr(recipes, "_folder", lambda: tmp_path / "recipes")
    root = tmp_path / "root"
    rows = [f"{r.path},{r.mos:.3f}\n" for r in rated_photos(root / "photos", 20)]
    (root / "bright.csv").write_text("image,mos\n" + "".join(rows))
    return root


def test_rows_beside_the_paper(tables: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("reproduce", "table9", "--data-root", tables, "--splits", "2", "--out", out, "--cpu")
    result = run(*command)
    assert result.exit_code == 1, result.output  # a set is absent
    assert "table9/tiny  Tiny, from random weights\n" in result.stdout
    assert f"  koniq10k absent: no {tables / 'koniq10k'}\n" in result.stdout
    saved = json.loads((out / "results" / "table9" / "tiny.json").read_text())
    here, absent = saved["cells"]
    assert [s["split"] for s in here["splits"]] == ["deiqt-0-00", "deiqt-0-01"] and not absent["splits"]
    (line,) = (text.split() for text in result.stdout.splitlines() if "  bright " in text)
    ours = here["median"]
    assert line[3:] == [
        "2", f"{ours['srcc']:.3f}", "0.800", f"{ours['srcc'] - 0.8:+.3f}",
        f"{ours['plcc_fitted']:.3f}", "0.900", f"{ours['plcc_fitted'] - 0.9:+.3f}",
    ]  # fmt: skip
    repeated = run(*command, "--format", "json")
    assert repeated.exit_code == 1 and json.loads(repeated.stdout)["table9/tiny"] == saved
    repeat, checkpoint, hashes = result.stdout.splitlines()[-4:-1]
    assert repeat == "  repeat: qmamba reproduce table9 --rows tiny --splits 2 --data-root DATA"
    assert saved["command"] == repeat.partition(": ")[2]
    folder = here["splits"][0]["weights"]
    assert checkpoint == f"  checkpoint tiny-bright: runs/{Path(folder).parts[0]}/split-*/checkpoint"
    assert read_config(out / "runs" / folder).name == "tiny-bright"
    assert re.fullmatch(
        r"  hashes: config [0-9a-f]{12}, bright splits [0-9a-f]{12} images [0-9a-f]{12}", hashes
    )
    assert f"config {saved['config_sha256'][:12]}," in hashes


def test_a_part_of_a_row(tables: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--data-root", tables, "--splits", "1", "--out", out, "--cpu")
    result = run("reproduce", "table9", "--rows", "tiny/bright", *options)
    assert result.exit_code == 0, result.output  # the absent set is not asked for
    assert "--rows tiny/bright --splits 1" in result.stdout and "koniq" not in result.stdout
    part = json.loads((out / "results" / "table9" / "tiny" / "bright.json").read_text())
    whole = run("reproduce", "table9", *options, "--format", "json")
    (cell, _) = json.loads(whole.stdout)["table9/tiny"]["cells"]
    assert cell["splits"] == part["cells"][0]["splits"]  # the same run
    result = run("reproduce", "table9", "--rows", "tiny/livec", *options)
    assert result.exit_code == 2 and "must be one of bright, koniq; got 'livec'" in result.stderr


def test_hashes_tell_what_differs(tables: Path, tmp_path: Path) -> None:
    """The same on another machine; another split, image or setting each change the digest of their kind."""

    def digests(root: Path, row: str = ROW) -> tuple[str, str, str]:
        plan = parse_recipe(row.replace(', "koniq10k"', "").partition("koniq10k = ")[0])
        each = split_set("bright", read_set("bright", root), plan, 0).hashes()
        return config_sha256(plan), each["split"], each["images"]

    first = digests(tables)
    other = shutil.copytree(tables, tmp_path / "elsewhere" / "root")
    labels = (other / "bright.csv").read_text()
    (other / "bright.csv").write_text(labels.replace(str(tables), str(other)))
    assert digests(other) == first
    assert digests(tables, ROW.replace('title = "Tiny"', "splits = 3")) == first
    changed = digests(tables, ROW.replace("crops = 2\n", "crops = 3\n", 1))
    assert changed[0] != first[0] and changed[1:] == first[1:]
    (other / "photos" / "0.png").write_bytes((other / "photos" / "0.png").read_bytes() + b"x")
    assert [a == b for a, b in zip(digests(other), first, strict=True)] == [True, True, False]
    lines = (other / "bright.csv").read_text().splitlines()
    (other / "bright.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")  # another order
    assert digests(other)[1] != first[1]


def test_estimate(tables: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("reproduce", "table9", "--data-root", tables, "--out", out, "--cpu", "--estimate")
    (found,) = json.loads(run(*command, "--rows", "tiny/bright", "-f", "json").stdout)
    assert (found["runs"], found["steps"]) == (10, 10 * (16 * 2 // 6)) and not out.exists()
    assert found["cpu_hours"] > 0 and found["step_seconds"] > 0
    assert found["seconds"] > found["steps"] * found["step_seconds"]
    table = run(*command)
    assert table.exit_code == 0 and f"absent: no {tables / 'koniq10k'}" in table.stdout
    done = run("reproduce", "table9", "--data-root", tables, "--out", out, "--cpu", "--splits", "1")
    assert done.exit_code == 1
    (left,) = json.loads(run(*command, "--rows", "tiny/bright", "-f", "json").stdout)
    assert left["runs"] == 9  # what is finished costs nothing


def test_unknown_tables_and_rows(tables: Path) -> None:
    for arguments, says in (
        (("table4",), "TABLE must be one of table9, got 'table4'"),
        (("table9", "--rows", "huge"), "--rows must be of table9: tiny; got 'huge'"),
    ):
        result = run("reproduce", *arguments, "--data-root", tables)
        assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1


def test_list() -> None:
    names = run("reproduce", "--list").stdout.split()
    assert names == list_paper_recipes() and "table1/lqmamba-t" in names
    assert set(names) < set(run("train", "--list").stdout.split())


def test_nothing_to_start_from(tmp_path: Path) -> None:
    """The paper's rows start from ImageNet weights: without them nothing is run, unless asked for."""
    TREES["koniq10k"](tmp_path / "koniq10k")
    result = run("reproduce", "table1", "--data-root", tmp_path, "--rows", "qmamba-t", "-o", tmp_path / "out")
    assert result.exit_code == 1 and not (tmp_path / "out" / "runs").exists()
    start = tmp_path / "vmamba-t.pth"
    assert f"koniq10k absent: nothing to start from: {start} does not exist" in result.stdout
    assert f"spaq absent: no {tmp_path / 'spaq'}" in result.stdout


def test_train_with_such_a_recipe(tables: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(ROW.replace(', "koniq10k"', "").partition("koniq10k = ")[0])
    command = ["train", tmp_path / "mine.toml", "--data", tables, "--out", tmp_path / "run"]
    for more, says in (
        (["--processes", "2"], "by `accelerate launch`"),
        (["--device", "cuda:1"], "choose GPUs by `accelerate launch`"),
    ):
        result = run(*command, *more)
        assert result.exit_code == 2 and says in result.stderr
    result = run("train", "table9/tiny", "--data", tables, "--out", tmp_path / "run")
    assert result.exit_code == 2 and "the set 'koniq10k' is absent" in result.stderr
    plan = (tmp_path / "mine.toml").read_text().replace('title = "Tiny"\n', "splits = 1\n")
    (tmp_path / "mine.toml").write_text(plan)
    result = run(*command, "--device", "cpu", "--progress")
    assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'run'}\n", result.output
    assert "bright, split 0" in result.stderr and "loss=" in result.stderr and "0.800" in result.stderr
    assert (
        json.loads((tmp_path / "run" / "results.json").read_text())["cells"][0]["median"]["srcc"] is not None
    )
    assert run(*command, "--fresh").exit_code == 2


def test_paper_options_are_for_such_recipes(tmp_path: Path) -> None:
    result = run("train", "lqmamba-n", "--data", tmp_path, "--out", tmp_path / "o", "--log", "tensorboard")
    assert result.exit_code == 2 and "--log, --workers, --cache are for recipes with a task" in result.stderr


def test_minutes_end_a_run_that_resumes(tables: Path, tmp_path: Path) -> None:
    command = (
        "reproduce",
        "table9",
        "--data-root",
        tables,
        "--splits",
        "1",
        "--out",
        tmp_path / "out",
        "--cpu",
    )
    result = run(*command, "--minutes", "0")
    assert result.exit_code == 3 and "give the same command again to resume" in result.stderr
    assert run(*command).exit_code == 1


# The page of results


def row_of(name: str) -> dict[str, Any]:
    return empty_row(load_recipe(name))


def test_what_was_not_run_is_absent() -> None:
    rows = {name: row_of(name) for name in list_paper_recipes()}
    page = results_page(rows)
    cells = [line for line in page.splitlines() if line.startswith("| LQMamba-B | the same |")]
    assert len(cells) == 10 and all("| absent | - |" in line for line in cells)  # eight sets, and two more
    assert all(len(line) <= 120 for line in page.splitlines() if not line.startswith("|"))
    assert not re.search(r"\| [+-]\d", page)  # no difference to anything


def test_a_dry_run_is_not_compared_with_the_paper() -> None:
    row = row_of("table1/lqmamba-t")
    for cell in row["cells"]:
        cell["splits"], cell["median"] = (
            [{"split": "dry run", **DIGESTS}],
            {"srcc": 0.5, "plcc": 0.5, "plcc_fitted": 0.5},
        )
    assert any(line[5] != "-" for line in lines_of(row))
    for line in lines_of({**row, "dry_run": True}):
        assert line[5] == line[8] == "-" and line[3] == line[6] == "0.500"
    assert "the numbers mean nothing" in row_text("table1/lqmamba-t", {**row, "dry_run": True})


def test_the_data_root_is_explained(tmp_path: Path) -> None:
    for options, says in (
        ((), "--data-root is missing; give the folder that holds the data sets"),
        (("--data-root", tmp_path / "none"), "is not a folder"),
    ):
        result = run("reproduce", "table1", *options, "--dry-run")
        assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1
        assert "koniq10k" in result.stderr and "docs/reproducing.md" in result.stderr


def test_average_needs_all_cells() -> None:
    row = row_of("table5/qmamba-t")
    for cell, value in zip(row["cells"], (0.5, 0.7), strict=True):
        assert lines_of(row)[-1][3] == "-"
        cell["splits"] = [{"split": "deiqt-0-00", **DIGESTS}]
        cell["median"] = {"srcc": value, "plcc": 0.1, "plcc_fitted": value + 0.1}
    learnt, tested, _, srcc, paper, difference, plcc, *_ = lines_of(row)[-1]
    assert (learnt, tested, srcc, plcc) == ("", "average", "0.600", "0.700")
    assert paper == "0.865" and difference == "-0.265"  # of 0.858 and 0.873: 0.8655
    row["cells"][0]["absent"] = "no folder"
    assert "agiqa3k absent: no folder" in row_text("table5/qmamba-t", row)


def test_the_page_is_what_its_files_say(data_dir: Path) -> None:
    docs = data_dir.parents[1] / "docs"
    results = docs / "results"
    rows = {name: row_of(name) for name in list_paper_recipes()}
    for path in results.glob("*/*.json"):
        rows[f"{path.parent.name}/{path.stem}"] = json.loads(path.read_text())
    assert (docs / "results.md").read_text(encoding="utf-8") == results_page(rows)


def test_measured_numbers_link_to_their_files() -> None:
    row = row_of("table5/lqmamba-t")
    row |= {"command": "qmamba reproduce table5 --rows lqmamba-t --data-root DATA"}
    cell = row["cells"][0]
    cell |= {"splits": [{"split": "deiqt-0-00", **DIGESTS}], "start": "vmamba-t.pth"}
    cell["median"] = {"srcc": 0.5, "plcc": 0.6, "plcc_fitted": 0.75}
    page = results_page({"table5/lqmamba-t": row})
    link = "(results/table5/lqmamba-t.json)"
    assert f"| agiqa3k | 1 | [0.500]{link} | 0.862 | -0.362 | [0.750]{link} | 0.914 | -0.164 |" in page
    assert page.count(link) == 2  # what was not measured links to nothing
    assert f"`lqmamba-t`: `{row['command']}`" in page and f"config {row['config_sha256'][:12]}" in page


def test_a_data_root_of_public_sets(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As benchmarks/public_sets.py makes it, from the sets that exist."""
    benchmarks = data_dir.parents[1] / "benchmarks"
    if not benchmarks.is_dir():
        pytest.skip("the benchmarks are not here: this is an installed package")
    monkeypatch.syspath_prepend(benchmarks)
    import public_sets

    TREES["agiqa3k"](tmp_path / "AIGC" / "data")
    add_generator(tmp_path / "AIGC" / "data")
    root = tmp_path / "root"
    public_sets.main(["--agiqa3k", str(tmp_path / "AIGC"), "--root", str(root)])
    assert [path.name for path in root.iterdir()] == ["agiqa3k"] and len(read_set("agiqa3k", root)) == 8
    by_prompt, by_image = (
        split_set("agiqa3k", read_set("agiqa3k", root), load_recipe(f"agiqa3k/{row}"), 1)
        for row in ("by-prompt", "by-image")
    )
    assert by_prompt.split == "deiqt-0-01-by-reference" and by_image.split == "deiqt-0-01-by-image"
    prompts = {fold: {r.reference for r in by_prompt.folds[fold]} for fold in ("train", "test")}
    assert len(prompts["train"]) == 3 and len(prompts["test"]) == 1
    assert [len(by_image.folds[fold]) for fold in ("train", "test")] == [6, 2]


# Dry runs of all recipes


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set in its official layout, made up."""
    root = tmp_path_factory.mktemp("trees")
    for name, make in TREES.items():
        make(root / name)
    photos = rated_photos(root / "photos", 4)
    for name in ("video", "sr"):
        rows = [f"{r.path},{r.mos:.3f}\n" for r in photos]
        (root / f"{name}.csv").write_text("image,mos\n" + "".join(rows))
    for name in (root / "biq2021" / "Images").iterdir():  # the tree has names only
        name.write_bytes(photos[0].path.read_bytes())
    labels = root / "biq2021" / "Train (Images and MOS).csv"
    labels.write_text(labels.read_text().replace(",0.25,", ",0.75,", 1))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("table", sorted({name.split("/")[0] for name in list_paper_recipes()}))
def test_dry_run_of_every_row(
    table: str, trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("reproduce", table, "--data-root", trees, "--dry-run", "--cpu", "--format", "json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert set(rows) == {name for name in list_paper_recipes() if name.startswith(f"{table}/")}
    for row in rows.values():
        assert row["dry_run"] and all(len(cell["splits"]) == 1 for cell in row["cells"])
        assert all(cell["splits"][0]["n"] == 2 for cell in row["cells"])
    assert not list(tmp_path.iterdir())  # nothing is kept


def test_dry_run_of_a_transfer_to_generated_images(trees: Path) -> None:
    """With learning rates that are chosen on held-out prompts."""
    command = ("reproduce", "agiqa3k-transfer", "--data-root", trees, "--dry-run", "--cpu", "-f", "json")
    result = run(*command, "--rows", "style-prompt")
    assert result.exit_code == 0, result.output
    (cell,) = json.loads(result.stdout)["agiqa3k-transfer/style-prompt"]["cells"]
    assert set(cell["splits"][0]["rates"]) == {"0.001", "0.003"}
    assert cell["splits"][0]["rate"] in cell["splits"][0]["rates"]
    assert cell["name"] == "lqmamba-n-biq2021-to-agiqa"
