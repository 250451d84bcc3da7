"""Why a score: faults that a probe names or keeps silent about, the worst region, and what is measured."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import qmamba
from qmamba.analysis import reasons
from qmamba.cli import app
from qmamba.errors import CheckpointError, ImageError, RecipeError
from qmamba.protocol import Protocol, View
from qmamba.scoring import FaultProbe, QualityMap, Scorer
from qmamba.scoring.explanation import REGIONS, worst_region
from qmamba.scoring.faults import CLEAN, FAULTS, PROBE_FILE, embedded_probe, load_probe
from qmamba.train.fault_probe import KINDS, Samples, fit_probe, least_threshold
from tiny_scorer import encode, photo, tiny_config, tiny_network

EXAMPLES = Path(__file__).parents[1] / "examples"
WIDTH = 30  # statistics of made-up samples


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    config = tiny_config().replace(protocol=Protocol("scales", max_crops=0, sides=(64, 96)))
    return Scorer(tiny_network(), config)


def probe_of(scorer: Scorer, kind: str, **changes: Any) -> FaultProbe:
    """A probe that finds a kind in every picture."""
    count = 2 * sum(info["num_chs"] for info in scorer.network.feature_info)
    bias = torch.full((len(KINDS),), -1.0)
    bias[KINDS.index(kind)] = 9.0
    probe = FaultProbe(
        KINDS, torch.zeros(len(KINDS), count), bias, torch.zeros(count), torch.ones(count),
        dict.fromkeys((*FAULTS, *KINDS), 0.5), None, 64, scorer.base_sha256(),
    )  # fmt: skip
    return dataclasses.replace(probe, **changes)


def made_up(photographs: int = 40, alike: tuple[str, ...] = ()) -> Samples:
    """Samples of each kind around a centre of its own; kinds that are alike share theirs."""
    rng = np.random.default_rng(0)
    centres = {kind: rng.normal(size=WIDTH) * 3 for kind in KINDS}
    centres |= {kind: centres[alike[0]] for kind in alike}  # noqa: C420 (alike may be empty)
    rows = [(centres[kind] + rng.normal(size=WIDTH), kind, n) for n in range(photographs) for kind in KINDS]
    statistics, kinds, numbers = zip(*rows, strict=True)
    return Samples(torch.tensor(np.stack(statistics)).float(), kinds, np.array(numbers))


@pytest.fixture(scope="module")
def fitted() -> tuple[Samples, FaultProbe, Tensor]:
    samples = made_up(alike=("gaussian_blur", "lens_blur"))
    return samples, *fit_probe(samples, side=64, weights_sha256="0" * 64)


def test_every_distortion_has_words() -> None:
    named = [kind for members in FAULTS.values() for kind in members]
    assert sorted(named) == sorted(qmamba.list_distortions())
    for members in FAULTS.values():  # a single kind needs no words beside the fault's
        assert all(members.values()) if len(members) > 1 else list(members.values()) == [""]


def test_a_probe_names_what_it_was_fitted_to(fitted) -> None:
    samples, probe, held_out = fitted
    assert held_out.sum(dim=1).allclose(torch.ones(len(held_out)))
    told = [probe.named(row) for row in held_out]
    right = [
        fault is not None and kind in FAULTS[fault.name]
        for kind, fault in zip(samples.kinds, told, strict=True)
    ]
    assert np.mean([fault is not None for fault in told]) > 0.8
    assert sum(right) / sum(fault is not None for fault in told) > 0.9
    of_clean = [fault for kind, fault in zip(samples.kinds, told, strict=True) if kind == CLEAN]
    assert sum(fault is None for fault in of_clean) >= len(of_clean) - 1


def test_kinds_that_look_alike_are_told_together(fitted) -> None:
    samples, probe, held_out = fitted
    assert "soft" in probe.thresholds and "motion_blur" in probe.thresholds
    assert not {"gaussian_blur", "lens_blur"} & set(probe.thresholds)
    lens = held_out[torch.tensor([kind == "lens_blur" for kind in samples.kinds])]
    assert {str(probe.named(row)) for row in lens} <= {"soft", "None"}


def test_what_cannot_be_told_is_not_told() -> None:
    samples = made_up(alike=("denoise", CLEAN))
    probe, _ = fit_probe(samples, side=64, weights_sha256="")
    assert "smeared by noise removal" not in probe.thresholds and "noisy" in probe.thresholds


def test_samples_that_do_not_suffice_are_refused() -> None:
    whole = made_up(4)
    kept = [i for i, kind in enumerate(whole.kinds) if kind != "jpeg"]
    lacking = Samples(whole.statistics[kept], tuple(whole.kinds[i] for i in kept), whole.photographs[kept])
    with pytest.raises(RecipeError, match="got none of jpeg"):
        fit_probe(lacking, side=64, weights_sha256="")
    with pytest.raises(RecipeError, match="at least 4 photographs"):
        fit_probe(made_up(2), side=64, weights_sha256="")


@pytest.mark.parametrize(
    ("sure", "right", "expected"),
    [
        ([0.9, 0.8, 0.7], [1, 1, 1], 0.7),
        ([0.7, 0.9, 0.8], [0, 1, 1], 0.8),
        ([0.9, 0.8, 0.8], [1, 1, 0], 0.9),  # equal values are told together
        ([0.9, 0.8, 0.7], [0, 1, 1], None),
        ([], [], None),
    ],
)
def test_the_least_threshold(sure, right, expected) -> None:
    found = least_threshold(np.array(sure), np.array(right, bool), np.ones(len(sure)), 0.8, confidence=0)
    assert found == expected


def test_few_statements_that_happen_to_be_right_do_not_suffice() -> None:
    sure = np.linspace(0.9, 0.5, 40)
    for count, expected in ((10, None), (11, sure[10]), (40, sure[-1])):
        found = least_threshold(sure[:count], np.ones(count, bool), np.ones(count), 0.8)
        assert found == expected
    weights = np.where(np.arange(40) == 0, 50.0, 1.0)  # one statement counts for most of them
    assert least_threshold(sure, np.ones(40, bool), weights, 0.8) is None


def test_a_probe_is_the_same_from_a_file(fitted, tmp_path) -> None:
    samples, probe, _ = fitted
    probe.save(tmp_path / PROBE_FILE)
    found = load_probe(tmp_path / PROBE_FILE)
    assert torch.equal(found.probabilities(samples.statistics), probe.probabilities(samples.statistics))
    kept = ("kinds", "thresholds", "worst", "side", "weights_sha256")
    assert all(getattr(found, name) == getattr(probe, name) for name in kept)
    data = (tmp_path / PROBE_FILE).read_bytes()
    (tmp_path / "cut").write_bytes(data[:-1])
    (tmp_path / "other").write_bytes(_without_metadata())
    for name, why in (
        ("cut", "not valid safetensors"),
        ("other", "must be a probe"),
        ("none", "cannot read"),
    ):
        with pytest.raises(CheckpointError, match=why):
            load_probe(tmp_path / name)


def _without_metadata() -> bytes:
    from safetensors.torch import save

    return save({"weight": torch.zeros(3)})


def test_an_explanation_is_a_sentence(scorer) -> None:
    image = torch.zeros(3, 80, 120)
    found = scorer.explain(image, probe=probe_of(scorer, "lens_blur"))
    score, std = scorer.score(image, return_std=True)
    assert found.score == score and found.std == pytest.approx(std, abs=1e-6)
    assert found.fault.name == "soft" and found.fault.kind == "lens_blur" and found.fault.probability > 0.9
    assert found.measured == reasons(image) and found.no_probe is None
    assert str(found).startswith(
        f"soft, probably out of focus; score {score:.2f} ± {std:.2f}; 100% of the pixels"
    )
    assert found.reason == "; ".join(["soft, probably out of focus", *found.measured.notes()])
    assert json.loads(json.dumps(found.to_dict()))["fault"]["kind"] == "lens_blur"


def test_it_is_silent_where_it_is_not_sure(scorer) -> None:
    image = photo(80, 120)
    unsure = probe_of(scorer, "lens_blur", thresholds={"soft": 0.5})
    assert str(scorer.explain(image, probe=unsure)).startswith("soft; score")
    for probe in (probe_of(scorer, "lens_blur", thresholds={"noisy": 0.1}), probe_of(scorer, CLEAN)):
        found = scorer.explain(image, probe=probe)
        assert found.fault is None and str(found).startswith("no clear fault; score")


def test_other_weights_have_no_probe(scorer) -> None:
    found = scorer.explain(photo(80, 120))
    assert found.fault is None and found.worst is None
    assert found.no_probe.count("\n") == 0 and scorer.base_sha256()[:8] in found.no_probe
    assert str(found).startswith("score ") and "fault" not in str(found)
    with pytest.raises(CheckpointError, match="must belong to the weights"):
        scorer.explain(photo(80, 120), probe=probe_of(scorer, "jpeg", weights_sha256="0" * 64))


class Mean(nn.Module):
    """A network without stages and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight * images.mean(dim=(1, 2, 3))[:, None]


def test_a_network_without_maps_is_explained(scorer) -> None:
    plain = Scorer(Mean(), scorer.config)
    image = photo(80, 120)
    found = plain.explain(image)
    assert found.score == plain.score(image) and found.worst is None and found.measured == reasons(image)


def test_an_image_that_is_none(scorer) -> None:
    with pytest.raises(ImageError):
        scorer.explain(b"nothing")


@pytest.mark.parametrize("name", REGIONS)
def test_the_worst_region(name: str) -> None:
    rows, columns = REGIONS[name]
    grid = torch.full((9, 9), 0.7)
    grid[slice(*(3 * row for row in rows)), slice(*(3 * column for column in columns))] = 0.2
    view = View(288, 288, [(0, 0, 288, 288)])
    found = QualityMap(288, 288, float(grid.mean()), [], grid.flatten(), grid.flatten(), ((grid,),), (view,))
    region, gap = worst_region(found)
    assert region == name and gap > 0.25
    assert worst_region(found, lower_better=True)[0] != name


def test_the_region_is_told_where_it_is_clear(scorer) -> None:
    pixels = photo(96, 144)
    gap = worst_region(scorer.quality_map(pixels))[1]
    told, silent = (
        scorer.explain(pixels, probe=probe_of(scorer, CLEAN, worst=gap + change)) for change in (-1e-4, 1e-4)
    )
    assert told.worst in REGIONS and f"no clear fault, worst in the {told.worst}; score" in str(told)
    assert silent.worst is None


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["explain", *(str(a) for a in arguments)])


def test_the_command(scorer, tmp_path) -> None:
    scorer.save_pretrained(tmp_path / "model")
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        (folder / f"{seed}.png").write_bytes(encode(photo(80, 120, seed)))
    Image.new("RGB", (80, 120)).save(folder / "black.png")
    (folder / "z.jpg").write_bytes(b"nothing")
    done = run(folder, "-m", tmp_path / "model", "-f", "csv")
    assert done.exit_code == 1 and done.stderr.startswith("qmamba: no probe of faults belongs to the weights")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "black.png", "z.jpg"]
    for row in rows[:3]:
        found = scorer.explain(row["path"])
        assert float(row["score"]) == pytest.approx(found.score, abs=1e-6)
        assert row["reason"] == found.reason and row["error"] == row["fault"] == ""
    assert "100% of the pixels are black" in rows[2]["reason"]
    assert rows[3]["score"] == "" and "not an image" in rows[3]["error"]
    table = run(folder / "black.png", folder / "z.jpg", "-m", tmp_path / "model").stdout.splitlines()
    assert table[0].split() == ["score", "std", "image"] and "100% of the pixels are black" in table[1]
    assert table[2].split()[:2] == ["-", "-"] and "not an image" in table[2]
    assert json.loads(run(folder / "0.png", "-m", tmp_path / "model", "-f", "jsonl").stdout)["kind"] is None


def test_the_embedded_probe_belongs_to_the_embedded_weights() -> None:
    path = Path(qmamba.__file__).parent / "weights" / "lqmamba-n" / PROBE_FILE
    assert path.stat().st_size <= 150_000
    probe = embedded_probe(qmamba.load("lqmamba-n").base_sha256())
    assert probe is not None, "fit one to these weights: python benchmarks/faults.py --clones FOLDER"
    assert len(probe.thresholds) > 5 and all(0 < least <= 1 for least in probe.thresholds.values())


def test_the_embedded_probe_on_photographs() -> None:
    scorer, right, told = qmamba.load("lqmamba-n"), 0, 0
    for name in ("coffee", "rocket"):
        picture = Image.open(EXAMPLES / f"{name}.jpg").convert("RGB")
        for fault, kind in (("soft", "lens_blur"), ("noisy", "white_noise"), ("pixelated", "pixelate")):
            found = scorer.explain(qmamba.distort(picture, kind, 5))
            told += found.fault is not None
            right += found.fault is not None and found.fault.name == fault
    assert right >= 4 and told - right <= 1
