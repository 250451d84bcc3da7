"""benchmarks/generality.py: its readers on small trees, its regressions and measures, and a run of it all."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qmamba.data import Rated
from qmamba.data.distortions import KADID_KINDS, kadid_quality
from qmamba.metrics import srcc
from qmamba.models.statistics import channel_statistics
from qmamba.protocol import Protocol
from qmamba.scoring import Scorer
from tiny_scorer import photo, quick_config, tiny_config, tiny_network

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not here: this is an installed package", allow_module_level=True)
pytest.importorskip("scipy", reason="scipy is not installed")
sys.path.append(str(BENCHMARKS))

import generality  # noqa: E402
import generality_domains as domains  # noqa: E402
import generality_measures as measures  # noqa: E402
from generality_features import Cache, OwnScore, Student, stage_statistics  # noqa: E402
from generality_models import ensemble, left_out, subsets  # noqa: E402
from generality_ridge import Block, LeaveOut, fit, folds_of, pooled_moments, split  # noqa: E402


def save(path: Path, seed: int = 0, height: int = 64, width: int = 72) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(height, width, seed)).save(path)
    return path


# Ridge


def block(rng: np.random.Generator, n: int, weights: np.ndarray, noise: float = 0.1) -> Block:
    x = rng.normal(2.0, 3.0, (n, len(weights)))
    return Block(x, x @ weights + noise * rng.normal(size=n))


def test_fit_is_the_ridge_of_standardised_features() -> None:
    rng = np.random.default_rng(0)
    data = block(rng, 50, np.array([1.0, -2.0, 0.5]))
    ridge = fit(data.moments, 0.3)
    z = (data.x - data.x.mean(0)) / data.x.std(0)
    weights = np.linalg.solve(z.T @ z / 50 + 0.3 * np.eye(3), z.T @ (data.y - data.y.mean()) / 50)
    np.testing.assert_allclose(ridge.predict(data.x), z @ weights, atol=1e-4)


def test_blocks_count_equally_whatever_their_size() -> None:
    rng = np.random.default_rng(1)
    one, two = block(rng, 20, np.array([1.0, 0.0])), block(rng, 30, np.array([0.0, 1.0]))
    larger = Block(np.tile(two.x, (5, 1)), np.tile(two.y, 5))
    a, b = (fit(pooled_moments([one.moments, other.moments]), 0.1).predict(one.x) for other in (two, larger))
    np.testing.assert_allclose(a, b)


def test_each_block_has_its_own_zero() -> None:
    rng = np.random.default_rng(1)
    one, two = block(rng, 20, np.array([1.0, 0.0])), block(rng, 30, np.array([0.0, 1.0]))
    moved = Block(two.x + 50, two.y - 7)
    a, b = (fit(pooled_moments([one.moments, other.moments]), 0.1) for other in (two, moved))
    np.testing.assert_allclose(a.weights, b.weights)


def test_constant_features_do_no_harm() -> None:
    x = np.column_stack([np.arange(10.0), np.full(10, 7.0)])
    ridge = fit(Block(x, np.arange(10.0)).moments, 0.01)
    assert srcc(ridge.predict(x), np.arange(10)) == pytest.approx(1)


def test_strength_is_chosen_by_blocks_left_out() -> None:
    rng = np.random.default_rng(2)
    clean = np.zeros(60)
    clean[0] = 1
    blocks = {name: block(rng, 40, clean, noise=3.0) for name in "abc"}  # few images, sixty features
    models = LeaveOut(blocks, strengths=(1e-6, 10.0))
    assert models.choose("abc") == 1
    held_out = [
        [srcc(models.ridge(set("abc") - {name}, i).predict(blocks[name].x), blocks[name].y) for i in (0, 1)]
        for name in "abc"
    ]
    assert np.mean(held_out, axis=0).argmax() == 1
    np.testing.assert_array_equal(models.best("abc").weights, models.ridge("abc", 1).weights)


def test_a_block_that_is_not_named_has_no_say() -> None:
    rng = np.random.default_rng(3)
    blocks = {name: block(rng, 15, rng.normal(size=4)) for name in "abcd"}
    changed = blocks | {"d": block(rng, 15, 100 * np.ones(4))}
    one, two = (LeaveOut(given).best("abc") for given in (blocks, changed))
    np.testing.assert_array_equal(one.weights, two.weights)


def test_folds_keep_groups_together() -> None:
    folds = folds_of(["x", "y", "x", "z", "y"], 2)
    assert folds.tolist() == [0, 1, 0, 0, 1]
    parts = split(Block(np.arange(10.0).reshape(5, 2), np.arange(5.0)), folds)
    assert parts["1"].y.tolist() == [1, 4] and parts["0"].x.shape == (3, 2)
    assert subsets(["a", "b", "c"]) == [["a", "b", "c"], ["b", "c"], ["a", "c"], ["a", "b"]]


# Domains


def agiqa3k(root: Path, prompts: int = 4) -> Path:
    names = [f"{maker}_{n:03d}.jpg" for maker in ("glide_normal", "DALLE2_normal") for n in range(prompts)]
    for seed, name in enumerate(names):
        save(root / "data" / "ACGIQA-3K" / name, seed)
    with (root / "data" / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "prompt", "mos_quality", "std_quality"])
        writer.writerows([n, "x", i / 2, 0.5] for i, n in enumerate(names))
    return root


def test_agiqa3k(tmp_path: Path) -> None:
    domain = domains.read_agiqa3k(agiqa3k(tmp_path), tmp_path)
    assert [r.path.name for r in domain.test] == [
        "glide_normal_000.jpg", "glide_normal_002.jpg", "DALLE2_normal_000.jpg", "DALLE2_normal_002.jpg",
    ]  # fmt: skip
    assert domains.opinions(domain.test).tolist() == [0, 1, 2, 3] and domain.fit == domain.test
    assert domains.contents(domain.test).tolist() == ["000", "002"] * 2
    assert set(domains.parts(domain.test)) == {"glide_normal", "DALLE2_normal"}


def stills(root: Path) -> Path:
    names = [f"{video}.mov_1frame_crf_{crf}" for video in ("sea", "town", "wood") for crf in (10, 40)]
    for seed, name in enumerate(names):
        save(root / "test_1" / "images" / f"{name}.png", seed)
    rows = "".join(f"{name},{i + 1},0.1\n" for i, name in enumerate(names))
    (root / "test_1" / "mos_ci.csv").write_text(f"image_name,mos,ci\n{rows}")
    return root


def test_stills(tmp_path: Path) -> None:
    domain = domains.read_stills(stills(tmp_path), tmp_path)
    assert domains.contents(domain.test).tolist() == ["sea"] * 2 + ["town"] * 2 + ["wood"] * 2
    assert domains.opinions(domain.test).tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25]


def srij(root: Path) -> Path:
    from scipy.io import savemat

    folder = root / "Datasets" / "SRIJ"
    scenes = ("sea1", "sea2", "toy1", "wood1")
    copies = [f"{method}-2-{scene}.tif" for method in ("srgan", "Yang10") for scene in scenes]
    names = ["HD-1-sea1.tif", *copies]
    for seed, name in enumerate(names[1:]):
        save(folder / "Images" / name, seed)
    cells = np.empty((1, len(names)), dtype=object)
    cells[0] = names
    savemat(folder / "addressesSRIJ.mat", {"addressesSRIJ": cells})
    savemat(folder / "hScoresSRIJ.mat", {"hScoresSRIJ": np.array([[40.0, 20, 60, 30, 50, 10, 70, 90]]).T})
    return root


def test_srij_has_no_originals(tmp_path: Path) -> None:
    domain = domains.read_srij(srij(tmp_path), tmp_path)
    assert [(r.path.name, r.mos) for r in domain.test][:2] == [
        ("srgan-2-sea1.tif", 0.4), ("srgan-2-sea2.tif", 0.2),
    ]  # fmt: skip
    assert domains.contents(domain.test).tolist() == ["sea", "sea", "toy", "wood"] * 2


def polyu(root: Path) -> Path:
    for scene in ("desk", "toy"):
        save(root / "CroppedImages" / f"C_{scene}_mean.JPG", 1)
        save(root / "CroppedImages" / f"C_{scene}_real.JPG", 2)
    save(root / "OriginalImages" / "Sony_sea_mean.JPG", 3)
    save(root / "OriginalImages" / "Sony_sea_Real.JPG", 4)
    save(root / "OriginalImages" / "Sony_lost_Real.JPG", 5)  # without its partner
    return root


def test_polyu_has_whole_pairs(tmp_path: Path) -> None:
    domain = domains.read_polyu(polyu(tmp_path), tmp_path)
    assert domain.pairs and not domain.fit
    assert domains.opinions(domain.test).tolist() == [1, 0] * 3
    assert domains.contents(domain.test).tolist()[::2] == ["crop C_desk", "crop C_toy", "camera Sony_sea"]
    assert all("mean" in rated.path.name for rated in domain.test[::2])


def git(place: Path, *args: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(place), *identity, *args], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_kadid_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "PIXELS", 96 * 72)
    clone = tmp_path / "clone"
    save(clone / "data" / "Urban100" / "image_SRF_4" / "img_001_SRF_4_HR.png", 0, 80, 120)
    save(clone / "data" / "Urban100" / "image_SRF_4" / "img_001_SRF_4_LR.png", 1)
    save(clone / "data" / "Sun-Hays80" / "image_SRF_8" / "img_001_SRF_8_HR.png", 2, 120, 80)
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "x")):
        git(clone, *command)
    domain = domains.read_kadid_scale(clone, tmp_path / "cache")
    assert len(domain.test) == 2 * len(KADID_KINDS) * 3 and len(set(domains.contents(domain.test))) == 2
    copy = next(r for r in domain.test if r.path.name == "img_001_SRF_8_HR-jpeg-5.png")
    assert copy.mos == kadid_quality("jpeg", 5).mean and copy.distortion == "jpeg"
    with Image.open(copy.path) as image:
        assert abs(image.width * image.height - 96 * 72) < 100 and image.height > image.width
    copy.path.write_bytes(b"kept")  # copies that are there are not made again
    repeated = domains.read_kadid_scale(clone, tmp_path / "cache")
    assert copy.path.read_bytes() == b"kept" and repeated == domain


def test_spread_and_levels() -> None:
    assert domains.spread("abcdefgh", 4) == ["a", "c", "e", "g"] and domains.spread("ab", 4) == ["a", "b"]
    levels = [level for index in range(5) for level in domains.levels_of(index)]
    assert sorted(levels) == sorted([1, 2, 3, 4, 5] * 3)


# Measures


def rated(root: Path, mos: Sequence[float], contents: Sequence[str], parts: Sequence[str]) -> domains.Domain:
    ratings = tuple(
        Rated(root / str(i), m, reference=c, distortion=p)
        for i, (m, c, p) in enumerate(zip(mos, contents, parts, strict=True))
    )
    return domains.Domain("d", "D", ratings, ratings)


def test_contents_are_resampled_together(tmp_path: Path) -> None:
    domain = rated(tmp_path, range(12), ["a", "b", "c"] * 4, [""] * 12)
    picks = measures.resamples(domain.test)
    assert len(picks) == measures.RESAMPLES and all(len(pick) == 12 for pick in picks)
    for pick in picks[:20]:
        counts = np.bincount(pick, minlength=12).reshape(4, 3)
        assert (counts == counts[0]).all()
    drawn = measures.draws(np.arange(12.0) ** 2, domain)
    assert drawn.shape == (1 + measures.RESAMPLES,) and drawn == pytest.approx(1)


def test_pairs_are_counted(tmp_path: Path) -> None:
    whole = rated(tmp_path, [1, 0] * 4, [str(i // 2) for i in range(8)], ["crop"] * 8)
    domain = domains.Domain("p", "P", whole.test, (), pairs=True)
    scores = np.array([0.9, 0.1, 0.8, 0.2, 0.1, 0.5, 0.3, 0.3])  # two won, one lost, one tied
    drawn = measures.draws(scores, domain)
    assert drawn[0] == 0.25 and set(drawn * 4) <= set(range(-4, 5))
    assert measures.signs(scores, domain.test).tolist() == [1, 1, -1, 0]


def test_agreement_within_parts(tmp_path: Path) -> None:
    mos = [*range(10), *range(10), *range(3)]
    domain = rated(tmp_path, mos, [str(i) for i in range(23)], ["x"] * 10 + ["y"] * 10 + ["few"] * 3)
    scores = np.array([*range(100, 110), *range(10, 0, -1), 1, 2, 3], dtype=float)
    assert measures.by_part(scores, domain) == {"x": 1, "y": -1}


def test_gains_are_paired() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.1, 1001)
    found = measures.summary(base + 0.02, base)
    assert found["gain"] == found["gain_low"] == found["gain_high"] == 0.02
    assert found["srcc_low"] < found["srcc"] and "gain" not in measures.summary(base, None)
    assert measures.mean_draws({"a": base}, ["a", "b"]) is None


# Features


def test_stage_statistics_are_means_and_deviations() -> None:
    network, images = tiny_network().eval(), torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        found = stage_statistics(network, images)
        _, features = network.forward_features(images)  # type: ignore[operator]
    assert found.shape == (2, 2 * (8 + 16 + 32 + 64))
    torch.testing.assert_close(found[:, :8], features[0].mean((2, 3)))
    torch.testing.assert_close(found[:, 8:16], features[0].std((2, 3), unbiased=False))
    torch.testing.assert_close(found[:, -64:], features[3].std((2, 3), unbiased=False))


def scorer(folder: Path, config: Any) -> Scorer:
    """A scorer that was saved, so that it has the digest of its weights."""
    config = Scorer(tiny_network(), config).save_pretrained(folder)
    return Scorer(tiny_network(), config)


@pytest.mark.parametrize("kind", ["scales", "grid"])
def test_own_scores_are_those_of_the_scorer(kind: str, tmp_path: Path) -> None:
    protocol = Protocol("scales", max_crops=0, sides=(64, 80)) if kind == "scales" else None
    config = tiny_config() if protocol is None else quick_config().replace(protocol=protocol)
    model = scorer(tmp_path / "model", config)
    paths = [save(tmp_path / f"{i}.png", i, 90, 70 + 20 * i) for i in range(3)]
    ratings = tuple(Rated(path, 0.5) for path in paths)
    domain = domains.Domain("d", "D", ratings, ratings)
    found = generality.own_scores(model, domain, Cache(tmp_path / "cache"))
    np.testing.assert_allclose(found, model.score(paths).numpy(), atol=1e-6)
    folders = {path.name for path in (tmp_path / "cache").iterdir()}
    digits = model.config.weights_sha256[:12]
    assert folders == ({f"{digits}-64", f"{digits}-80"} if protocol else {f"{digits}-score"})


class Colours:
    """An extractor of six numbers: the means and deviations of the colours, which knows what it was asked."""

    key, width, statistics = "colours", 6, 6

    def __init__(self, side: int = 0) -> None:
        self.asked = 0

    def __call__(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        self.asked += len(images)
        return torch.cat([channel_statistics([image[None].float() / 255]) for image in images])


def test_the_cache_resumes(tmp_path: Path) -> None:
    ratings = tuple(Rated(save(tmp_path / f"{i}.png", i), 0.5) for i in range(10))
    cache, extractor = Cache(tmp_path / "cache"), Colours()
    whole = cache.rows(extractor, "x", ratings)
    assert whole.shape == (10, 6) and extractor.asked == 10
    (file,) = (tmp_path / "cache" / "colours").iterdir()
    np.save(file, np.where(np.arange(10)[:, None] < 7, whole, np.nan).astype(np.float32))
    np.testing.assert_array_equal(cache.rows(extractor, "x", ratings), whole)
    assert extractor.asked == 13
    save(ratings[0].path, 99, 40, 40)  # another image of that name
    assert not np.array_equal(cache.rows(extractor, "x", ratings)[0], whole[0])


# All of it


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    return {
        "agiqa3k": agiqa3k(tmp_path / "agiqa3k", 12),
        "stills": stills(tmp_path / "stills"),
        "srij": srij(tmp_path / "srij"),
        "polyu": polyu(tmp_path / "polyu"),
    }


def test_models_never_see_the_domain_left_out(tmp_path: Path, sources: dict[str, Path]) -> None:
    found = domains.read_domains(dict(sources), tmp_path)
    cache = Cache(tmp_path / "cache")
    turned = list(found)
    turned[1] = dataclasses.replace(
        found[1], fit=tuple(dataclasses.replace(rated, mos=-rated.mos) for rated in found[1].fit)
    )
    for make in (left_out, lambda extractor, *rest: ensemble([extractor], *rest)):
        one = make(Colours(), found, cache)
        shutil.rmtree(tmp_path / "cache" / "predictions")
        two = make(Colours(), turned, cache)
        shutil.rmtree(tmp_path / "cache" / "predictions")
        np.testing.assert_array_equal(one["stills"], two["stills"])
        assert not np.allclose(one["polyu"], two["polyu"])


def test_a_run(
    tmp_path: Path,
    sources: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(generality, "Lite0", Colours)
    monkeypatch.setattr(measures, "RESAMPLES", 50)
    scorer(tmp_path / "model", quick_config().replace(trained_on=("AGIQA-3K",)))
    model, out = str(tmp_path / "model"), tmp_path / "found.json"
    options = [part for name, root in sources.items() for part in (f"--{name}", str(root))]
    options += ["--cache", str(tmp_path / "cache"), "--out", str(out), "--side", "64"]
    generality.main([*options, "--checkpoint", f"mine={model}", "--trained-without", f"new:srij={model}"])
    report = json.loads(out.read_text())
    assert list(report["domains"]) == ["agiqa3k", "stills", "srij", "polyu"]
    assert report["domains"]["polyu"] | {"digest": ""} == {
        "title": "PolyU", "n": 6, "contents": 3, "digest": "", "pairs": True,
    }  # fmt: skip
    rows = report["rows"]
    assert set(rows) == {
        "lite0, left out", "lite0-ensemble, left out",
        "mine@64, left out", "mine@64, score", "new, trained without",
    }  # fmt: skip
    score = rows["mine@64, score"]
    assert [score["domains"][name]["trained"] for name in report["domains"]] == [True, False, False, False]
    values = [score["domains"][name]["srcc"] for name in report["domains"]]
    assert score["mean"]["srcc"] == pytest.approx(np.mean(values), abs=1e-4)
    base = rows["lite0, left out"]["domains"]["srij"]
    assert score["domains"]["srij"]["gain"] == pytest.approx(values[2] - base["srcc"], abs=2e-4)
    assert base["gain"] == base["gain_low"] == 0 and list(rows["new, trained without"]["domains"]) == ["srij"]
    assert "mean" not in rows["new, trained without"] and "*" in capsys.readouterr().out

    generality.main(options)  # an earlier row stays, as the images are the same
    assert json.loads(out.read_text())["rows"]["mine@64, score"] == score
    save(next((sources["stills"] / "test_1" / "images").iterdir()), 99, 40, 40)
    generality.main(options)
    assert "mine@64, score" not in json.loads(out.read_text())["rows"]
    with pytest.raises(SystemExit, match="needs 3 domains with opinions, got agiqa3k; name"):
        generality.main(["--agiqa3k", str(sources["agiqa3k"]), "--cache", str(tmp_path)])


def test_a_student_has_statistics_and_raw_quality(tmp_path: Path) -> None:
    model = scorer(tmp_path / "model", quick_config())
    image = torch.from_numpy(photo(64, 64)).permute(2, 0, 1)
    student = Student(model, 64)
    (row,) = student([image])
    assert student.width == len(row) == student.statistics + 1
    expected = model.config.calibration(row[-1])
    assert float(expected) == pytest.approx(model.score(image), abs=1e-6)
    assert OwnScore(model)([image]).item() == pytest.approx(model.score(image))
