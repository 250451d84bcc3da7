"""Networks with published-format weights against recorded outputs, features and gradients.

Two recordings of the same form: a cross-scan network, widths 16·2^i, depths 1, 1, 2, 1, and a local-scan
one with windows 2, 4, 7, 7. The third image has odd sides, so its grids do not divide by the windows. Both
files hold all of it for three image sizes; parameter gradients are summed over the three. The files in
tests/data keep every 31st element of the gradients of large tensors; the whole recordings are used too
where they are available.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qmamba import convert
from qmamba.errors import CheckpointError
from qmamba.models import create_model

PLANS = {"open": "qmamba-t", "lq_open": "lqmamba-t"}
TOLERANCE = 1e-4
WHOLE = Path(__file__).parents[2] / "shared" / "oracles" / "vmamba"


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.fixture(params=PLANS)
def recording(request, data_dir):
    state = load_file(data_dir / f"{request.param}_state.safetensors")
    return request.param, state, load_file(data_dir / f"{request.param}_io.safetensors")


@pytest.fixture(params=PLANS)
def whole_recording(request):
    if not WHOLE.is_dir():
        pytest.skip("the whole recordings are not part of the repository")
    state = load_file(WHOLE / f"{request.param}_state.safetensors")
    return request.param, state, load_file(WHOLE / f"{request.param}_io.safetensors")


def build(kind, state):
    model = create_model(PLANS[kind], widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))
    converted = convert.from_vmamba(state)
    model.load_state_dict(converted)
    return model.eval(), converted


def test_outputs_features_and_every_gradient(recording):
    check_outputs_features_and_every_gradient(*recording)


def test_outputs_features_and_every_gradient_whole(whole_recording):
    check_outputs_features_and_every_gradient(*whole_recording)


def check_outputs_features_and_every_gradient(kind, state, io):
    model, converted = build(kind, state)
    for i in range(3):
        image = io[f"{i}.input"].requires_grad_()
        output = model(image)
        assert output.shape == io[f"{i}.output"].shape
        assert relative(output.detach(), io[f"{i}.output"]) < TOLERANCE
        stages = [model.forward_until(image.detach(), s)[0].permute(0, 3, 1, 2) for s in range(4)]
        for s, stage in enumerate(stages):
            assert relative(stage.detach(), io[f"{i}.stage{s}"]) < TOLERANCE, f"stage {s} of image {i}"
        (output * io[f"{i}.cotangent"]).sum().backward()
        assert relative(image.grad, io[f"{i}.grad_input"]) < TOLERANCE
    gradients = {n: p.grad for n, p in model.named_parameters()}
    checked = 0
    for name, want in io.items():
        kept, _, published = name.rpartition("grad.")
        if published in converted.renamed:
            ours = converted.renamed[published]
            got = gradients[ours].flatten()[:: 31 if kept == "every_31st." else 1]
            assert relative(got, want.flatten()) < TOLERANCE, ours
            checked += 1
    assert checked == len(gradients) == len(state)


def test_features_before_the_downsample(recording):
    kind, state, io = recording
    model, _ = build(kind, state)
    image = io["1.input"]  # 96 × 160
    _, features = model.forward_features(image)
    shapes = [tuple(f.shape[1:]) for f in features]
    assert shapes == [(16, 24, 40), (32, 12, 20), (64, 6, 10), (128, 3, 5)]
    for f, info, stage in zip(features, model.feature_info, model.stages, strict=True):
        assert f.shape[1] == info["num_chs"]
        assert f.shape[2] == 96 // info["reduction"]
        after = stage.downsample(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        i = info["reduction"].bit_length() - 3
        assert relative(after.detach(), io[f"1.stage{i}"]) < TOLERANCE


def as_older_names(state):
    """The same weights the way older releases stored them."""
    old = {}
    for name, tensor in state.items():
        if name.endswith("x_proj.weight"):
            name, tensor = name.replace("x_proj.weight", "x_proj_weight"), tensor.unflatten(0, (4, -1))
        elif name.endswith("dt_projs.weight"):
            name, tensor = name.replace("dt_projs.weight", "dt_projs_weight"), tensor.unflatten(0, (4, -1))
        elif name.endswith(("in_proj.weight", "fc1.weight")):
            tensor = tensor[:, :, None, None]
        old[name] = tensor
    return {"model": old, "epoch": 3}


def test_older_names_and_shapes_convert_to_the_same(recording):
    _, state, _ = recording
    new, old = convert.from_vmamba(state), convert.from_vmamba(as_older_names(state))
    assert new.keys() == old.keys()
    assert all(torch.equal(new[k], old[k]) for k in new)
    trailing = {k: v[..., None] if k.endswith(("x_proj.weight", "dt_projs.weight")) else v
                for k, v in state.items()}  # fmt: skip
    assert all(torch.equal(new[k], v) for k, v in convert.from_vmamba(trailing).items())


def classification_head(state):
    return {
        **state,
        "classifier.head.weight": torch.zeros(1000, 128),
        "classifier.head.bias": torch.zeros(1000),
    }


def test_a_classification_head_is_dropped_and_named(recording):
    kind, state, _ = recording
    model = create_model(PLANS[kind], widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))
    before = model.head.fc.weight.clone()
    converted = convert.load_vmamba(model, classification_head(state))
    assert set(converted.dropped) == {"classifier.head.weight", "classifier.head.bias"}
    assert "classifier.head.weight" in converted.report() and "1000" in converted.report()
    assert torch.equal(model.head.fc.weight, before)
    assert torch.equal(model.stem.conv1.weight, state["patch_embed.0.weight"])


def test_names_of_a_data_parallel_checkpoint_are_understood(data_dir):
    state = load_file(data_dir / "open_state.safetensors")
    plain = convert.from_vmamba(state)
    wrapped = convert.from_vmamba({"model": {f"module.{name}": v for name, v in state.items()}, "epoch": 3})
    assert wrapped.keys() == plain.keys()
    assert all(torch.equal(wrapped[name], plain[name]) for name in plain)


def test_cross_scan_weights_start_a_local_scan_network_with_gates_of_one_half(data_dir):
    state = load_file(data_dir / "open_state.safetensors")
    model = create_model("lqmamba-t", widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))
    convert.load_vmamba(model, state)
    y = torch.randn(1, 4, 3, 3, 32)
    assert torch.allclose(model.stages[0].blocks[0].ss2d.gate(y), y.sum(1) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {**s, "layers.0.blocks.0.attn.qkv.weight": torch.zeros(1)},
            "called 'layers.0.blocks.0.attn",
        ),
        (lambda s: {**s, "epoch": 3}, "'epoch' is not a tensor"),
        (lambda s: {k: v for k, v in s.items() if "out_norm" not in k}, "lacks stages.0.blocks.0.ss2d.norm"),
        (lambda s: {**s, "patch_embed.0.bias": torch.zeros(9)}, r"stem.conv1.bias is \(9,\)"),
        (lambda s: {}, "no tensors"),
        (lambda s: None, "must be a dict of tensors, got NoneType"),
        (lambda s: {3: torch.zeros(1)}, "called '3'"),
        (lambda s: {**s, "classifier.head.weight": torch.tensor(1.0)}, r"head.fc.weight is \(\)"),
    ],
)
def test_wrong_state_dicts_are_refused_in_one_line(data_dir, change, message):
    state = load_file(data_dir / "open_state.safetensors")
    model = create_model("qmamba-t", widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))
    with pytest.raises(CheckpointError, match=message) as caught:
        convert.load_vmamba(model, change(state))
    assert "\n" not in str(caught.value)
