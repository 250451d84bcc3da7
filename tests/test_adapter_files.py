"""Adapter folders: peft's layout, small files, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import qmamba
from qmamba.adapters import AdapterConfig, create, load_adapter, read_adapter_config, save_adapter
from qmamba.errors import AdapterError, CheckpointError
from qmamba.scoring import Scorer
from test_adapters import METHODS
from tiny_adapters import CALIBRATION, config_for, made, saved
from tiny_scorer import photo, tiny_config, tiny_network

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.fixture
def folder(tmp_path: Path, scorer: Scorer) -> Path:
    return saved(tmp_path / "adapter", scorer)


def refused(folder: Path, scorer: Scorer, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        scorer.load_adapter(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def edit(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / CONFIG).read_text())
    data.update(changes)
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in data.items() if v != "gone"}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_there_and_back(method: str, dtype: Any, tmp_path: Path, scorer: Scorer) -> None:
    if method == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    adapter = made(scorer, method)
    config = save_adapter(tmp_path, adapter, config_for(scorer, method, trained_on=("stills",)), dtype=dtype)
    state = torch.random.get_rng_state()
    repeated, read = load_adapter(tmp_path, scorer.base(), scorer.base_sha256())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert read == config == read_adapter_config(tmp_path) and read.calibration == CALIBRATION
    assert repeated.options == adapter.options and not any(p.requires_grad for p in repeated.parameters())
    x = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    want, found = adapter(scorer.base(), x), repeated(scorer.base(), x)
    assert torch.equal(found, want) if dtype is None else torch.allclose(found, want, atol=0.05, rtol=0.02)
    assert save_adapter(tmp_path / "b", repeated, read, dtype=dtype).weights_sha256 == config.weights_sha256


def test_a_card_lies_beside_it(folder: Path, tmp_path: Path) -> None:
    config = read_adapter_config(folder).replace(
        licence="CC-BY-4.0", trained_on=("stills: a set",), limits="Not for | drawings.",
        results={"test, after": {"n": 72, "srcc": 0.9, "srcc_low": 0.8, "srcc_high": 0.95}},
    )  # fmt: skip
    adapter = create("linear-probe", tiny_network())
    card_of = save_adapter(tmp_path, adapter, config)
    card = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and front["base_model"] == "tiny" and "datasets" not in front
    assert card.startswith("---\n") and "# linear-probe for tiny" in card
    for line in (
        "Trained on: stills: a set.",
        "| test, after | 0.9 [0.8, 0.95] | 72 |",
        "Not for | drawings.",
    ):
        assert line in card
    assert read_adapter_config(tmp_path) == card_of and card_of.limits == "Not for | drawings."


def test_an_adapter_that_says_nothing_of_its_limits_is_read(folder: Path) -> None:
    file = folder / CONFIG
    data = json.loads(file.read_text())
    del data["limits"]
    file.write_text(json.dumps(data))
    assert read_adapter_config(folder).limits == ""


def test_as_peft_lays_it_out(folder: Path, scorer: Scorer) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", CONFIG, WEIGHTS]
    data = json.loads((folder / CONFIG).read_text())
    assert list(data)[:3] == ["peft_type", "base_model_name_or_path", "revision"]
    assert data["peft_type"] == "STYLE_PROMPT" and data["base_model_name_or_path"] == "tiny"
    assert data["base_sha256"] == scorer.base_sha256()
    assert data["options"] == {"prompts": 6, "width": None, "size": [1, 1]}
    content = (folder / WEIGHTS).read_bytes()
    assert data["weights_sha256"] == hashlib.sha256(content).hexdigest()
    assert load_file(folder / WEIGHTS)["prompts.0.conv.weight"].shape == (12, 12, 1, 1)


def test_options_survive(tmp_path: Path, scorer: Scorer) -> None:
    adapter = made(scorer, prompts=2, width=5, size=(3, 2))
    save_adapter(tmp_path, adapter, config_for(scorer))
    repeated, _ = load_adapter(tmp_path, scorer.base(), scorer.base_sha256())
    assert repeated.options == adapter.options and repeated.size == adapter.size


def test_ten_adapters_are_ten_small_files(tmp_path: Path) -> None:
    """For the embedded model: what the file holds is the 1×1 kernel, at two bytes a number."""
    scorer = qmamba.load("lqmamba-n")
    adapter = create("style-prompt", scorer.base())
    config = save_adapter(tmp_path, adapter, config_for(scorer), dtype=torch.float16)
    assert adapter.size == (157_336, 83_608)
    assert config.weights_bytes == (tmp_path / WEIGHTS).stat().st_size
    assert 2 * 83_608 < config.weights_bytes < 2 * 83_608 + 4096
    assert (tmp_path / CONFIG).stat().st_size < 2048
    scorer.load_adapter(tmp_path)
    assert scorer.base_sha256() == scorer.config.weights_sha256


def test_a_wrong_base_is_refused(folder: Path, scorer: Scorer) -> None:
    refused(
        folder, Scorer(tiny_network(seed=1), tiny_config()), "made for 'tiny' with weights .*load that base"
    )
    scorer.load_adapter(folder)
    copied = Scorer(copy.deepcopy(scorer.network), tiny_config(licence="other"))  # the same weights
    copied.load_adapter(folder)
    with pytest.raises(AdapterError, match="made for 'tiny'"):
        qmamba.load("lqmamba-n", adapter=folder)


def test_the_hash_is_that_of_the_file(tmp_path: Path, scorer: Scorer) -> None:
    written = scorer.save_pretrained(tmp_path)
    assert written.weights_sha256 == scorer.base_sha256() == qmamba.load(tmp_path).base_sha256()
    assert qmamba.load(tmp_path, dtype=torch.float16).base_sha256() == scorer.base_sha256()


def test_damage_is_refused(folder: Path, scorer: Scorer) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1])
    refused(folder, scorer, "must have .* bytes, got")
    (folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(folder, scorer, "sha256")
    (folder / WEIGHTS).unlink()
    refused(folder, scorer, "no adapter_model.safetensors")
    (folder / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    refused(folder, scorer, "is a pickle")
    (folder / WEIGHTS).write_bytes(content)
    scorer.load_adapter(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "STYLE_PROMTP"}, "near names: style-prompt"),
        ({"peft_type": None}, "'peft_type' must be a string"),
        ({"base_sha256": "gone"}, "missing 'base_sha256'"),
        ({"base_sha256": ""}, "'base_sha256' must be 64"),
        ({"more": 1}, "unknown key 'more'"),
        ({"format_version": 2}, "format_version"),
        ({"options": {"n": 1}}, "no option 'n'"),
        ({"options": {"prompts": 7}}, "not the weights of a style-prompt"),
        ({"options": {"width": 65_000}}, "not the weights of a style-prompt"),  # and no memory is taken
        ({"options": {"width": 2**60}}, "width must be an integer"),
        ({"options": []}, "'options' must be an object"),
        ({"calibration": {"slope": -1, "offset": 0}}, "slope must be above 0"),
        ({"trained_on": "stills"}, "'trained_on' must be a list"),
        ({"dtype": "int8"}, "'dtype' must be one of"),
        ({"revision": 3}, "'revision' must be a string"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], says: str, folder: Path, scorer: Scorer) -> None:
    edit(folder, **changes)
    refused(folder, scorer, says)


def test_no_adapter_here(tmp_path: Path, scorer: Scorer) -> None:
    refused(tmp_path, scorer, "no adapter_config.json here")
    (tmp_path / CONFIG).write_text("{")
    refused(tmp_path, scorer, "not valid JSON")
    (tmp_path / CONFIG).write_text("[]")
    refused(tmp_path, scorer, "must be an object")
    (tmp_path / CONFIG).write_text(" " * (1 << 20) + "{}")
    refused(tmp_path, scorer, "larger than")


def test_what_cannot_be_saved(tmp_path: Path, scorer: Scorer) -> None:
    adapter = made(scorer)
    with pytest.raises(CheckpointError, match="dtype of stored weights must be"):
        save_adapter(tmp_path / "a", adapter, config_for(scorer), dtype=torch.float64)
    with torch.no_grad():
        adapter.get_parameter("prompts.0.beta.bias").fill_(1e6)
    with pytest.raises(CheckpointError, match="too large"):
        save_adapter(tmp_path / "a", adapter, config_for(scorer), dtype=torch.float16)
    assert not (tmp_path / "a").exists()
    with pytest.raises(CheckpointError, match="must be 64"):
        AdapterConfig("style-prompt", "tiny", "abc")


def test_scores_are_those_of_the_saved_adapter(folder: Path, scorer: Scorer) -> None:
    scorer.load_adapter(folder, "read")
    scorer.add_adapter("made", made(scorer), config_for(scorer))
    images = [photo(64, 64)] * 2
    read, own = scorer.score(images, adapters=["read", "made"]).tolist()
    assert read == own
