"""What LoDa can be used for, by capability: adapters, LoRA, a loss, compilation, ONNX, the Hub."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qmamba
from hub_server import LocalHub, Repo
from published_loda import SMALL, write_bases
from qmamba import adapters
from qmamba.calibration import Calibration
from qmamba.checkpoints import default_config, load_checkpoint, read_config
from qmamba.errors import CapabilityError, CheckpointError
from qmamba.models import create_model
from qmamba.models.capabilities import LowRankTargets, TakesPrompts
from qmamba.models.loda import is_stored
from qmamba.scoring import Scorer
from qmamba.train import AdaptRecipe, adapt
from rated_photos import rated_photos
from tiny_adapters import louder

FOUR = {**SMALL, "depth": 4}  # a block a stage
METHODS = adapters.list_methods()


def loda(seed: int = 0, **changes: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_model("loda", **{**FOUR, **changes})


def scorer_of(network: nn.Module, **changes: Any) -> Scorer:
    config = default_config(network, "small-loda", bases=(), calibration=Calibration(slope=3.0), **changes)
    return Scorer(network.eval(), config)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make(method: str, network: nn.Module, seed: int = 1) -> adapters.Adapter:
    if method == "lora":
        pytest.importorskip("peft", reason="LoRA comes from peft, which is not installed")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return adapters.create(method, network)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return loda().eval().requires_grad_(False)


# Adapters


def test_it_declares_what_adapters_need(network: nn.Module) -> None:
    assert isinstance(network, TakesPrompts) and isinstance(network, LowRankTargets)
    assert network.out_widths == (96,) * 4
    assert not [name for name in network.state_dict() if name.startswith("stages")]


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_starts_as_the_network_and_learns(method: str, network: nn.Module) -> None:
    adapter, x = make(method, network), images(2, 3, 64, 64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert torch.equal(adapter(network, x), network(x))
    adapted = louder(adapter)(network, x)
    assert adapted.shape == (2, 1) and not torch.allclose(adapted, network(x), atol=1e-4)
    adapted.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())
    if method != "full":  # whose copy has tensors of patches that the last block's output never reaches
        assert all(p.grad.any() for n, p in adapter.named_parameters() if "predict" not in n)
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_what_comes_before_an_adapter_can_be_kept(method: str, network: nn.Module) -> None:
    """Frozen towers are computed once for a fixed crop; a linear probe needs the class token alone."""
    adapter, x = louder(make(method, network)), images(3, 3, 64, 64)
    with torch.no_grad():
        kept = adapter.before(network, x)
    shapes = {"linear-probe": [(3, 1, 96)], "full": [(3, 3, 64, 64)], "lora": [(3, 3, 64, 64)]}
    assert [tuple(t.shape) for t in kept] == shapes.get(method, [(3, 17, 96), (3, 16, 16)])
    assert torch.allclose(adapter.after(network, kept), adapter(network, x), atol=1e-6)


@pytest.mark.parametrize("stage", range(4))
def test_a_walk_from_any_stage_is_the_same_walk(stage: int, network: nn.Module) -> None:
    x, ours = images(2, 3, 64, 64), [nn.Identity()] * 4
    ours[stage] = lambda z: z + 10 * z.cos()  # type: ignore[assignment,return-value]
    kept = network.forward_until(x, stage)
    found, want = network(kept, ours, start=stage), network(x, ours)
    assert torch.allclose(found, want, atol=1e-6) and not torch.allclose(want, network(x), atol=1e-3)
    other = copy.deepcopy(network.head)
    nn.init.ones_(other.weight)
    assert torch.allclose(network(kept, head=other, start=stage), network(x, head=other), atol=1e-6)


def test_lora_is_in_the_vit_alone(network: nn.Module) -> None:
    adapter = make("lora", network)
    places = {
        f"vit-blocks-{i}-{part}" for i in range(4) for part in ("attn-qkv", "attn-proj", "mlp-fc1", "mlp-fc2")
    }
    assert set(adapter.down) == places
    with torch.device("meta"):
        assert make("lora", create_model("loda")).size.trained == 1_179_648


def test_peft_itself_on_the_vit() -> None:
    """peft's own verbs, without any of ours: the towers stay, and the merged network scores the same."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    network, x = loda().eval(), images(2, 3, 64, 64)
    plain = network(x)
    config = peft.LoraConfig(r=2, target_modules=network.lora_targets, modules_to_save=["head"])
    with torch.random.fork_rng():
        model = peft.get_peft_model(network, config).eval()
    assert torch.allclose(model(x), plain, atol=1e-6)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or "head" in name for name in trained)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        (1 - model(x)).sum().backward()
        optimiser.step()
    tuned = model(x)
    assert not torch.allclose(tuned, plain, atol=1e-4)
    assert torch.allclose(model.merge_and_unload()(x), tuned, atol=1e-5)


def test_a_network_that_names_no_layers_has_no_lora(network: nn.Module) -> None:
    class Silent(type(network)):  # type: ignore[misc]
        lora_targets = property()  # an attribute that raises AttributeError

    silent = copy.deepcopy(network)
    silent.__class__ = Silent
    with pytest.raises(CapabilityError, match="'loda' has no LoRA: its network does not name the layers"):
        adapters.create("lora", silent)


@pytest.mark.parametrize("method", ["linear-probe", "lora"])
def test_adapt_and_score(method: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate, which trains, is not installed")
    if method == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    scorer_of(loda()).save_pretrained(tmp_path / "base")
    photos = rated_photos(tmp_path / "photos")
    recipe = AdaptRecipe(epochs=3, crops=2, batch=8, lr=1e-2)
    folder = adapt(tmp_path / "base", photos, tmp_path / "run", method=method, recipe=recipe)
    scorer = qmamba.load(tmp_path / "base", adapter=folder)
    assert scorer.adapter_config is not None and scorer.adapter_config.method == method
    assert 0 < scorer.score(photos[0].path) < 1
    with pytest.raises(CapabilityError, match="'loda' has no quality map"):
        scorer.quality_map(photos[0].path)


# A loss, compilation, ONNX


def test_as_a_loss() -> None:
    """Images of any size get gradients, through crops for the one size that the network takes."""
    scorer = scorer_of(loda())
    batch = images(2, 3, 70, 96).requires_grad_()
    scores = scorer(batch)
    assert scores.shape == (2,)
    for image, score in zip(batch, scores, strict=True):
        assert scorer.score(image.detach()) == pytest.approx(score.item(), abs=1e-5)
    (1 - scores).mean().backward()
    assert batch.grad is not None and bool(batch.grad.isfinite().all())
    assert (batch.grad != 0).float().mean() > 0.9  # fifteen crops see nearly all of it
    assert all(p.grad is None for p in scorer.network.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_it_compiles_without_a_break(training: bool, fresh_graphs: None) -> None:
    network = loda(dropout=0.0, cnn_bn="frozen").train(training)
    x = images(2, 3, 64, 64)
    parameters = [p for p in network.parameters() if p.requires_grad]
    want = network(x)
    wanted = torch.autograd.grad(want.sum(), parameters)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    found = compiled(x)
    assert torch.allclose(found, want, atol=1e-6)
    for a, b in zip(torch.autograd.grad(found.sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_an_onnx_file_of_the_published_size(tmp_path: Path) -> None:
    """224×224 in, and the grid of tokens that the paper has; narrow, so that it is quick."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from qmamba.integrations.onnx import export_onnx

    scorer = scorer_of(loda(image_size=224, width=24, grid=7, depth=2))
    session = onnxruntime.InferenceSession(export_onnx(scorer, tmp_path / "loda.onnx"))
    assert session.get_inputs()[0].shape[1:] == [3, 224, 224]
    crops = images(3, 3, 224, 224)
    (scores,) = session.run(None, {"image": crops.numpy()})
    want = torch.tensor([scorer.crop_scores(crop).scores.mean() for crop in crops])
    assert torch.allclose(torch.from_numpy(scores), want, atol=1e-5) and scores.std() > 0


# Files and the Hub


def test_a_folder_of_another_width_is_one_line(tmp_path: Path) -> None:
    scorer_of(loda()).save_pretrained(tmp_path / "a")
    text = (tmp_path / "a" / "config.json").read_text()
    assert text.count('"width": 96') == 1
    (tmp_path / "a" / "config.json").write_text(text.replace('"width": 96', '"width": 48'))
    with pytest.raises(
        CheckpointError, match=r"must be of shape \[.*\], got \[.*\]: use the config"
    ) as caught:
        qmamba.load(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_one_line(network: nn.Module) -> None:
    for x in (images(1, 3, 64, 96), images(1, 3, 224, 224)):
        with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 64\), got .*; crop or resize"):
            network(x)
        with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 64\)"):
            network.forward_until(x, 0)


@pytest.fixture
def clean_hub(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The local Hub with both base models, and an empty cache for this process."""
    from huggingface_hub import constants

    bases = tmp_path / "bases"
    write_bases(bases, **SMALL)
    for path in bases.rglob("model.safetensors"):
        repo = path.relative_to(bases).parts[0].removeprefix("models--").replace("--", "/", 1)
        hub.repos[repo] = Repo()
        hub.repos[repo].commit({"model.safetensors": path.read_bytes()})
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    return hub


def test_pushed_and_loaded_by_id(clean_hub: LocalHub, tmp_path: Path) -> None:
    """What is trained is uploaded; the towers come from their own repositories, and are checked."""
    from qmamba.checkpoints.start import start

    network = loda(depth=SMALL["depth"])
    began = start(network, "bases")
    scorer = scorer_of(network)
    scorer = Scorer(network, scorer.config.replace(bases=began.bases))
    scorer.push_to_hub("me/loda-koniq", token=LocalHub.TOKEN)
    (sent,) = (tree for tree in clean_hub.repos["me/loda-koniq"].commits.values() if "config.json" in tree)
    whole = sum(value.nbytes for value in network.state_dict().values())
    assert len(sent["model.safetensors"]) < 0.5 * whole
    image = images(3, 90, 100)
    loaded = qmamba.load("me/loda-koniq")
    assert loaded.score(image) == scorer.score(image)
    loaded.save_pretrained(tmp_path / "copy")
    assert read_config(tmp_path / "copy").bases == began.bases
    repeated, _ = load_checkpoint(tmp_path / "copy", local_files_only=True)
    assert all(p.requires_grad is is_stored(name) for name, p in repeated.named_parameters())
    repo = clean_hub.repos["timm/resnet50.a1_in1k"]
    data = bytearray(repo.commits[repo.refs["main"]]["model.safetensors"])
    data[-1] ^= 1
    repo.commit({"model.safetensors": bytes(data)})
    with pytest.raises(CheckpointError, match=r"sha256 must be .*resnet50.a1_in1k has changed") as caught:
        qmamba.load("me/loda-koniq")
    assert "\n" not in str(caught.value)
