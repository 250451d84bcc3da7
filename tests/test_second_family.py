"""A second family of networks, registered here, does what it can and says truthfully what it cannot."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import qmamba
from hub_server import LocalHub, Repo
from qmamba.analysis.features import features_of
from qmamba.analysis.report import write_report
from qmamba.calibration import Calibration
from qmamba.checkpoints import ModelConfig, load_checkpoint, read_config, save_checkpoint
from qmamba.errors import CapabilityError, CheckpointError, HubError
from qmamba.models import Architecture, BaseWeights, create_model, register
from qmamba.models.registry import _ARCHITECTURES
from qmamba.preprocessing import Preprocessing
from qmamba.protocol import Protocol
from qmamba.scoring import Scorer
from tiny_scorer import encode, photo

PROTOCOL = Protocol(crop=32, max_crops=4)


class Blur(nn.Module):
    """A tiny convnet: a frozen stem, and a trained head with `outputs` numbers."""

    def __init__(self, width: int = 8, outputs: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.stem.requires_grad_(False)
        self.head = nn.Linear(width, outputs)
        self.feature_info = [{"num_chs": width, "reduction": 2, "module": "stem"}]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, outputs)."""
        out: Tensor = self.head(self.stem(images).mean((2, 3)))
        return out

    def forward_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) → (B, outputs), and one map (B, width, H/2, W/2)."""
        return self(images), [self.stem(images)]


class Mapped(Blur):
    """The same with values of its positions."""

    def forward_positions(
        self, images: Tensor, prompts: Any = None, head: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Raw quality (B, 1) and the positions' values (B, H/2, W/2)."""
        assert prompts is head is None
        return self(images), self.head(self.stem(images).movedim(1, 3))[..., 0]


def is_trained(name: str) -> bool:
    return name.startswith("head.") or name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmamba.models.registry._ARCHITECTURES", dict(_ARCHITECTURES))
    register(Architecture("blur", Blur, protocol=PROTOCOL, trained=is_trained))
    register(Architecture("mapped", Mapped, protocol=PROTOCOL))
    register(Architecture("levels", lambda: Blur(outputs=5), protocol=PROTOCOL, output="levels"))


def made(arch: str = "blur", **changes: Any) -> Scorer:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = create_model(arch)
    config = ModelConfig(name="mine", arch=arch, protocol=PROTOCOL, calibration=Calibration(slope=3.0))
    return Scorer(network, config.replace(**changes))


def test_create_list_and_count() -> None:
    assert "blur" in qmamba.list_archs()
    network = create_model("blur", width=4)
    assert network.arch == "blur" and network.overrides == {"width": 4}
    assert sum(p.numel() for p in network.parameters()) == 4 * 27 + 4 + 8 + 5
    with pytest.raises(ValueError, match="blur"):
        create_model("blur", depth=3)


def test_scores_save_and_load(tmp_path: Path) -> None:
    scorer, image = made(), photo(70, 90)
    score = scorer.score(image)
    assert 0 < score < 1 and score != scorer.score(photo(70, 90, 1))
    scorer.save_pretrained(tmp_path / "mine")
    loaded = qmamba.load(tmp_path / "mine")
    assert loaded.score(image) == score and type(loaded.network) is Blur
    batch = torch.rand(2, 3, 40, 40, requires_grad=True)
    loaded(batch).sum().backward()
    assert batch.grad is not None and bool(batch.grad.abs().sum() > 0)


def test_features_of_its_stages() -> None:
    scorer, image = made(), photo(32, 32)
    (found,) = features_of(scorer, image)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    want = scorer.network.stem(scorer.config.preprocessing(pixels)).mean((0, 2, 3))
    torch.testing.assert_close(found, want)


def test_what_it_cannot_do_is_one_true_line(tmp_path: Path) -> None:
    scorer = made()
    with pytest.raises(CapabilityError, match=r"^architecture 'blur' has no quality map: its network does"):
        scorer.quality_map(photo(64, 64))
    with pytest.raises(CapabilityError, match=r"^architecture 'blur' has no adapters: its network takes"):
        qmamba.adapters.create("ssf", scorer.network)
    with pytest.raises(CapabilityError, match=r"^architecture 'blur' has no adapters"):
        scorer.load_adapter("video-stills")
    (tmp_path / "a.png").write_bytes(encode(photo(40, 40)))
    with pytest.raises(CapabilityError, match="'blur' has no quality map"):
        write_report(tmp_path / "a.html", scorer, [tmp_path / "a.png"])
    assert not (tmp_path / "a.html").exists()


def test_a_map_where_positions_have_values(tmp_path: Path) -> None:
    scorer, image = made("mapped"), photo(50, 70)
    found = scorer.quality_map(image)
    assert found.score == scorer.score(image)
    assert float((found.scores * found.shares).sum()) == pytest.approx(found.score, abs=1e-6)
    (tmp_path / "a.png").write_bytes(encode(image))
    assert write_report(tmp_path / "a.html", scorer, [tmp_path / "a.png"]).scored == 1
    assert f"{found.score:.3f}" in (tmp_path / "a.html").read_text()


def test_levels_are_a_distribution_whose_mean_is_the_quality(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="output must be 'levels' for 'levels', got 'number'"):
        made("levels").save_pretrained(tmp_path)
    scorer, image = made("levels", output="levels"), photo(32, 32)
    scorer.save_pretrained(tmp_path)
    assert read_config(tmp_path).output == "levels"
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        shares = scorer.network(scorer.config.preprocessing(pixels)).softmax(1)
    want = torch.sigmoid(3 * (shares * torch.tensor([0, 0.25, 0.5, 0.75, 1])).sum())
    assert qmamba.load(tmp_path).score(image) == pytest.approx(float(want), abs=1e-6)


def test_words_have_no_score() -> None:
    register(Architecture("words", Blur, output="words"))
    with pytest.raises(CapabilityError, match="answers in words has no score"):
        made("words", output="words").score(photo(32, 32))


def test_export(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from qmamba.integrations.onnx import export_onnx

    scorer = made(score_range=(0.0, 100.0))
    path = export_onnx(scorer, tmp_path / "blur.onnx")
    crop = torch.from_numpy(photo(32, 32)).permute(2, 0, 1)[None] / 255
    session = runtime.InferenceSession(str(path))
    (scores,) = session.run(None, {session.get_inputs()[0].name: crop.numpy()})
    np.testing.assert_allclose(scores, scorer(crop).detach(), atol=1e-3)


# Inputs and scores as the config describes them


def test_score_range_and_direction_do_what_they_say(tmp_path: Path) -> None:
    image, plain = photo(70, 90), made("mapped")
    score = plain.score(image)
    percent, worse = (
        made("mapped", score_range=(0, 100)),
        made("mapped", score_range=(1, 5), lower_better=True),
    )
    assert percent.score(image) == pytest.approx(100 * score, rel=1e-5)
    assert worse.score(image) == pytest.approx(5 - 4 * score, rel=1e-5)
    assert percent.score_range == (0.0, 100.0) and worse.lower_better
    batch = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    assert float(percent(batch)) == pytest.approx(100 * float(plain(batch)), rel=1e-5)
    for scorer in (percent, worse):
        found = scorer.quality_map(image)
        assert found.score == scorer.score(image)
        assert float((found.scores * found.shares).sum()) == pytest.approx(found.score, rel=1e-5)
    assert percent.quality_map(image).limits()[1] >= percent.score(image) + 10
    percent.save_pretrained(tmp_path)
    assert qmamba.load(tmp_path).score(image) == percent.score(image)


@pytest.mark.parametrize("padding", ["none", "mean"])
def test_inputs_of_one_size(padding: Any, tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=(24, 24), interpolation="bicubic", padding=padding)
    scorer = made(preprocessing=preprocessing, protocol=Protocol("whole"))
    sizes = []
    scorer.network.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0]))
    score = scorer.score(photo(40, 80))
    scorer.save_pretrained(tmp_path)
    assert qmamba.load(tmp_path).score(photo(40, 80)) == score
    (inputs,) = sizes
    assert inputs.shape == (1, 3, 24, 24)
    edge = inputs[0, :, 0].abs().max()  # the mean, which normalisation makes zero
    assert bool(edge < 1e-5) == (padding == "mean")


def test_a_map_is_refused_where_crops_are_resized() -> None:
    scorer = made("mapped", preprocessing=Preprocessing(size=(24, 24)))
    with pytest.raises(CapabilityError, match="its preprocessing resizes crops"):
        scorer.quality_map(photo(64, 64))


def test_version_1_is_read_as_before(tmp_path: Path) -> None:
    scorer = made()
    scorer.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    old = config.to_dict()
    old["format_version"] = 1
    for key in ("size", "interpolation", "padding"):
        del old["preprocessing"][key]
    for key in ("output", "bases"):
        del old[key]
    assert ModelConfig.from_dict(old) == config
    old["output"] = "number"
    with pytest.raises(CheckpointError, match="unknown key 'output'"):
        ModelConfig.from_dict(old)


# Base weights on the Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as hub:
        from huggingface_hub import constants

        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        yield hub


def base_on(hub: LocalHub, scorer: Scorer, folder: Path, **changes: Any) -> BaseWeights:
    """Put the scorer's frozen weights on the Hub under their own names, with a classifier nobody uses."""
    state = {
        name.removeprefix("stem."): value.clone()
        for name, value in scorer.network.state_dict().items()
        if name.startswith("stem.")
    }
    folder.mkdir(exist_ok=True)
    save_file({**state, "fc.weight": torch.ones(3, 3)}, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    hub.repos["timm/blur"] = Repo()
    hub.repos["timm/blur"].commit({"model.safetensors": data})
    base = BaseWeights("timm/blur", "main", "model.safetensors", hashlib.sha256(data).hexdigest(), "stem.")
    return dataclasses.replace(base, **changes)


def test_a_base_is_named_and_not_stored(hub: LocalHub, tmp_path: Path) -> None:
    scorer = made()
    scorer.network.stem[1].running_mean += 0.25  # statistics of its own: stored, though the base has some
    base = base_on(hub, made(), tmp_path / "base")
    config = save_checkpoint(tmp_path / "mine", scorer.network, scorer.config.replace(bases=(base,)))
    assert config.bases == (base,) == read_config(tmp_path / "mine").bases
    from safetensors import safe_open

    with safe_open(tmp_path / "mine" / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert stored == {name for name in scorer.network.state_dict() if is_trained(name)}
    hub.requests.clear()
    loaded = qmamba.load(tmp_path / "mine")
    assert loaded.score(photo(50, 50)) == scorer.score(photo(50, 50))
    assert any("timm/blur" in request for request in hub.requests)
    assert not any(p.requires_grad for p in loaded.network.stem.parameters())
    hub.requests.clear()  # now it is in the cache
    repeated = qmamba.load(tmp_path / "mine", local_files_only=True)
    assert repeated.score(photo(50, 50)) == scorer.score(photo(50, 50)) and not hub.requests
    repeated.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (
        tmp_path / "mine/model.safetensors"
    ).read_bytes()


def test_pushed_and_loaded_by_id(hub: LocalHub, tmp_path: Path) -> None:
    scorer = made()
    scorer = Scorer(scorer.network, scorer.config.replace(bases=(base_on(hub, scorer, tmp_path / "base"),)))
    scorer.push_to_hub("me/blur", token=LocalHub.TOKEN)
    assert qmamba.load("me/blur").score(photo(50, 50)) == scorer.score(photo(50, 50))


def test_bases_that_cannot_be_used_are_one_line(hub: LocalHub, tmp_path: Path) -> None:
    scorer = made()

    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        base = base_on(hub, scorer, tmp_path / "base", **changes)
        save_checkpoint(tmp_path / "mine", scorer.network, scorer.config.replace(bases=(base,)))
        with pytest.raises(error, match=match) as caught:
            load_checkpoint(tmp_path / "mine")
        assert "\n" not in str(caught.value)

    base = base_on(hub, scorer, tmp_path / "base")
    save_checkpoint(tmp_path / "mine", scorer.network, scorer.config.replace(bases=(base,)))
    with pytest.raises(HubError, match="not in the local cache"):
        load_checkpoint(tmp_path / "mine", local_files_only=True)
    refused(HubError, "base weights: timm/gone at 'main': no such model", repo="timm/gone")
    refused(CheckpointError, "sha256 must be 00000000…, got ", sha256="0" * 64)
    refused(CheckpointError, "'stem.0.bias' and 3 more must be in one of them", prefix="trunk.")
    config = scorer.config.replace(bases=(base, base))
    save_checkpoint(tmp_path / "mine", scorer.network, config)
    with pytest.raises(CheckpointError, match="two of them hold 'stem"):
        load_checkpoint(tmp_path / "mine")
    wide = create_model("blur", width=4)
    save_checkpoint(tmp_path / "wide", wide, scorer.config.replace(overrides={"width": 4}))
    config = read_config(tmp_path / "wide")
    meta = Blur(4).to("meta")
    meta.head, meta.stem[1].running_mean, meta.stem[1].running_var = wide.head, *(torch.ones(4) for _ in "ab")
    meta.stem[1].num_batches_tracked = torch.tensor(0)
    save_checkpoint(tmp_path / "wide", meta, config.replace(bases=(base,)))
    with pytest.raises(CheckpointError, match=r"'stem\.0\.\w+' must be of shape"):
        load_checkpoint(tmp_path / "wide")


def test_frozen_weights_that_were_changed_are_not_lost(hub: LocalHub, tmp_path: Path) -> None:
    scorer = made()
    config = scorer.config.replace(bases=(base_on(hub, scorer, tmp_path / "base"),))
    save_checkpoint(tmp_path / "mine", scorer.network, config)
    network, config = load_checkpoint(tmp_path / "mine")
    with torch.no_grad():
        network.stem[0].weight[0] += 1
    with pytest.raises(CheckpointError, match=r"'stem\.0\.weight' differs from its base timm/blur"):
        save_checkpoint(tmp_path / "other", network, config)
    assert not (tmp_path / "other").exists()
    save_checkpoint(tmp_path / "other", network, config.replace(bases=()))
    assert torch.equal(load_checkpoint(tmp_path / "other")[0].stem[0].weight, network.stem[0].weight)


def test_bad_bases_in_a_config(hub: LocalHub, tmp_path: Path) -> None:
    base = base_on(hub, made(), tmp_path)
    fields = made().config.to_dict()
    for name, value in (("repo", "../up"), ("filename", "a/../b.bin"), ("sha256", "x"), ("revision", "../x")):
        with pytest.raises(CheckpointError, match=f"config: bases: {name} must be"):
            ModelConfig.from_dict({**fields, "bases": [{**dataclasses.asdict(base), name: value}]})
    with pytest.raises(CheckpointError, match="a list of objects"):
        ModelConfig.from_dict({**fields, "bases": "timm/blur"})
    with pytest.raises(CheckpointError, match=r"missing 'bases\.filename'"):
        ModelConfig.from_dict({**fields, "bases": [{"repo": "a/b"}]})
    with pytest.raises(CheckpointError, match="bases must be empty, since 'mapped'"):
        made("mapped", bases=(base,)).save_pretrained(tmp_path / "mapped")
