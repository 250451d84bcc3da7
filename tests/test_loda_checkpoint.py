"""LoDa's checkpoints: the trained part in a folder, the base models in the Hub's cache, offline."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from typer.testing import CliRunner

import qmamba
from published_loda import SMALL, write_bases, write_published
from qmamba.checkpoints import load_checkpoint
from qmamba.checkpoints.bases import load_bases
from qmamba.cli import app
from qmamba.convert import from_loda
from qmamba.errors import CheckpointError, HubError
from qmamba.models import create_model, get_architecture
from qmamba.models.loda import is_stored


def convert(file, out, *words):
    overrides = [w for n, v in SMALL.items() for w in ("--override", f"{n}={json.dumps(v)}")]
    result = CliRunner().invoke(app, ["convert", "loda", str(file), "--out", str(out), *overrides, *words])
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hub cache, the standard one for this test, and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def file(tmp_path):
    return write_published(tmp_path / "koniq.pth", **SMALL)


def digests(cache):
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in cache.rglob("model.safetensors")}


def test_the_network_is_the_file_and_the_bases(tmp_path, cache, file):
    bases = write_bases(cache, **SMALL)
    network, config = load_checkpoint(convert(file, tmp_path / "out"))
    published = from_loda(torch.load(file, weights_only=True))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, published[name] if is_stored(name) else bases[name]), name
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad is is_stored(name), name
    assert {base.sha256 for base in config.bases} == digests(cache)
    assert config.preprocessing.size == (64, 64) and config.protocol.crop == 64


def test_scores_are_means_over_fifteen_seeded_crops(tmp_path, cache, file):
    write_bases(cache, **SMALL)
    scorer = qmamba.load(convert(file, tmp_path / "out"), local_files_only=True)
    image = torch.rand(3, 150, 200, generator=torch.Generator().manual_seed(0))
    parts = scorer.crop_scores(image)
    assert len(parts.windows) == 15 and len(set(parts.windows)) > 10
    with torch.no_grad():
        crops = torch.stack([image[:, t : t + h, x : x + w] for t, x, h, w in parts.windows])
        raw = scorer.network(scorer.config.preprocessing(crops))[:, 0]
    assert raw.std() > 0
    assert scorer.score(image) == pytest.approx(torch.sigmoid(raw).mean().item(), abs=1e-6)
    assert scorer.score(image) == qmamba.load(tmp_path / "out").score(image)
    for protocol in ("grid", "whole", "scales"):
        assert 0 < qmamba.load(tmp_path / "out", protocol=protocol).score(image) < 1


def test_saving_again_stores_the_same_part(tmp_path, cache, file):
    write_bases(cache, **SMALL)
    out = convert(file, tmp_path / "out")
    qmamba.load(out).save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_a_digest_that_was_not_known_enters_when_the_bases_are_there(tmp_path, cache, file):
    out = convert(file, tmp_path / "out")
    assert [base["sha256"] for base in json.loads((out / "config.json").read_text())["bases"]] == ["", ""]
    with pytest.raises(HubError, match=r"base weights: .*timm/vit_base") as caught:
        qmamba.load(out, local_files_only=True)
    assert "\n" not in str(caught.value)
    write_bases(cache, **SMALL)
    scorer = qmamba.load(out, local_files_only=True)
    assert {base.sha256 for base in scorer.config.bases} == digests(cache)


def test_a_base_of_another_digest_is_refused(tmp_path, cache, file):
    write_bases(cache, **SMALL)
    out = convert(file, tmp_path / "out")
    path = next(path for path in cache.rglob("model.safetensors") if "resnet50" in str(path))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"sha256 must be .*resnet50.a1_in1k") as caught:
        qmamba.load(out)
    assert "\n" not in str(caught.value)


def test_a_base_of_another_width_is_refused(tmp_path, cache, file):
    write_bases(cache, **{**SMALL, "width": 48})
    with pytest.raises(CheckpointError, match=r"vit_base.*'vit.* must be of shape .*, got") as caught:
        qmamba.load(convert(file, tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_another_base_can_be_named(tmp_path, cache, file):
    out = convert(file, tmp_path / "out", "--base", "vit=user/vit-small")
    bases = json.loads((out / "config.json").read_text())["bases"]
    assert [base["repo"] for base in bases] == ["user/vit-small", "timm/resnet50.a1_in1k"]


@pytest.mark.parametrize("base", ["vit", "tower=user/repo", "vit=../up"])
def test_a_base_that_cannot_be_is_one_line(tmp_path, file, base):
    words = ["convert", "loda", str(file), "--out", str(tmp_path / "out"), "--base", base]
    overrides = [w for n, v in SMALL.items() for w in ("--override", f"{n}={json.dumps(v)}")]
    result = CliRunner().invoke(app, [*words, *overrides])
    assert result.exit_code == 2 and "--base" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_training_starts_from_the_bases_and_their_statistics(cache):
    bases = write_bases(cache, **SMALL)
    bases["cnn.bn1.running_mean"] += 1  # in the file, too
    write_bases(cache, state=bases, **SMALL)
    torch.manual_seed(2)
    network = create_model("loda", **SMALL)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pinned = load_bases(network, get_architecture("loda").bases)
    assert {base.sha256 for base in pinned} == digests(cache)
    for name, tensor in network.state_dict().items():
        from_base = name.startswith(("vit.", "cnn."))
        assert torch.equal(tensor, bases[name] if from_base else before[name]), name
    assert all(p.requires_grad is is_stored(n) for n, p in network.named_parameters())


def test_a_training_without_its_bases_is_one_line_and_loads_nothing(cache):
    network = create_model("loda", **SMALL)
    before = network.vit.cls_token.clone()
    with pytest.raises(HubError, match=r"base weights: .*timm/vit_base") as caught:
        load_bases(network, get_architecture("loda").bases)
    assert "\n" not in str(caught.value)
    assert torch.equal(network.vit.cls_token, before)


def test_an_onnx_file_has_one_size_of_image(tmp_path, cache, file):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from qmamba.integrations.onnx import export_onnx

    write_bases(cache, **SMALL)
    scorer = qmamba.load(convert(file, tmp_path / "out"))
    state = torch.random.get_rng_state()
    session = onnxruntime.InferenceSession(export_onnx(scorer, tmp_path / "loda.onnx"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert session.get_inputs()[0].shape[1:] == [3, 64, 64]
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (scores,) = session.run(None, {"image": images.numpy()})
    want = [scorer.crop_scores(image).scores.mean() for image in images]
    assert torch.allclose(torch.from_numpy(scores), torch.stack(want), atol=1e-6)
    assert scores.std() > 0
