"""Photographs out of git repositories, cut and packed into shards."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from qmamba.cli import app
from qmamba.data import Rated
from qmamba.data import photos as module
from qmamba.data.photos import (
    CROP,
    Shards,
    Source,
    crops_of,
    find_clone,
    list_sources,
    pack,
    photographs,
    rated_crops,
)
from qmamba.errors import RecipeError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

SOURCE = Source("owner/name", include=("pictures/*",), exclude=("pictures/no/*",), crops=2)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def git(place: Path, *args: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(place), *identity, *args], check=True, capture_output=True)


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare clone of a repository with good, small, broken, repeated and unwanted files."""
    folder = tmp_path_factory.mktemp("clones")
    tree = folder / "tree"
    (tree / "pictures" / "no").mkdir(parents=True)
    picture(320, 240, 1).save(tree / "pictures" / "a.png")
    picture(200, 400, 2).save(tree / "pictures" / "b b.JPG", "JPEG")
    shutil.copy(tree / "pictures" / "a.png", tree / "pictures" / "same.png")
    picture(100, 100).save(tree / "pictures" / "small.png")
    (tree / "pictures" / "broken.png").write_bytes(b"no picture")
    (tree / "pictures" / "readme.txt").write_text("text")
    picture(320, 240, 3).save(tree / "pictures" / "no" / "c.png")
    picture(320, 240, 4).save(tree / "d.png")
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "photographs")
    subprocess.run(["git", "clone", "--quiet", "--bare", str(tree), str(folder / "owner+name")], check=True)
    return folder


def test_the_shipped_sources_are_sound() -> None:
    sources = list_sources()
    assert len({s.repository for s in sources}) == len(sources) > 10
    assert all(s.include and s.crops >= 1 and s.shrink >= 1 for s in sources)
    caltech = next(s for s in sources if "Caltech" in s.repository)
    assert caltech.takes("101_ObjectCategories/ant/image_0001.jpg")
    assert not caltech.takes("101_ObjectCategories/BACKGROUND_Google/image_0001.jpg")
    assert not any(
        "kodak" in s.repository.lower() or s.takes("kodak/1.png") for s in sources if "codec" in s.repository
    )


@pytest.mark.parametrize("name", ["owner+name", "owner/name", "name", "name.git"])
def test_clones_are_found_by_any_of_their_names(clones: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copytree(clones / "owner+name", tmp_path / name)
    assert find_clone(SOURCE, tmp_path) == tmp_path / name


def test_photographs_come_from_git(clones: Path) -> None:
    seen: set[str] = set()
    found = dict(photographs(SOURCE, clones / "owner+name", seen))
    assert list(found) == ["pictures/a.png", "pictures/b b.JPG", "pictures/broken.png", "pictures/small.png"]
    with Image.open(io.BytesIO(found["pictures/a.png"])) as image:
        assert image.size == (320, 240)
    assert list(photographs(SOURCE, clones / "owner+name", seen)) == []
    few = Source("owner/name", include=("pictures/*",), limit=2)
    assert len(list(photographs(few, clones / "owner+name", set()))) == 2


def test_crops_never_enlarge_what_is_large_enough() -> None:
    rng = np.random.default_rng(0)
    fine = Image.fromarray(rng.integers(0, 256, (600, 400, 3), np.uint8))
    crops = crops_of(fine, 20, 1.3, rng)
    assert all(c.shape == (CROP, CROP, 3) and c.dtype == np.uint8 for c in crops)
    # noise that is shrunk by at least 1.3 loses deviation; noise that is not, keeps 73.6
    assert max(c.std() for c in crops) < 70
    assert {c.std().round(2) for c in crops_of(picture(160, 160), 2, 1.3, rng)} == {
        np.asarray(picture(160, 160)).std().round(2)
    }


def test_rated_images_are_seen_at_the_scales_of_quality() -> None:
    fine = Image.fromarray(np.random.default_rng(0).integers(0, 256, (960, 960, 3), np.uint8))
    crops = rated_crops(fine, 12, np.random.default_rng(0))
    assert len(crops) == 12 and all(crop.shape == (CROP, CROP, 3) for crop in crops)
    deviations = [crop.std() for crop in crops]  # of noise, at least halved: 73.9 / 2 and less
    assert max(deviations) < 40 and max(deviations) > 1.3 * min(deviations)
    small = rated_crops(picture(90, 70), 3, np.random.default_rng(0))
    assert all(crop.shape == (CROP, CROP, 3) for crop in small)


def test_shards(clones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 10)
    monkeypatch.setattr(module, "RATED_CROPS", 10)
    lines: list[str] = []
    rated = []
    for i, name in enumerate(["a", "b", "a"]):
        picture(300, 300, 7 + i).save(tmp_path / f"{i}.png")
        rated.append(Rated(tmp_path / f"{i}.png", 0.1 * i, set=name))
    for out in ("one", "two"):
        pack(tmp_path / out, sources=[SOURCE], clones=clones, rated=rated, say=lines.append)
    assert lines[0] == "owner/name: 2 photographs, 4 crops so far"
    counts = json.loads((tmp_path / "one" / "photos.json").read_text())
    assert counts == {"owner/name": 2, "rated a": 2, "rated b": 1}
    shards, repeated = Shards(tmp_path / "one"), Shards(tmp_path / "two")
    assert len(shards) == 24 and len(list((tmp_path / "one").glob("crops-*.npy"))) == 3
    assert np.isnan(shards.mos[:4]).all()
    assert shards.mos[4:].tolist() == pytest.approx([0.0] * 5 + [0.2] * 5 + [0.1] * 10)
    assert shards.sets.tolist() == [-1] * 4 + [0] * 10 + [1] * 10
    assert all(np.array_equal(shards[i], repeated[i]) and shards[i].std() > 5 for i in range(24))
    with pytest.raises(RecipeError, match="holds shards already"):
        pack(tmp_path / "one", sources=[SOURCE], clones=clones)


def test_what_is_missing_is_named(clones: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no clone of a/b in"):
        pack(tmp_path / "out", sources=[Source("a/b", include=("*",))], clones=clones)
    with pytest.raises(RecipeError, match="make them with qmamba photos"):
        Shards(tmp_path)
    np.save(tmp_path / "crops-0000.npy", np.zeros((2, CROP, CROP, 3), np.uint8))
    np.save(tmp_path / "mos.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "sets.npy", np.zeros(3, np.int16))
    with pytest.raises(RecipeError, match="2 crops but 3 ratings"):
        Shards(tmp_path)


def test_cloning_takes_one_commit(clones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"url.{clones}/owner+name.insteadOf"
    for key, value in {
        "COUNT": "1",
        "KEY_0": address,
        "VALUE_0": "https://github.com/owner/name.git",
    }.items():
        monkeypatch.setenv(f"GIT_CONFIG_{key}", value)
    place = module.clone(SOURCE, tmp_path)
    assert len(list(photographs(SOURCE, place, set()))) == 4
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/owner/other.git")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(RecipeError, match="git fetch failed"):
        module.clone(SOURCE, tmp_path / "elsewhere")


def test_the_command(clones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "list_sources", lambda: [SOURCE])
    command = ["photos", "--source", str(clones), "--out", str(tmp_path / "shards")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'shards'}\n"
    assert "owner/name: 2 photographs" in result.stderr
    repeated = CliRunner().invoke(app, command)
    assert repeated.exit_code == 2 and "holds shards already" in repeated.stderr
    assert CliRunner().invoke(app, ["photos", "--list"]).stdout == "https://github.com/owner/name\n"
