"""`qmamba data`: what is reported and written, exit codes, and that refusals are one line."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dataset_trees import TREES, add_generator, put
from qmamba.cli import app
from qmamba.data import DATASETS, Rated, read_dataset
from qmamba.data.checking import check_dataset
from qmamba.data.duplicates import find_duplicates, near_pairs
from qmamba.data.splitting import read_split
from qmamba.errors import DataSetError


def run(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def refused(*arguments: str | Path | int) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and not result.stdout, result.output
    assert result.stderr.startswith("qmamba: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_list() -> None:
    result = run("list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == list(DATASETS)


# check


def test_check_of_a_whole_set(tmp_path: Path) -> None:
    TREES["live"](tmp_path)
    result = run("check", f"live={tmp_path}", "--workers", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("LIVE: 779 of 779 images\n")
    assert "on a scale of 0 to 100, inverted DMOS" in result.stdout
    assert "references   29\ndistortions  5\n" in result.stdout and "problem" not in result.stdout


def test_check_counts_and_opens(tmp_path: Path) -> None:
    TREES["kadid10k"](tmp_path)
    for name in ("I01_09_03.png", "I81_25_03.png"):
        path = tmp_path / "images" / name
        path.write_bytes(path.read_bytes()[:60])
    labels = tmp_path / "dmos.csv"
    labels.write_text(labels.read_text() + "I01_01_03.png,I01.png,2,0.5\n")
    result = run("check", f"kadid10k={tmp_path}")
    assert (result.exit_code, result.stderr) == (1, "")
    problems = [
        line.removeprefix("problem").strip() for line in result.stdout.splitlines() if "problem" in line
    ]
    assert problems[0] == "9 rated images, expected 10,125"
    assert problems[1] == "2 references, expected 81"
    assert problems[2] == f"{tmp_path / 'images' / 'I01_01_03.png'}: listed 2 times"
    assert "I01_09_03.png" in problems[3] and "I81_25_03.png" in problems[4] and len(problems) == 5
    found = json.loads(run("check", f"kadid10k={tmp_path}", "--format", "json").stdout)
    assert (found["images"], found["expected"], found["with_std"]) == (9, 10125, 9)
    assert [p.split(":")[0] for p in found["problems"]] == [p.split(":")[0] for p in problems]


def test_check_shows_its_progress(tmp_path: Path) -> None:
    TREES["koniq10k"](tmp_path)
    steps: list[int] = []
    rated = read_dataset("koniq10k", tmp_path)
    report = check_dataset(rated, workers=3, done=lambda: steps.append(1))
    assert len(steps) == 5 and report.problems == ()
    assert report.mos == (61.25, 65.25)
    result = run("check", f"koniq10k={tmp_path}", "--progress")
    assert "0/5" in result.stderr and run("check", f"koniq10k={tmp_path}").stderr == ""


def test_check_of_own_ratings(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "ratings.csv").write_text("image,mos\na.png,3\n")
    result = run("check", tmp_path / "ratings.csv")
    assert result.exit_code == 0 and result.stdout.startswith("ratings.csv: 1 images\n")
    result = run("check", f"spaq={tmp_path}", "--manifest", tmp_path / "ratings.csv")
    assert result.exit_code == 1 and "1 rated images, expected 11,125" in result.stdout


def test_check_refuses(tmp_path: Path) -> None:
    assert "labels_image.csv is missing; layout unverified" in refused("check", f"flive={tmp_path}")
    assert "near names: live, livec" in refused("check", f"livecc={tmp_path}")


# splits


def test_splits(tmp_path: Path) -> None:
    root, out = tmp_path / "kadid", tmp_path / "new" / "splits"
    root.mkdir()
    TREES["kadid10k"](root)
    result = run("splits", f"KADID-10k={root}", "--convention", "loda", "--out", out)
    assert result.exit_code == 0, result.stderr
    names = [str(out / f"kadid10k-loda-3407-{i:02d}.csv") for i in range(10)]
    assert result.stdout.splitlines() == names
    rated = read_split(names[0], read_dataset("kadid10k", root), root)
    assert {(r.reference, r.fold) for r in rated} in (
        {("I01", "train"), ("I81", "test")},
        {("I81", "train"), ("I01", "test")},
    )
    assert run("splits", f"kadid10k={root}", "--convention", "loda", "-o", out).exit_code == 0
    Path(names[0]).write_text("image,fold\n")
    assert "holds another split" in refused("splits", f"kadid10k={root}", "-c", "loda", "-o", out)


def test_splits_by_image_or_by_prompt(tmp_path: Path) -> None:
    root, out = tmp_path / "agiqa", tmp_path / "splits"
    TREES["agiqa3k"](root)
    add_generator(root)
    folds = {}
    for options in ((), ("--by", "reference"), ("--by", "image")):
        result = run("splits", f"agiqa3k={root}", "-o", out, "-n", 1, *options)
        suffix = f"-by-{options[1]}" if options else ""
        assert result.stdout == f"{out / f'agiqa3k-deiqt-0-00{suffix}.csv'}\n", result.output
        folds[options] = read_split(result.stdout.strip(), read_dataset("agiqa3k", root), root)
    assert folds[()] == folds["--by", "image"]  # as published results are
    by_prompt = {(r.reference, r.fold) for r in folds["--by", "reference"]}
    assert len(by_prompt) == 4 and len({(r.reference, r.fold) for r in folds[()]}) > 4


def test_splits_of_own_ratings(tmp_path: Path) -> None:
    for i in range(5):
        put(tmp_path / "photos" / f"{i}.png", i)
    labels = tmp_path / "mine.csv"
    labels.write_text("image,mos\n" + "".join(f"photos/{i}.png,{i}\n" for i in range(5)))
    result = run("splits", labels, "-o", tmp_path, "-n", 1, "--seed", 4)
    assert result.stdout == f"{tmp_path / 'mine-deiqt-4-00.csv'}\n"
    with (tmp_path / "mine-deiqt-4-00.csv").open() as file:
        folds = {row["image"]: row["fold"] for row in csv.DictReader(file)}
    assert list(folds) == [f"photos/{i}.png" for i in range(5)]
    assert sorted(folds.values()) == ["test"] + ["train"] * 4


# duplicates


def scene(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """Six photographs: 0 again as JPEG of another size, 1 again brighter, and two on their own."""
    pytest.importorskip("imagehash", reason="ImageHash, which finds duplicates, is not installed")
    for i in range(4):
        scene(i).save(tmp_path / f"{i}.png")
    scene(0, (80, 60)).save(tmp_path / "0 again.jpg", quality=70)
    scene(1).point(lambda v: min(255, v + 12)).save(tmp_path / "1 again.png")
    names = [f"{i}.png" for i in range(4)] + ["0 again.jpg", "1 again.png"]
    rows = [f"{name},0.5,{'train' if i < 4 else 'test'}\n" for i, name in enumerate(names)]
    (tmp_path / "mine.csv").write_text("image,mos,fold\n" + "".join(rows))
    return tmp_path / "mine.csv"


def pairs(result: Result) -> set[tuple[str, str]]:
    rows = list(csv.reader(result.stdout.splitlines()))
    assert rows[0] == ["distance", "first", "second"]
    assert [int(row[0]) for row in rows[1:]] == sorted(int(row[0]) for row in rows[1:])
    return {(Path(first).name, Path(second).name) for _, first, second in rows[1:]}


def test_duplicates(alike: Path) -> None:
    result = run("duplicates", alike)
    assert result.exit_code == 1
    assert pairs(result) == {("0.png", "0 again.jpg"), ("1.png", "1 again.png")}
    assert result.stderr == "qmamba: 2 pairs of 6 images look alike\n"


def test_duplicates_across_the_folds_of_a_split(alike: Path, tmp_path: Path) -> None:
    torn = {"0.png": "train", "0 again.jpg": "test", "1.png": "test", "1 again.png": "test"}
    rows = [f"{name},{torn.get(name, 'train')}\n" for name in (*torn, "2.png", "3.png")]
    split = tmp_path / "split.csv"
    split.write_text("image,fold\n" + "".join(rows))
    result = run("duplicates", alike, "--split", split)
    assert (result.exit_code, pairs(result)) == (1, {("0.png", "0 again.jpg")})
    split.write_text(split.read_text().replace("0.png,train", "0.png,test"))
    result = run("duplicates", alike, "--split", split)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "distance,first,second\n", "")


def test_images_of_one_reference_look_alike_by_design(alike: Path) -> None:
    rated = [Rated(r.path, r.mos, r.fold, reference="one") for r in read_dataset("manifest", alike)]
    assert find_duplicates(rated) == ([], {})
    assert {p[:2] for p in find_duplicates(rated, across_folds=True).pairs} == {(0, 4), (1, 5)}


def test_duplicates_of_what_cannot_be_opened(alike: Path) -> None:
    """Broken files are named and passed over; pairs of the others are found."""
    (alike.parent / "2.png").write_bytes(b"no picture")
    (alike.parent / "0.png").write_bytes((alike.parent / "3.png").read_bytes()[:90])
    result = run("duplicates", alike)
    assert (result.exit_code, pairs(result)) == (1, {("1.png", "1 again.png")})
    assert "0.png cannot be opened" in result.stderr and "2.png cannot be opened" in result.stderr
    assert "2 of 6 images cannot be opened and were passed over" in result.stderr


def test_duplicates_in_a_folder_without_ratings(alike: Path) -> None:
    folder = alike.parent
    (folder / "deep").mkdir()
    (folder / "0.png").rename(folder / "deep" / "0.png")
    assert pairs(run("duplicates", folder)) == {("1 again.png", "1.png")}
    result = run("duplicates", folder, "-r")
    assert (result.exit_code, len(pairs(result))) == (1, 2)
    for name in ("0 again.jpg", "1 again.png"):
        (folder / name).unlink()
    result = run("duplicates", folder, "-r")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "distance,first,second\n", "")
    (folder / "broken.jpg").write_bytes(b"nothing")
    result = run("duplicates", folder, "-r")
    assert result.exit_code == 1 and "broken.jpg cannot be opened" in result.stderr
    assert "go with a data set" in refused("duplicates", folder, "--split", alike)
    (folder / "empty").mkdir()
    assert run("duplicates", folder / "empty").exit_code == 2


def test_duplicates_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TREES["koniq10k"](tmp_path)
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert 'pip install "qmamba[data]"' in refused("duplicates", f"koniq10k={tmp_path}")


def test_near_pairs_are_those_of_plain_counting() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 300, np.uint64)
    for i in range(0, 300, 7):  # some that are near another one, in blocks before and behind
        hashes[i] = hashes[(i * 5 + 11) % 300] ^ np.uint64(1 << (i % 63))
    expected = {
        (i, j, bin(int(hashes[i]) ^ int(hashes[j])).count("1")) for i in range(300) for j in range(i + 1, 300)
    }
    for distance in (0, 2, 24):
        assert {tuple(p) for p in near_pairs(hashes, distance)} == {p for p in expected if p[2] <= distance}


def test_reading_errors_are_data_set_errors(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="no such folder"):
        read_dataset("livec", tmp_path / "none")
