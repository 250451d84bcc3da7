"""Quantized networks: what is quantized, files, adapters, hooks, the command, and training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import qmamba
from qmamba.adapters import load_adapter
from qmamba.checkpoints import ModelConfig, read_config, save_checkpoint
from qmamba.checkpoints.safetensors_file import serialise
from qmamba.cli import app
from qmamba.errors import (
    AdapterError,
    ArgumentError,
    CapabilityError,
    CheckpointError,
    ImageError,
    RecipeError,
)
from qmamba.models import create_model
from qmamba.ops import linear
from qmamba.quantization import Quantization, calibrate, freeze, plan, prepare, round_weights
from qmamba.quantization.layers import QuantConv2d, QuantLinear
from qmamba.quantization.network import activation_quantizers, grids_of
from qmamba.quantization.packing import layout, own_types, pack, unpack
from qmamba.scoring import Scorer
from qmamba.scoring.quantizing import agreement, evenly
from qmamba.train.quantizing import QuantizeRecipe
from qmamba.train.quantizing import quantize as train_quantized
from rated_photos import rated_photos
from tiny_adapters import saved
from tiny_scorer import TINY, photo, quick_config, tiny_network

PHOTOS = [photo(64, 80, seed) for seed in range(4)]
RESIDUAL = "stages.0.blocks.0."


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), quick_config())


@pytest.fixture(scope="module")
def w8a8(scorer: Scorer) -> Scorer:
    return qmamba.quantize(scorer, Quantization(activations=8), PHOTOS)[0]


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# What is quantized


def test_every_layer_is_quantized_or_named(scorer: Scorer) -> None:
    made = plan(scorer.network, Quantization(activations=8))
    matrices = {name for name, p in scorer.network.named_parameters() if p.ndim > 1}
    scan = {name for name in matrices if name.endswith((".A_log", ".D", ".dt_bias"))}
    in_float = {name for name in matrices if name.removesuffix(".weight") in made.float_}
    assert set(made.weights) | scan | in_float == matrices
    assert set(made.float_) == {"stem.conv1", "stem.conv2", "head.fc"}
    assert {entry.bits for name, entry in made.weights.items() if ".gate." in name} == {8}
    inner = [RESIDUAL + name for name in ("ss2d.in_proj", "ss2d.conv", "ss2d.x_proj", "mlp.fc1", "mlp.fc2")]
    assert set(inner) <= set(made.layers)
    assert not any(".gate." in name for name in made.layers)
    assert {tensor for _, tensor in made.tensors} == {"x", "dt", "B", "C"}


def test_dls_is_where_the_method_has_it(scorer: Scorer) -> None:
    config = Quantization(4, 4, "rfa+dls", scan_parameters=True)
    made = plan(scorer.network, config)
    assert {name.rpartition(".")[2] for name, entry in made.layers.items() if entry.dynamic} == {"out_proj"}
    assert all(entry.dynamic for entry in made.tensors.values())
    assert {tensor for _, tensor in made.tensors} == {"x", "dt", "B", "C", "A", "D", "dt_bias"}
    static = plan(scorer.network, Quantization(4, 4, "rfa"))
    assert not any(entry.dynamic for entry in (*static.layers.values(), *static.tensors.values()))


def test_unsupported_modules_stay_in_float_and_are_named() -> None:
    class Odd(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    network = nn.Sequential(
        nn.Linear(4, 4), Odd(4, 4), nn.Conv1d(4, 4, 1), nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Linear(4, 4)
    )
    network[5].register_forward_hook(lambda *_: None)
    made = plan(network, Quantization(keep=()))
    assert set(made.weights) == {"0.weight", "3.weight"}
    assert "Odd" in made.float_["1"] and "Conv1d" in made.float_["2"] and "hooks" in made.float_["5"]
    kept = plan(network, Quantization(keep=("0", "3*")))
    assert not kept.weights and kept.float_["3"] == "kept in float by the configuration"


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_layers_without_quantizers_compute_what_they_stand_for(padding_mode: Any) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode=padding_mode)
    x = torch.randn(2, 4, 9, 7)
    assert torch.equal(QuantConv2d(conv)(x), conv(x))
    dense = nn.Linear(4, 5)
    assert torch.equal(QuantLinear(dense)(x.mT[..., :4]), linear(x.mT[..., :4], dense.weight, dense.bias))


def test_options_are_checked() -> None:
    for changes in (
        {"weights": 3},
        {"weights": True},
        {"activations": 16},
        {"method": "gptq"},
        {"keep": "a"},
    ):
        with pytest.raises(ArgumentError, match=next(iter(changes))):
            Quantization(**changes)
    assert Quantization.from_dict(Quantization(2, 4, "lsq").to_dict()) == Quantization(2, 4, "lsq")


# Scores


def test_eight_bits_are_close_and_fewer_are_further(scorer: Scorer) -> None:
    before = scorer.score(PHOTOS)
    errors = [
        float((qmamba.quantize(scorer, Quantization(bits))[0].score(PHOTOS) - before).abs().max())
        for bits in (8, 4, 2)
    ]
    assert 0 < errors[0] < 0.02 and errors[0] < errors[1] < errors[2]


def test_the_scorer_stays_as_it_is(scorer: Scorer, w8a8: Scorer) -> None:
    assert not activation_quantizers(scorer.network) and not grids_of(scorer.network)
    assert scorer.config.quantization is None
    assert len(activation_quantizers(w8a8.network)) > 30
    assert float((w8a8.score(PHOTOS) - scorer.score(PHOTOS)).abs().max()) < 0.1


@pytest.mark.parametrize("method", ["lsq", "rfa+dls"])
def test_a_score_does_not_depend_on_its_batch_mates(scorer: Scorer, method: str) -> None:
    config = Quantization(4, 4, method, scan_parameters=True)
    network = copy.deepcopy(scorer.network)
    prepare(network, config, plan(scorer.network, config), training=True)
    calibrate(network, [images(4)])
    freeze(network)
    with torch.no_grad():
        batch = images(3) * torch.tensor([1.0, 5.0, 0.2])[:, None, None, None]
        together = network(batch)
        alone = torch.cat([network(batch[i : i + 1]) for i in range(3)])
        assert float((together - alone).abs().max()) < 1e-4 * float(together.std())
        assert torch.equal(network(batch), together)


def test_hooks_and_swapped_modules_take_effect(w8a8: Scorer) -> None:
    scorer, seen = copy.deepcopy(w8a8), []
    before = scorer.score(PHOTOS[0])
    block = scorer.network.stages[0].blocks[0]
    for module in (block, block.mlp.fc1, block.ss2d.quantizers["x"]):
        module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    assert scorer.score(PHOTOS[0]) == before
    assert seen == ["LSQPlus", "QuantLinear", "Block"]
    block.mlp.fc2 = nn.Sequential(block.mlp.fc2, nn.Identity())
    assert scorer.score(PHOTOS[0]) == before
    block.mlp.fc2 = nn.Linear(32, 8)
    assert scorer.score(PHOTOS[0]) != before


def test_quantizers_stay_in_float32(w8a8: Scorer) -> None:
    network = copy.deepcopy(w8a8.network).to(torch.bfloat16)
    quantizer = next(iter(activation_quantizers(network).values()))
    assert quantizer.alpha.dtype == torch.float32
    assert next(network.parameters()).dtype == torch.bfloat16
    assert network(images(1).bfloat16()).dtype == torch.bfloat16


def test_calibration_needs_photographs_that_can_be_read(scorer: Scorer) -> None:
    with pytest.raises(ArgumentError, match="photographs must be given"):
        qmamba.quantize(scorer, Quantization(activations=8))
    with pytest.raises(ArgumentError, match=r"method 'lsq' trains; use qmamba.train"):
        qmamba.quantize(scorer, Quantization(method="lsq"))
    _, report = qmamba.quantize(scorer, Quantization(activations=8), [b"damaged", *PHOTOS[:2]])
    assert report.images == 2 and len(report.unreadable) == 1
    with pytest.raises(ImageError, match="none of 1 photographs"):
        qmamba.quantize(scorer, Quantization(activations=8), [b"damaged"])


def test_sqnr_grows_with_bits(scorer: Scorer) -> None:
    found = [
        qmamba.quantize(scorer, Quantization(bits, bits, "ptq-mse"), PHOTOS[:2])[1].sqnr for bits in (4, 8)
    ]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 60
    gained = {name: found[1][name] - found[0][name] for name in found[0] if ".gate." not in name}
    assert min(gained.values()) > 10, min(gained.items(), key=lambda item: item[1])


# Files


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_survive_packing(bits: int) -> None:
    low = -(2 ** (bits - 1))
    codes = torch.randint(low, -low, (3, 7), generator=torch.Generator().manual_seed(1))
    packed = pack(codes, bits)
    assert len(packed) == -(-21 * bits // 8)
    assert torch.equal(unpack(packed, bits, (3, 7)).long(), codes)


@pytest.mark.parametrize(
    "config",
    [
        Quantization(8),
        Quantization(2),
        Quantization(4, 8, scan_parameters=True),
        Quantization(8, 8, "ptq-minmax"),
    ],
    ids=lambda c: f"{c.label} {c.method}",
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_holds_the_same_bits(
    scorer: Scorer, tmp_path: Path, config: Quantization, dtype: str
) -> None:
    base = Scorer(scorer.network, scorer.config.replace(dtype=dtype))
    made, _ = qmamba.quantize(base, config, PHOTOS[:2])
    written = made.save_pretrained(tmp_path / "a")
    loaded = qmamba.load(tmp_path / "a")
    assert loaded.config.quantization == config and loaded.name == f"tiny-{config.label.lower()}"
    for name, weight in made.network.state_dict().items():
        found = loaded.network.state_dict()[name]
        if name in grids_of(made.network) or ".quantizers." in name or "_quantizer." in name:
            assert torch.equal(found, weight), name
    if dtype == "float32":
        assert torch.equal(loaded.score(PHOTOS), made.score(PHOTOS))
    again = loaded.save_pretrained(tmp_path / "b")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    assert written.weights_sha256 == again.weights_sha256 == made.base_sha256() == loaded.base_sha256()


def test_weights_only_networks_are_plain(scorer: Scorer, tmp_path: Path) -> None:
    qmamba.quantize(scorer, Quantization(4))[0].save_pretrained(tmp_path)
    loaded = qmamba.load(tmp_path).network
    assert [type(m) for m in loaded.modules()] == [type(m) for m in scorer.network.modules()]
    codes = [name for name in load_file(tmp_path / "model.safetensors") if name.endswith(".codes")]
    assert len(codes) == len(grids_of(loaded)) > 30


TABLE = {  # MiB of weights in 8, 4 and 2 bits, the rest in float32
    "qmamba-t": (27.3, 14.0, 7.4),
    "qmamba-s": (48.1, 24.7, 13.1),
    "qmamba-b": (84.9, 43.4, 22.6),
}


@pytest.mark.parametrize("arch", TABLE)
@pytest.mark.parametrize("method", ["ptq-mse", "rfa+dls"])
def test_files_have_their_size(arch: str, method: str) -> None:
    for bits, wanted in zip((8, 4, 2), TABLE[arch], strict=True):
        config = Quantization(bits, bits, method)
        with torch.device("meta"):
            network = create_model(arch)
        made = plan(network, config)
        prepare(network, config, made)
        held = layout(network.state_dict(), made)
        header = len(serialise({name: torch.empty(0) for name in held}, torch.float32))
        size = header + sum(t.numel() * t.element_size() + 12 for t in held.values())  # longer offsets
        assert size / 2**20 == pytest.approx(wanted, rel=0.02)


def test_sizes_are_those_of_the_files(scorer: Scorer, w8a8: Scorer, tmp_path: Path) -> None:
    w8a8.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    with torch.device("meta"):
        network = create_model("lqmamba-n", **scorer.config.overrides)
    config = w8a8.config.quantization
    assert config is not None
    made = plan(network, config)
    prepare(network, config, made)
    expected = layout(network.state_dict(), made)
    assert {n: (t.shape, t.dtype) for n, t in held.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    assert own_types(network, expected).keys() == own_types(w8a8.network, held).keys()


def damage(folder: Path, change: Any) -> None:
    """Change the tensors of a checkpoint, and make its digest fit: a file that was wrong from the start."""
    import hashlib

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    config |= {"weights_sha256": hashlib.sha256(data).hexdigest(), "weights_bytes": len(data)}
    (folder / "config.json").write_text(json.dumps(config))


CODES, SCALE = RESIDUAL + "mlp.fc1.weight.codes", RESIDUAL + "mlp.fc1.weight.scale"
ALPHA = RESIDUAL + "mlp.fc1.input_quantizer.alpha"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(CODES), f"missing '{CODES}'"),
        (lambda t: t.pop(ALPHA), f"missing '{ALPHA}'"),
        (lambda t: t.update({CODES: t[CODES][1:].clone()}), "must be of shape"),
        (lambda t: t.update({CODES: t[CODES].float()}), f"'{CODES}' must be U8, got float32"),
        (lambda t: t.update({SCALE: t[SCALE].float()}), f"'{SCALE}' must be bfloat16"),
        (lambda t: t.update({SCALE: -t[SCALE]}), f"'{SCALE}' must be above 0"),
        (lambda t: t.update({SCALE: t[SCALE] * float("nan")}), "holds NaN"),
        (lambda t: t.update(extra=torch.ones(1)), "unexpected 'extra'"),
    ],
)
def test_wrong_files_are_refused_in_one_line(w8a8: Scorer, tmp_path: Path, change: Any, says: str) -> None:
    w8a8.save_pretrained(tmp_path)
    damage(tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        qmamba.load(tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_of_other_bits_does_not_fit(w8a8: Scorer, tmp_path: Path) -> None:
    w8a8.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    for old, new, says in (
        ('"weights": 8', '"weights": 4', "must be of shape"),
        ('"activations": 8', '"activations": null', "unexpected"),
        ('"activations": 8', '"activations": 5', "quantization"),
        ('"method": "ptq-mse"', '"method": 3', "quantization"),
        ('"public"', '"publick"', "quantization.public"),
    ):
        assert old in text
        (tmp_path / "config.json").write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=says):
            qmamba.load(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(data[:-5] + b"12345")
    with pytest.raises(CheckpointError, match="sha256"):
        qmamba.load(tmp_path)


def test_a_float_config_has_no_such_key(scorer: Scorer) -> None:
    assert "quantization" not in scorer.config.to_dict()
    assert ModelConfig.from_dict(scorer.config.to_dict()) == scorer.config


def test_what_is_saved_is_what_was_quantized(scorer: Scorer, w8a8: Scorer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the network is in float, the config says it is quantized"):
        save_checkpoint(tmp_path, scorer.network, scorer.config.replace(quantization=Quantization()))
    with pytest.raises(CheckpointError, match="the network is quantized"):
        save_checkpoint(tmp_path, w8a8.network, scorer.config)
    changed = copy.deepcopy(w8a8)
    with torch.no_grad():
        changed.network.stages[0].blocks[0].mlp.fc1.weight.mul_(1.3)
    with pytest.raises(CheckpointError, match="was changed since it was quantized"):
        changed.save_pretrained(tmp_path)
    half = copy.deepcopy(w8a8)
    half.network.to(torch.float16)
    half.save_pretrained(tmp_path / "half")
    assert torch.equal(qmamba.load(tmp_path / "half").network.state_dict()[CODES.removesuffix(".codes")],
                       w8a8.network.state_dict()[CODES.removesuffix(".codes")])  # fmt: skip


def test_a_quantized_model_is_not_quantized_again(w8a8: Scorer) -> None:
    with pytest.raises(CapabilityError, match="quantized already"):
        qmamba.quantize(w8a8)
    with pytest.raises(CapabilityError, match="no layer that can be quantized"):
        qmamba.quantize(Scorer(tiny_network(), quick_config()), Quantization(keep=("*",)))


@pytest.mark.parametrize("activations", [None, 8])
def test_adapters_go_on_top(scorer: Scorer, tmp_path: Path, activations: int | None) -> None:
    made, _ = qmamba.quantize(scorer, Quantization(8, activations), PHOTOS[:2])
    made.save_pretrained(tmp_path / "base")
    base = qmamba.load(tmp_path / "base")
    folder = saved(tmp_path / "adapter", base)
    before = base.score(PHOTOS[0])
    base.load_adapter(folder)
    assert base.score(PHOTOS[0]) == before
    base.set_adapter("default")
    assert base.score(PHOTOS[0]) != before
    assert qmamba.load(tmp_path / "base", adapter=folder).score(PHOTOS[0]) == base.score(PHOTOS[0])
    with pytest.raises(AdapterError, match="made for 'tiny"):
        load_adapter(folder, scorer.base(), scorer.base_sha256())


def test_agreement_is_measured_where_there_is_enough(scorer: Scorer) -> None:
    made, _ = qmamba.quantize(scorer, Quantization(8))
    assert agreement(scorer, made, PHOTOS) == {}
    ((where, found),) = agreement(scorer, made, [*PHOTOS, *(photo(70, 64, s) for s in (7, 8)), b"x"]).items()
    assert where == "scores of tiny in float" and found["n"] == 6 and found["srcc"] > 0.5
    assert evenly([1, 2], 5) == [1, 2]


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scorer: Scorer) -> Path:
    path = tmp_path_factory.mktemp("quantize")
    scorer.save_pretrained(path / "base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        quiet = create_model("lqmamba-n", **TINY)  # in the other one's weights, 2 bits are noise
    Scorer(quiet, quick_config()).save_pretrained(path / "quiet")
    (path / "photos" / "more").mkdir(parents=True)
    for i in range(8):
        Image.fromarray(photo(64, 72, i)).save(path / "photos" / ("more" if i % 2 else "") / f"{i}.png")
    return path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


def test_the_command_writes_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(folder / "base", "--bits", 8, "--data", folder / "photos", "--out", out, "--no-progress")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out) and "MiB of weights" in done.stderr
    config = read_config(out)
    assert config.quantization == Quantization(8, 8)
    assert config.results["scores of tiny in float"]["n"] == 8
    assert config.training["float model"]["name"] == "tiny"
    report = json.loads((out / "quantization.json").read_text())
    assert report["in_float"].keys() == {"stem.conv1", "stem.conv2", "head.fc"} and report["images"] == 8
    assert "scores of tiny in float" in (out / "README.md").read_text()
    refused = run(folder / "base", "--weights-only", "--out", out)
    assert refused.exit_code == 2 and "--force" in refused.stderr
    small = run(folder / "base", "--bits", 4, "--weights-only", "--out", out, "--force")
    assert small.exit_code == 0 and read_config(out).quantization == Quantization(4)
    assert read_config(out).weights_bytes < config.weights_bytes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--bits", "8"), "--data must name photographs"),
        (("--weights-only", "--activation-bits", "8"), "leave one out"),
        (("--weights-only", "--method", "lsq"), "--data must name photographs"),
        (("--weights-only", "--steps", "3"), "--steps and --minutes are for methods that train"),
        (("--data", "."), "no images in this folder"),
    ],
)
def test_the_command_refuses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    done = run(folder / "base", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# Training


RECIPE = QuantizeRecipe(
    steps=12, batch=4, crop=64, lr=2e-3, calibration_crops=4, validate_every=6, save_every=4
)


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return rated_photos(tmp_path_factory.mktemp("rated") / "photos", 12)


@pytest.mark.parametrize("method", ["lsq", "rfa+dls"])
def test_training_brings_it_closer_to_the_float_model(
    folder: Path, rated: list[Any], tmp_path: Path, method: str
) -> None:
    pytest.importorskip("accelerate")
    config = Quantization(2, 4, method)
    made = train_quantized(folder / "quiet", rated, tmp_path, config, recipe=RECIPE)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [event["features"] for event in events if "loss" in event]
    assert len(losses) == 12 and sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert {"loss", "scores", "features", "labels"} <= events[0].keys()
    loaded = qmamba.load(made)
    assert loaded.config.quantization == config and loaded.config.training["quantized"]["steps"] == 12
    kinds = {type(q).__name__ for q in activation_quantizers(loaded.network).values()}
    assert kinds == ({"LSQPlus"} if method == "lsq" else {"LSQPlus", "DLS"})
    assert all(bool(torch.isfinite(p).all()) for p in loaded.network.parameters())
    assert json.loads((made / "quantization.json").read_text())["label"] == "W2A4"


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    folder: Path, rated: list[Any], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    config = Quantization(4, None, "rfa")
    paths = [each.path for each in rated]
    whole = train_quantized(folder / "base", paths, tmp_path / "whole", config, recipe=RECIPE)

    class StopError(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event.get("step") == 5:
            raise StopError

    with pytest.raises(StopError):
        train_quantized(folder / "base", paths, tmp_path / "cut", config, recipe=RECIPE, report=stop)
    assert (tmp_path / "cut" / "state.pt").exists()
    resumed = train_quantized(folder / "base", paths, tmp_path / "cut", config, recipe=RECIPE)
    files = [(each / "model.safetensors").read_bytes() for each in (whole, resumed)]
    assert files[0] == files[1]
    finished = train_quantized(folder / "base", paths, tmp_path / "cut", config, recipe=RECIPE)
    assert finished == resumed
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        train_quantized(folder / "base", paths[:-1], tmp_path / "cut", config, recipe=RECIPE)


def test_training_needs_photographs_and_a_method_that_trains(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="does not train"):
        train_quantized(folder / "base", ["a.jpg"] * 9, tmp_path, Quantization(8, 8))
    with pytest.raises(RecipeError, match="photographs must be at least 4"):
        train_quantized(folder / "base", ["a.jpg"], tmp_path, Quantization(8, 8, "lsq"))
    with pytest.raises(RecipeError, match="must not both be 0"):
        QuantizeRecipe(scores=0, features=0)


def test_every_learnable_gets_a_gradient(scorer: Scorer) -> None:
    config = Quantization(4, 4, "rfa+dls", scan_parameters=True)
    network = copy.deepcopy(scorer.network)
    made = plan(scorer.network, config)
    prepare(network, config, made, training=True)
    round_weights(network, config, made)
    calibrate(network, [images(2)])
    network.requires_grad_(True)
    network(images(2)).square().sum().backward()
    without = [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []
