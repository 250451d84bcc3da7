"""LoDa's training on the one engine: losses, schedule, crops, frozen towers, and what it starts from."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import qmamba
from dataset_trees import TREES
from published_loda import SMALL, write_bases, write_published
from qmamba.checkpoints import load_checkpoint, read_config
from qmamba.checkpoints.start import start
from qmamba.cli import app
from qmamba.data import Rated
from qmamba.errors import CheckpointError, HubError, RecipeError
from qmamba.models import create_model
from qmamba.models.loda import is_stored
from qmamba.train import Phase, load_recipe, train
from qmamba.train.losses import correlation, correlation_loss, squared_correlation_loss
from qmamba.train.paper import PaperRecipe, Workshop, do_row
from qmamba.train.paper.cost import estimate_rows
from qmamba.train.paper.runs import dry_recipe, folder_of, identity, runs_of
from qmamba.train.paper.sets import Crops, RatedSet, sized, split_set
from qmamba.train.paper.task import do_run
from rated_photos import RECIPE, rated_photos

pytest.importorskip("accelerate", reason="accelerate, which trains, is not installed")

TINY = PaperRecipe(
    task="single", name="tiny", arch="loda", overrides=SMALL, data=("bright",), convention="own", splits=1,
    epochs=2, crops=2, test_crops=3, crop=64, batch=6, lr=3e-3, weight_decay=1e-2, clip=0.0,
    schedule="cosine", vertical_flip=True, losses={"squared-correlation": 1.0}, seed=3407, save_every=2,
)  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, the standard one for this test, and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest "bright", with folds."""
    root = tmp_path_factory.mktemp("sets")
    folds = ("train", "train", "test", "val", "train")
    rows = [f"{r.path},{r.mos:.3f},{folds[i % 5]}\n" for i, r in enumerate(rated_photos(root / "photos", 15))]
    (root / "bright.csv").write_text("image,mos,fold\n" + "".join(rows))
    return root


def done(recipe: PaperRecipe, root: Path, out: Path, **options: Any) -> tuple[dict[str, Any], Path]:
    """The results of a recipe's only run, and its folder."""
    (run,) = runs_of(recipe, 0)
    return do_run(run, recipe, Workshop(root, out, cpu=True, **options)), out / folder_of(run, recipe)


# Losses and schedule


def test_losses_are_those_of_the_paper_and_of_its_code() -> None:
    g = torch.Generator().manual_seed(0)
    pred, mos = torch.rand(20, generator=g), torch.rand(20, generator=g)
    rho = np.corrcoef(pred.numpy(), mos.numpy())[0, 1]
    assert float(correlation(pred, mos)) == pytest.approx(rho, abs=1e-5)
    assert float(correlation_loss(pred, mos)) == pytest.approx((1 - rho) / 2, abs=1e-5)
    wanted = (1 - rho) / 4 + (1 - rho**2) / 8
    assert float(squared_correlation_loss(pred, mos)) == pytest.approx(wanted, abs=1e-5)
    for loss in (correlation_loss, squared_correlation_loss):
        assert float(loss(40 * pred - 3, 100 * mos + 5)) == pytest.approx(float(loss(pred, mos)), abs=1e-5)


@pytest.mark.parametrize("loss", [correlation_loss, squared_correlation_loss])
@pytest.mark.parametrize("mos", [torch.full((4,), 0.5), torch.tensor([0.1, 0.2, 0.3, 0.4])])
def test_a_batch_of_equal_values_has_a_finite_gradient(loss: Any, mos: torch.Tensor) -> None:
    pred = torch.full((4,), 0.25, requires_grad=True)
    value = loss(pred, mos)
    value.backward()
    assert math.isfinite(value.item()) and pred.grad is not None and bool(pred.grad.isfinite().all())


def test_the_rate_falls_along_a_cosine_without_a_warm_up() -> None:
    rates = [TINY.lr_at(step, 100, 3e-4) for step in range(200)]
    assert rates[0] == 3e-4 and rates[100] == pytest.approx(1.5e-4) and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(3e-4 * 0.5 * (1 + math.cos(math.pi * 199 / 200)))


# Crops and sets


def test_crops_are_mirrored_in_both_directions(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16] = 255  # the bright quarter tells how a crop was mirrored
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    of = RatedSet("a", "", {"train": [Rated(tmp_path / "corner.png", 0.5)] * 2})
    recipe = dataclasses.replace(TINY, data=("a",), crop=32, crops=50)

    def corners(**changes: Any) -> list[int]:
        crops = Crops([of], dataclasses.replace(recipe, **changes), 0)
        quarters = [
            crops[i][0].float().unfold(1, 16, 16).unfold(2, 16, 16).mean((0, 3, 4)) for i in range(96)
        ]
        return [int(quarter.argmax()) for quarter in quarters]

    assert {corner: corners().count(corner) > 10 for corner in range(4)} == dict.fromkeys(range(4), True)
    assert set(corners(vertical_flip=False)) == {0, 1}


@pytest.mark.parametrize("side", [40, 120])
def test_bicubic_sizes(root: Path, side: int) -> None:
    path = root / "photos" / "0.png"  # 80 × 96
    found = sized(path, side, "bicubic")
    with Image.open(path) as image:
        wanted = np.asarray(image.resize((side * 96 // 80, side), Image.Resampling.BICUBIC)).astype(int)
    assert found.shape == (3, side, side * 96 // 80) and found.dtype == torch.uint8
    difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - wanted)
    assert difference.mean() < 1 and not torch.equal(found, sized(path, side))
    assert torch.equal(sized(path, 80, "bicubic"), sized(path, 0))


def test_each_interpolation_has_its_own_cache(root: Path, tmp_path: Path) -> None:
    rated = [Rated(root / "photos" / "0.png", 0.5)]
    sets = [
        RatedSet("a", "", {"train": rated}, 40, kind, tmp_path / "kept") for kind in ("bilinear", "bicubic")
    ]
    for _ in range(2):
        assert torch.equal(sets[0].pixels(rated[0]), sized(rated[0].path, 40))
        assert torch.equal(sets[1].pixels(rated[0]), sized(rated[0].path, 40, "bicubic"))


@pytest.mark.parametrize("row", ["loda", "frozen-bn"])
def test_the_recipes_are_the_papers(row: str) -> None:
    plan = load_recipe(f"loda/{row}")
    assert (plan.epochs, plan.batch, plan.lr, plan.weight_decay) == (10, 128, 3e-4, 1e-2)
    assert (plan.seed, plan.splits, plan.test_crops, plan.crop) == (3407, 10, 15, 224)
    assert (plan.clip, plan.ema, plan.precision, plan.accumulate) == (0.0, 0.0, "float32", 1)
    assert plan.convention == "loda" and plan.init_from == "bases" and plan.paper.keys() == set(plan.data)
    assert plan.overrides == {"cnn_bn": "batch" if row == "loda" else "frozen"}
    crops = {}
    for name in plan.data:
        photos = [Rated(Path(f"{i}.png"), i / 99, reference=f"r{i % 25}") for i in range(100)]
        each = split_set(name, photos, dataclasses.replace(plan, batch=2), 0)
        assert each.split.startswith("loda-3407-00")
        found = Crops([each], plan, 0)
        crops[name] = found.counts[0] / len(each.folds["train"])
        sizes = {"koniq10k": [384, 512], "livec": 0, "tid2013": 0}
        assert each.size == sizes.get(name, 384)
        assert each.interpolation == ("bicubic" if name in ("live", "kadid10k", "flive") else "bilinear")
    assert crops == {
        "live": 5, "tid2013": 10, "kadid10k": 3, "livec": 5, "koniq10k": 3, "spaq": 3, "flive": 1
    }  # fmt: skip


def test_earlier_recipes_keep_their_digests() -> None:
    """New keys are part of a run's identity only where they are used."""
    plan = load_recipe("table1/lqmamba-t")
    assert not {"interpolation", "vertical_flip"} & identity(runs_of(plan, 0)[0], plan).keys()
    plan = load_recipe("loda/loda")
    live, tid = (identity(run, plan) for run in runs_of(plan, 0)[:2])
    assert live["vertical_flip"] and live["interpolation"] == {"live": "bicubic"}
    assert "interpolation" not in tid


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"interpolation": {"bright": "nearest"}}, "interpolation of a set must be one of bilinear, bicubic"),
        ({"interpolation": {"other": "bicubic"}}, "interpolation has 'other', which is not among"),
        ({"clip": -1.0}, "clip must be at least 0, got -1.0"),
    ],
)
def test_wrong_values_are_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError, match=line) as caught:
        dataclasses.replace(TINY, **changes)
    assert "\n" not in str(caught.value)


# Runs


@pytest.mark.parametrize("cnn_bn", ["batch", "frozen"])
def test_a_run_trains_the_learner_alone(cnn_bn: str, root: Path, tmp_path: Path, cache: Path) -> None:
    bases = write_bases(cache, **SMALL)
    recipe = dataclasses.replace(TINY, overrides={**SMALL, "cnn_bn": cnn_bn}, init_from="bases")
    results, folder = done(recipe, root, tmp_path / "runs")
    assert results["start"]["source"] == "bases" and len(results["start"]["bases"]) == 2
    config = read_config(folder / "checkpoint")
    assert all(base.sha256 for base in config.bases) and config.protocol.n_crops == 3
    from safetensors import safe_open

    with safe_open(folder / "checkpoint" / "model.safetensors", "pt") as file:
        assert all(map(is_stored, file.keys()))
        statistics = {name: file.get_tensor(name) for name in file.keys() if "running" in name}  # noqa: SIM118
    moved = [name for name, value in statistics.items() if not torch.equal(value, bases[name])]
    assert len(moved) == (len(statistics) if cnn_bn == "batch" else 0)
    network, _ = load_checkpoint(folder / "checkpoint", local_files_only=True)
    for name, value in network.state_dict().items():
        if not is_stored(name):
            assert torch.equal(value, bases[name]), name
    assert 0 < qmamba.load(folder / "checkpoint").score(root / "photos" / "0.png") < 1


def test_it_learns(root: Path, tmp_path: Path) -> None:
    """Brightness, from random towers; the checkpoint holds them, since they are on no Hub."""
    results, folder = done(dataclasses.replace(TINY, epochs=20), root, tmp_path)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if "loss" in event]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert results["sets"]["bright"]["srcc"] == 1.0  # three images
    network, config = load_checkpoint(folder / "checkpoint")
    assert config.bases == () and config.training["start"] == ""
    assert [e["val_srcc"] for e in events if "val_srcc" in e][-1] > 0.9
    assert network.cnn.bn1.running_mean.abs().max() > 0


def test_stopped_and_resumed_gives_the_same_bits(root: Path, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event.get("step") == 3 and "loss" in event:
            raise KeyboardInterrupt

    _, whole = done(TINY, root, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        done(TINY, root, tmp_path / "parts", report=stop)
    _, parts = done(TINY, root, tmp_path / "parts")
    for name in ("results.json", "checkpoint/model.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_a_run_without_its_bases_is_one_line(root: Path, tmp_path: Path, cache: Path) -> None:
    recipe = dataclasses.replace(TINY, init_from="bases")
    with pytest.raises(HubError, match=r"base weights: .*timm/vit_base") as caught:
        done(recipe, root, tmp_path / "runs")
    assert "\n" not in str(caught.value)
    results, _ = done(recipe, root, tmp_path / "dry", dry=True)  # which downloads nothing
    assert results["start"]["source"] == "" and results["dry_run"]


def test_an_estimate_leaves_the_towers_frozen(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qmamba.train.paper import cost

    held: list[set[str]] = []
    plain = cost.make_optimisers

    def watched(network: Any, *arguments: Any) -> Any:
        held.append({name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad})
        return plain(network, *arguments)

    monkeypatch.setattr(cost, "make_optimisers", watched)
    (found,) = estimate_rows({"tiny": TINY}, Workshop(root, tmp_path, cpu=True))
    assert found.steps == 6 and held == [{"extractor", "injectors", "scale", "head"}]


def test_reproduce_marks_absent_sets(tmp_path: Path) -> None:
    words = ["reproduce", "loda", "--data-root", str(tmp_path), "--out", str(tmp_path / "out"), "--cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    assert "loda/loda  LoDa\n" in result.stdout and "loda/frozen-bn" in result.stdout
    for name, (plcc, srcc) in load_recipe("loda/loda").paper.items():
        lines = [line.split() for line in result.stdout.splitlines() if f"the same  {name} " in line]
        assert len(lines) == 2  # one a row
        assert all(
            cells[2:] == [name, "absent", "-", f"{srcc:.3f}", "-", "-", f"{plcc:.3f}", "-"] for cells in lines
        )
        assert f"{name} absent: no {tmp_path / name}" in result.stdout


@pytest.mark.parametrize("row", ["loda", "frozen-bn"])
def test_dry_run_of_all_sets(row: str, tmp_path: Path) -> None:
    """With a narrow network, which is quick; the slow tests of `qmamba reproduce` build the paper's."""
    plan = load_recipe(f"loda/{row}")
    for name in plan.data:
        TREES[name](tmp_path / "root" / name)
    narrow = dry_recipe(dataclasses.replace(plan, overrides={**SMALL, **plan.overrides}))
    shop = Workshop(tmp_path / "root", tmp_path / "runs", cpu=True, dry=True)
    found = do_row(narrow, shop, tmp_path / "row.json")
    assert [cell["test"] for cell in found["cells"]] == list(plan.data)
    assert all(cell["absent"] is None and cell["splits"][0]["n"] == 2 for cell in found["cells"])
    assert all(tuple(cell["paper"]) == plan.paper[cell["test"]] for cell in found["cells"])


# Where a network starts from


def test_a_public_checkpoint_gets_its_towers_from_the_bases(tmp_path: Path, cache: Path) -> None:
    bases = write_bases(cache, **SMALL)
    file = write_published(tmp_path / "koniq.pth", **SMALL)
    network = create_model("loda", **SMALL)
    began = start(network, str(file))
    assert began.missing == () and len(began.bases) == 2
    published = torch.load(file, weights_only=True)
    for name, value in network.state_dict().items():
        if not is_stored(name):
            assert torch.equal(value, bases[name]), name
    assert torch.equal(network.scale, published["learner"]["scale_factor"])
    assert torch.equal(network.cnn.bn1.running_mean, published["bn_buffer"]["bn1.running_mean"])


def test_bases_of_another_width_are_one_line(cache: Path) -> None:
    write_bases(cache, **{**SMALL, "width": 48})
    network = create_model("loda", **SMALL)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"vit_base.*'vit.* must be of shape .*, got") as caught:
        start(network, "bases")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_architecture_without_bases_is_one_line() -> None:
    with pytest.raises(CheckpointError, match="'lqmamba-n' has no base weights to start from; give a check"):
        start(create_model("lqmamba-n"), "bases")


def test_a_run_on_ratings_keeps_the_bases_of_its_start(root: Path, tmp_path: Path, cache: Path) -> None:
    """A recipe of ratings: its checkpoint names its bases, and another training starts from it."""
    write_bases(cache, **SMALL)
    photos = rated_photos(tmp_path / "photos")
    recipe = dataclasses.replace(
        RECIPE, arch="loda", overrides=SMALL, phases=(Phase(64, 4),), ranked=0, lr=1e-2, ema=0.5
    )
    first = train(recipe, photos, tmp_path / "first", init="bases")
    assert len(read_config(first).bases) == 2
    second = train(recipe, photos, tmp_path / "second", init=first)
    assert read_config(second).bases == read_config(first).bases
    fresh = train(recipe, photos, tmp_path / "fresh")
    assert read_config(fresh).bases == ()
    assert (fresh / "model.safetensors").stat().st_size > 2 * (first / "model.safetensors").stat().st_size
