"""The adapters that ship with the library: by name, small, described, and of use beside one another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import qmamba
from qmamba.adapters import read_adapter_config
from qmamba.adapters.card import render_adapter_card
from qmamba.checkpoints.locate import resolve_adapter
from qmamba.cli import app
from qmamba.errors import AdapterError
from tiny_scorer import photo as pixels

NAMES = ["video-stills"]


def photo(seed: int) -> Image.Image:
    return Image.fromarray(pixels(96, 128, seed))


@pytest.fixture(scope="module")
def scorer() -> qmamba.Scorer:
    scorer = qmamba.load("lqmamba-n")
    for name in NAMES:
        scorer.load_adapter(name, name)
    return scorer


def test_they_are_listed() -> None:
    assert qmamba.list_adapters() == NAMES
    assert "adapters" not in qmamba.list_models()


@pytest.mark.parametrize("name", NAMES)
class TestEach:
    def test_is_small_and_float16(self, name: str) -> None:
        folder = resolve_adapter(name)
        assert sum(file.stat().st_size for file in folder.iterdir()) < 2**20
        assert read_adapter_config(folder).dtype == "float16"

    def test_has_a_card_that_says_what_its_config_says(self, name: str) -> None:
        folder = resolve_adapter(name)
        config = read_adapter_config(folder)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert card == render_adapter_card(config)
        assert yaml.safe_load(card.split("---\n")[1])["license"] == config.licence.lower() != "unknown"
        assert config.trained_on and config.limits and config.training["data"]
        for result in config.results.values():
            assert result["srcc_low"] < result["srcc"] < result["srcc_high"] and result["n"] >= 70

    def test_is_better_in_its_domain_than_the_base(self, name: str) -> None:
        before, after = read_adapter_config(resolve_adapter(name)).results.values()
        assert after["srcc"] > before["srcc"]

    def test_scores_otherwise_than_the_base(self, name: str, scorer: qmamba.Scorer) -> None:
        plain = scorer.score(photo(0))
        scorer.set_adapter(name)
        adapted = scorer.score(photo(0))
        with scorer.disable_adapter():
            assert scorer.score(photo(0)) == plain
        scorer.set_adapter(None)
        assert scorer.score(photo(0)) == plain
        assert 0 < adapted < 1 and abs(adapted - plain) > 1e-3
        assert qmamba.load("lqmamba-n", adapter=name).score(photo(0)) == adapted

    def test_from_the_command_line(self, name: str, scorer: qmamba.Scorer, tmp_path: Path) -> None:
        photo(0).save(tmp_path / "a.png")
        ran = CliRunner().invoke(
            app, ["score", str(tmp_path / "a.png"), "--adapter", name, "--format", "jsonl"]
        )
        assert ran.exit_code == 0, ran.output
        (expected,) = scorer.score([photo(0)], adapters=[name])
        assert json.loads(ran.stdout)["score"] == pytest.approx(float(expected), abs=1e-6)


def test_one_for_each_image(scorer: qmamba.Scorer) -> None:
    images = [photo(i) for i in range(3)]
    mixed = scorer.score(images, adapters=["video-stills", None, "video-stills"])
    assert scorer.score([images[0]], adapters=[None]) != scorer.score([images[0]], adapters=NAMES)
    for image, name, score in zip(images, ("video-stills", None, "video-stills"), mixed, strict=True):
        alone = scorer.score([image], adapters=[name])
        assert torch.as_tensor(alone).equal(torch.as_tensor([score]))


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(AdapterError, match="video-stills"):
        qmamba.load("lqmamba-n", adapter="stils")


def test_models_names_them() -> None:
    (row,) = json.loads(CliRunner().invoke(app, ["models", "--format", "json"]).stdout)
    assert row["adapters"] == NAMES
    assert "video-stills" in CliRunner().invoke(app, ["models"]).stdout
