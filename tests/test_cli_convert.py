"""`qmamba convert`: files of the form that published weights have, made here, as checkpoint folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from published_loda import SMALL, write_published
from qmamba.cli import app
from qmamba.convert import from_loda


def options(overrides: dict[str, object]) -> list[str]:
    return [
        word for name, value in overrides.items() for word in ("--override", f"{name}={json.dumps(value)}")
    ]


def run(*words: object):
    return CliRunner().invoke(app, ["convert", *map(str, words)])


def test_a_public_loda_checkpoint_of_the_papers_size(tmp_path):
    file, out = write_published(tmp_path / "koniq.pth"), tmp_path / "loda-koniq"
    result = run("loda", file, "--out", out, "--trained-on", "koniq10k", "--licence", "Apache-2.0")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(out)
    weights = out / "model.safetensors"
    assert weights.stat().st_size / 1e6 == pytest.approx(36, abs=0.5)
    want = from_loda(torch.load(file, weights_only=True))
    with safe_open(weights, "pt") as found:
        assert set(found.keys()) == want.keys()
        assert all(torch.equal(found.get_tensor(name), tensor) for name, tensor in want.items())
    config = json.loads((out / "config.json").read_text())
    assert config["name"] == "loda-koniq" and config["trained_on"] == ["koniq10k"]
    assert config["protocol"]["kind"] == "random" and config["protocol"]["n_crops"] == 15
    assert [base["repo"] for base in config["bases"]] == [
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", "timm/resnet50.a1_in1k",
    ]  # fmt: skip


def test_a_folder_is_not_written_over(tmp_path):
    file, out = write_published(tmp_path / "x.pth", **SMALL), tmp_path / "out"
    assert run("loda", file, "--out", out, *options(SMALL)).exit_code == 0
    before = (out / "config.json").read_bytes()
    result = run("loda", file, "--out", out, "--name", "other", *options(SMALL))
    assert result.exit_code == 2 and "--force" in result.stderr
    assert (out / "config.json").read_bytes() == before
    assert run("loda", file, "--out", out, "--name", "other", *options(SMALL), "--force").exit_code == 0
    assert json.loads((out / "config.json").read_text())["name"] == "other"


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize("kind", ["missing", "width", "harmful", "damaged", "unknown", "override", "part"])
def test_what_cannot_be_converted_is_one_line_and_writes_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    file, out = write_published(tmp_path / "x.pth", **SMALL), tmp_path / "out"
    words, line = ["loda", file, "--out", out, *options(SMALL)], ""
    if kind == "missing":
        words[1], line = tmp_path / "gone.pth", "no such file"
    elif kind == "width":
        words[4:], line = options({**SMALL, "width": 192}), "'head.weight' must be (192, 1) for this network"
    elif kind == "harmful":
        torch.save({"learner": Harmful()}, file)
        line = "pickle"
    elif kind == "damaged":
        file.write_bytes(file.read_bytes()[:5000])
        line = "cannot be read"
    elif kind == "unknown":
        words[0], line = "lodaa", "near names: loda"
    elif kind == "override":
        words[-1], line = "width", "--override must be like width=192"
    else:
        torch.save({"learner": torch.load(file)["learner"]}, file)
        line = "lacks 'cnn.bn1"
    result = run(*words)
    assert result.exit_code == 2
    assert line in result.stderr and result.stderr.count("\n") == 1
    assert not out.exists() and not (tmp_path / "harmed").exists()
