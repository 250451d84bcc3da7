"""Hooks, replaced forwards, parametrizations and swapped submodules act, with gradients and without."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from qmamba.models import create_model
from qmamba.models.qmamba import cpu
from qmamba.ops import scratch
from tiny_scorer import TINY

PARTS = {
    "conv": "stages.0.blocks.0.ss2d.conv",
    "in_proj": "stages.0.blocks.0.ss2d.in_proj",
    "x_proj": "stages.0.blocks.0.ss2d.x_proj",
    "out_proj": "stages.0.blocks.0.ss2d.out_proj",
    "ss2d.norm": "stages.0.blocks.0.ss2d.norm",
    "ss2d": "stages.0.blocks.0.ss2d",
    "gate": "stages.0.blocks.0.ss2d.gate",
    "gate.norm": "stages.0.blocks.0.ss2d.gate.norm",
    "gate.reduce": "stages.0.blocks.0.ss2d.gate.reduce",
    "gate.expand": "stages.0.blocks.0.ss2d.gate.expand",
    "mlp": "stages.1.blocks.0.mlp",
    "fc1": "stages.1.blocks.0.mlp.fc1",
    "fc2": "stages.1.blocks.0.mlp.fc2",
    "norm1": "stages.0.blocks.0.norm1",
    "norm2": "stages.0.blocks.0.norm2",
    "drop_path": "stages.0.blocks.0.drop_path",
    "block": "stages.1.blocks.0",
    "blocks": "stages.1.blocks",
    "stem": "stem",
    "stem.conv1": "stem.conv1",
    "stem.norm1": "stem.norm1",
    "stem.conv2": "stem.conv2",
    "downsample": "stages.2.downsample",
    "downsample.conv": "stages.2.downsample.conv",
    "downsample.norm": "stages.0.downsample.norm",
    "head.fc": "head.fc",
}
SOME = ("conv", "in_proj", "out_proj", "gate", "gate.reduce", "mlp", "fc1", "stem", "downsample.conv")
LINEARS = ("in_proj", "x_proj", "out_proj", "gate.reduce", "gate.expand", "fc1", "fc2")
CONVS = ("conv", "stem.conv1", "stem.conv2", "downsample.conv")

every_part = pytest.mark.parametrize("name", PARTS.values(), ids=PARTS.keys())
some_parts = pytest.mark.parametrize("name", [PARTS[part] for part in SOME], ids=SOME)
both_modes = pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])


@pytest.fixture
def network(monkeypatch):
    """A network whose every part counts, with limits so low that it works on some rows of one image."""
    for name, value in (("ELEMENTS", 300), ("SCANNED", 200), ("PIXELS", 1)):
        monkeypatch.setattr(cpu, name, value)
    monkeypatch.setattr(scratch, "KEPT", 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("lqmamba-n", **TINY)
        for p in model.parameters():
            p.data.add_(torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.1))
    return model.eval()


def images(n=2):
    return torch.randn(n, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def bent(x):
    """A change that no norm behind it undoes."""
    return x + torch.sin(3 * x + 0.5)


def differ(a, b):
    return (a - b).abs().max() > 1e-4  # rounding is a hundredth of that


def scores(network, gradients):
    with torch.set_grad_enabled(gradients):
        return network(images()).detach()


def replace(network, name, module):
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def plain(network, x):
    """What the network is without any shortcut: its modules, called one after the other."""
    x = network.stem(x)
    for stage in network.stages:
        x = stage.downsample(stage.blocks(x))
    return network.head(x)


@both_modes
@every_part
def test_a_hook_sees_a_whole_batch_once_and_can_change_it(network, name, gradients):
    before = scores(network, gradients)
    seen = []

    def hook(module, inputs, output):
        seen.append(output.shape[0])
        return bent(output)

    handle = network.get_submodule(name).register_forward_hook(hook)
    after = scores(network, gradients)
    assert seen in ([2], [2, 2])  # drop path is called for both branches
    assert differ(after, before)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(after, plain(network, images()).detach(), rtol=1e-4, atol=1e-4)
    handle.remove()
    assert torch.equal(scores(network, gradients), before)


@both_modes
@some_parts
def test_a_pre_hook_can_change_the_input(network, name, gradients):
    before = scores(network, gradients)
    part = network.get_submodule(name)
    handle = part.register_forward_pre_hook(lambda module, inputs: (bent(inputs[0]),))
    after = scores(network, gradients)
    assert differ(after, before)
    torch.testing.assert_close(after, scores(network, not gradients), rtol=1e-4, atol=1e-4)
    handle.remove()
    assert torch.equal(scores(network, gradients), before)


@both_modes
@some_parts
def test_a_replaced_forward_is_called(network, name, gradients):
    before = scores(network, gradients)
    part, calls = network.get_submodule(name), []
    forward = part.forward

    def louder(x):
        calls.append(len(x))
        return bent(forward(x))

    part.forward = louder
    after = scores(network, gradients)
    assert calls in ([2], [2, 2])
    assert differ(after, before)
    del part.forward
    assert torch.equal(scores(network, gradients), before)


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return bent(self.inner(x))


@every_part
def test_a_swapped_submodule_is_called(network, name):
    before = scores(network, True)
    replace(network, name, Wrapped(network.get_submodule(name)))
    found = [scores(network, gradients) for gradients in (True, False)]
    assert differ(found[0], before)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


class Louder(nn.Module):
    def forward(self, weight):
        return bent(weight)


@pytest.mark.parametrize("part", [*LINEARS, *CONVS, "gate.norm", "ss2d.norm"])
def test_a_parametrized_weight_acts(network, part):
    wanted = copy.deepcopy(network)
    weight = wanted.get_submodule(PARTS[part]).weight
    weight.data = Louder()(weight.data)
    before = scores(network, True)
    parametrize.register_parametrization(network.get_submodule(PARTS[part]), "weight", Louder())
    found = [scores(network, gradients) for gradients in (True, False)]
    assert differ(found[0], before)
    for got in found:
        torch.testing.assert_close(got, scores(wanted, True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parameter", ["dt_weight", "dt_bias", "A_log", "D"])
def test_a_parametrized_scan_acts(network, parameter):
    before = scores(network, True)
    parametrize.register_parametrization(network.get_submodule(PARTS["ss2d"]), parameter, Louder())
    found = [scores(network, gradients) for gradients in (True, False)]
    assert differ(found[0], before)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("part", "make"),
    [
        ("conv", lambda: nn.Conv2d(16, 16, 5, padding=2, groups=16)),
        ("conv", lambda: nn.Conv2d(16, 16, 3, padding=1, groups=1)),
        ("conv", lambda: nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)),
        ("conv", lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16, padding_mode="reflect")),
        ("conv", lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=True)),
        ("downsample.conv", lambda: nn.Conv2d(32, 64, 5, stride=2, padding=2)),
        ("stem.conv1", lambda: nn.Conv2d(3, 4, 7, stride=2, padding=3)),
        ("gate.norm", lambda: nn.LayerNorm(16, eps=0.1)),
        ("gate.norm", lambda: nn.LayerNorm(16, elementwise_affine=False)),
    ],
)
def test_a_part_of_the_same_class_may_be_of_another_shape(network, part, make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        replace(network, PARTS[part], make())
    want = plain(network, images()).detach()
    for gradients in (True, False):
        torch.testing.assert_close(scores(network, gradients), want, rtol=1e-4, atol=1e-4)


@both_modes
def test_the_modules_of_feature_info_are_called(network, gradients):
    seen = []
    for stage, info in zip(network.stages, network.feature_info, strict=True):
        module = network.get_submodule(info["module"])
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.permute(0, 3, 1, 2)))
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output[0].permute(0, 3, 1, 2)))
    with torch.set_grad_enabled(gradients):
        _, features = network.forward_features(images())
    assert len(seen) == 8
    for feature, *pair in zip(features, seen[::2], seen[1::2], strict=True):
        assert all(torch.equal(feature, got) for got in pair)


@both_modes
def test_hooks_of_all_modules_are_called(network, gradients):
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        scores(network, gradients)
    finally:
        handle.remove()
    assert {network.get_submodule(name) for name in PARTS.values()} <= set(calls)


def test_what_a_hook_keeps_is_not_written_to(network):
    """Nothing is done in place on what somebody has seen."""
    kept = {}
    handles = [
        network.get_submodule(PARTS[name]).register_forward_hook(
            lambda module, inputs, output, name=name: kept.update({name: (output, output.clone())})
        )
        for name in ("in_proj", "conv", "fc1", "out_proj", "stem.norm1")
    ]
    scores(network, False)
    assert len(kept) == len(handles)
    assert all(torch.equal(output, copied) for output, copied in kept.values())


def test_a_backward_hook_is_called(network):
    calls = []
    for name in ("fc1", "gate.reduce", "downsample.conv"):
        network.get_submodule(PARTS[name]).register_full_backward_hook(
            lambda module, g_in, g_out, name=name: calls.append(name)
        )
    network(images()).sum().backward()
    assert sorted(calls) == ["downsample.conv", "fc1", "gate.reduce"]
