"""Pooled features, their files, and t-SNE pictures of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import qmamba
from qmamba.analysis.features import Features, extract, features_of, load_features, save_features
from qmamba.analysis.tsne import COLOURS, MARKERS, draw_points, tsne
from qmamba.cli import app
from qmamba.data import Rated
from qmamba.errors import FeaturesError, ImageError
from qmamba.scoring import Scorer
from rated_photos import rated_photos
from tiny_scorer import tiny_config, tiny_network

WIDTHS = (8, 16, 32, 64)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Rated]:
    return rated_photos(tmp_path_factory.mktemp("photos"), 8)


@pytest.fixture(scope="module")
def manifest(photos: list[Rated]) -> Path:
    path = photos[0].path.parent / "all.csv"
    rows = [
        f"{r.path.name},{r.mos:.2f},{('blur', 'noise', '')[i % 3]},ref{i}\n" for i, r in enumerate(photos)
    ]
    path.write_text("image,mos,distortion,reference\n" + "".join(rows))
    return path


def test_pooled_features_are_means_over_positions_and_crops(scorer: Scorer, photos: list[Rated]) -> None:
    found = features_of(scorer, photos[0].path)  # 80 × 96: a grid of 2 × 2 crops of 64
    assert [tuple(f.shape) for f in found] == [(width,) for width in WIDTHS]
    pixels = torch.from_numpy(np.asarray(Image.open(photos[0].path)).copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    crops = torch.stack([pixels[:, t : t + 64, x : x + 64] for t in (0, 16) for x in (0, 32)])
    with torch.no_grad():
        stages = scorer.base().forward_features((crops - mean) / std)[1]
    for stage, ours in zip(stages, found, strict=True):
        torch.testing.assert_close(ours, stage.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_bits_do_not_depend_on_batch_mates(scorer: Scorer, photos: list[Rated]) -> None:
    alone = features_of(scorer, photos[3].path)
    together = extract(scorer, photos[::-1])
    place = [r.path for r in photos[::-1]].index(photos[3].path)
    assert all(np.array_equal(a.numpy(), t[place]) for a, t in zip(alone, together.stages, strict=True))


def test_a_bad_photograph_is_reported_and_skipped(
    scorer: Scorer, photos: list[Rated], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    bad = Rated(tmp_path / "bad.png", 0.5)
    with pytest.raises(ImageError):
        extract(scorer, [photos[0], bad])
    failed: list[ImageError] = []
    found = extract(scorer, [photos[0], bad, photos[1]], failed=failed.append)
    assert found.image.tolist() == [str(photos[0].path), str(photos[1].path)] and len(failed) == 1
    with pytest.raises(FeaturesError, match="no photograph could be read"):
        extract(scorer, [bad], failed=failed.append)


def made_up(n: int = 5) -> Features:
    rng = np.random.default_rng(0)
    stages = tuple(rng.random((n, width), np.float32) for width in (3, 120))
    names = np.array([f"{i}.png" for i in range(n)])
    return Features(stages, names, rng.random(n), np.array(["blur"] * n), np.array([""] * n))


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_files_hold_it_all(kind: str, tmp_path: Path) -> None:
    if kind == "parquet":
        for package in ("pandas", "pyarrow"):
            pytest.importorskip(package, reason=f"{package}, which writes parquet, is not installed")
    features, path = made_up(), tmp_path / "new" / f"features.{kind}"
    save_features(path, features)
    found = load_features(path)
    for name in ("image", "mos", "distortion", "reference"):
        assert getattr(found, name).tolist() == getattr(features, name).tolist()
    assert all(np.array_equal(a, b) for a, b in zip(found.stages, features.stages, strict=True))
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", image=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("text")
    for name, says in (
        ("no.npz", "no such file"),
        ("no.csv", r"saved as \.npz or \.parquet, got 'no.csv'"),
        ("other.npz", "not a file of `qmamba features`"),
        ("pickle.npz", "not a file of `qmamba features`"),
        ("text.npz", "not a file of `qmamba features`"),
    ):
        with pytest.raises(FeaturesError, match=says):
            load_features(tmp_path / name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FeaturesError, match=r"qmamba\[parquet\]"):
        save_features(tmp_path / "a.parquet", made_up())


# Pictures


def test_kinds_stand_apart() -> None:
    n = len(COLOURS) * len(MARKERS)
    assert len({(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(n)}) == n == 56


def test_tsne_keeps_groups_apart() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which has t-SNE, is not installed")
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(centre, 0.1, (15, 6)) for centre in (0, 3, 9)]).astype(np.float32)
    state = np.random.get_state()[1].tolist()
    points = tsne(values)
    assert points.shape == (45, 2) and np.array_equal(points, tsne(values))
    assert np.random.get_state()[1].tolist() == state
    group = np.repeat(np.arange(3), 15)
    for i in range(45):
        near = np.argsort(((points - points[i]) ** 2).sum(axis=1))[1:6]
        assert (group[near] == group[i]).all()
    with pytest.raises(FeaturesError, match="at least 4 photographs, got 3"):
        tsne(values[:3])


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws, is not installed")
    points = np.random.default_rng(0).random((40, 2)).astype(np.float32)
    kinds = [f"kind {i % 25:02d}" for i in range(40)]
    draw_points(points, kinds, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        seen = {c[:3] for _, c in picture.convert("RGBA").getcolors(1 << 20) or []}
    assert {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in COLOURS} <= seen
    draw_points(points, kinds, tmp_path / "a.svg")
    assert all(kind in (tmp_path / "a.svg").read_text() for kind in kinds)
    with pytest.raises(FeaturesError, match=r"must be \.png, \.svg or \.pdf"):
        draw_points(points, kinds, tmp_path / "a.doc")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FeaturesError, match=r"qmamba\[plot\]"):
        tsne(np.zeros((9, 3), np.float32))
    with pytest.raises(FeaturesError, match=r"qmamba\[plot\]"):
        draw_points(np.zeros((1, 2), np.float32), ["a"], tmp_path / "a.png")


def test_commands(scorer: Scorer, manifest: Path, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path / "tiny")
    out = tmp_path / "features.npz"
    result = run("features", "--data", manifest, "--out", out, "--model", tmp_path / "tiny")
    assert result.exit_code == 0 and result.stdout == f"{out}\n", result.output
    found = load_features(out)
    assert len(found) == 8 and [s.shape[1] for s in found.stages] == list(WIDTHS)
    assert found.distortion.tolist()[:3] == ["blur", "noise", ""] and found.reference.tolist()[7] == "ref7"
    folder = qmamba.load(tmp_path / "tiny")
    assert np.array_equal(found.stages[3][0], features_of(folder, found.image[0])[3].numpy())
    for module in ("sklearn", "matplotlib"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    drawn = []
    for options in ((), ("--stage", "2"), ("--stage", "4")):
        result = run("plot", "tsne", out, "--out", tmp_path / "a.png", "--force", *options)
        assert result.exit_code == 0 and (tmp_path / "a.png").stat().st_size > 5000, result.output
        drawn.append((tmp_path / "a.png").read_bytes())
    assert drawn[0] == drawn[2] != drawn[1]  # the last stage unless told otherwise
    for arguments, says in (
        (("plot", "tsne", out, "--out", tmp_path / "b.png", "--stage", "5"), "has 4 stages, got --stage 5"),
        (("features", "--data", manifest, "--out", tmp_path / "a.csv"), ".npz or .parquet"),
        (("features", "--data", f"konik={tmp_path}", "--out", tmp_path / "b.npz"), "near names: koniq10k"),
        (("features", "--data", manifest, "--out", out), "exists already"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1


def test_command_names_what_it_cannot_read(scorer: Scorer, photos: list[Rated], tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "two.csv").write_text(f"image,mos\n{photos[0].path},0.1\nbad.png,0.2\n")
    out = tmp_path / "features.npz"
    result = run("features", "-d", tmp_path / "two.csv", "-o", out, "-m", tmp_path / "tiny")
    assert result.exit_code == 1 and "bad.png" in result.stderr and len(load_features(out)) == 1
