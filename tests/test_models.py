"""Every architecture: exact sizes, any image, and the counter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import qmamba
from qmamba.errors import UnknownModelError
from qmamba.models import Architecture, create_model, get_architecture, register, registry
from qmamba.models.qmamba import cpu
from qmamba.ops import scratch

PARAMETERS = {  # the specification's table, to the unit; multiply-adds as the paper prints them, in G
    "qmamba-t": (27_993_409, 4.47),
    "qmamba-s": (49_379_521, 8.71),
    "qmamba-b": (87_533_825, 15.35),
    "lqmamba-t": (29_877_841, 4.44),
    "lqmamba-s": (52_912_369, 8.66),
    "lqmamba-b": (93_792_577, 15.30),
    "lqmamba-n": (3_384_177, None),
}
TINY = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}


def test_the_table_is_the_registry():
    assert sorted(PARAMETERS) == [name for name in qmamba.list_archs() if name != "loda"]


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    toy = register(Architecture("toy", torch.nn.Linear))
    assert get_architecture("toy") is toy and "toy" in qmamba.list_archs()
    options = {"in_features": 2, "out_features": 1}
    assert create_model("toy", **options).overrides == options
    for name in ("toy", "qmamba-t"):
        with pytest.raises(ValueError, match=f"'{name}' is registered already"):
            register(Architecture(name, torch.nn.Identity))
    assert get_architecture("qmamba-t").build is not torch.nn.Identity


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameters_and_operations(arch):
    with torch.device("meta"):
        model = create_model(arch)
    counted = qmamba.count(model, (224, 224))
    parameters, paper = PARAMETERS[arch]
    assert counted.parameters == sum(p.numel() for p in model.parameters()) == parameters
    if paper is not None:
        assert counted.macs / 1e9 == pytest.approx(paper, rel=0.015)
    if arch.startswith("qmamba"):  # the paper's own way to count
        assert (counted.macs + counted.norms) / 1e9 == pytest.approx(paper, rel=0.001)


def test_counting_does_nothing_to_the_model():
    model = create_model("lqmamba-n", **TINY)
    before = {n: p.clone() for n, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    qmamba.count(model, (64, 96))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("arch", PARAMETERS)
@pytest.mark.parametrize("size", [(32, 32), (33, 61), (97, 40)])
def test_any_size_any_batch(arch, size):
    torch.manual_seed(0)
    model = create_model(arch, **TINY).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        out = model(images)
        assert out.shape == (2, 1)
        assert out.isfinite().all()
        alone = torch.cat([model(image[None]) for image in images])
        assert torch.allclose(out, alone, atol=1e-6)
        raw, features = model.forward_features(images)
        assert torch.equal(raw, out)
        for feature, info in zip(features, model.feature_info, strict=True):
            sides = [-(-side // info["reduction"]) for side in size]
            assert tuple(feature.shape) == (2, info["num_chs"], *sides)


def test_gradients_are_the_same_with_and_without_the_image_by_image_path():
    """Without gradients the CPU works image by image, with the results of the whole batch."""
    torch.manual_seed(0)
    model = create_model("lqmamba-n", **TINY).eval()
    images = torch.randn(3, 3, 48, 64)
    with torch.no_grad():
        quick = model(images)
    assert torch.allclose(model(images), quick, atol=1e-6)


@pytest.mark.parametrize("arch", ["lqmamba-n", "qmamba-t"])
@pytest.mark.parametrize("size", [(48, 64), (33, 61), (97, 40), (70, 131)])
def test_some_rows_and_positions_at_a_time_are_the_same(arch, size, monkeypatch):
    """What only large images meet: parts of every kind, and memory that is used again."""
    torch.manual_seed(0)
    model = create_model(arch, **TINY).eval()
    for p in model.parameters():
        p.requires_grad_(True).data.add_(torch.randn_like(p) / 20)
    images = torch.randn(2, 3, *size)
    raw, features = model.forward_features(images)  # with gradients: all at once
    monkeypatch.setattr(cpu, "ELEMENTS", 300)
    monkeypatch.setattr(cpu, "SCANNED", 200)
    monkeypatch.setattr(scratch, "KEPT", 0)
    with torch.no_grad():
        for _ in range(2):
            quick, quick_features = model.forward_features(images)
            assert torch.allclose(quick, raw, atol=1e-5)
            for got, want in zip(quick_features, features, strict=True):
                assert torch.allclose(got, want, atol=1e-4)
    assert "large" not in scratch._local.__dict__


def test_drop_path_grows_over_the_blocks_and_only_trains():
    model = create_model("lqmamba-n", **TINY, drop_path=0.3)
    rates = [stage.blocks[0].drop_path.rate for stage in model.stages]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    model.train()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_initialisation_of_the_scan():
    torch.manual_seed(0)
    ss2d = create_model("lqmamba-n", widths=(64, 8, 8, 8), depths=(1, 1, 1, 1)).stages[0].blocks[0].ss2d
    step = torch.nn.functional.softplus(ss2d.dt_bias)
    assert step.min() >= 1e-4 * 0.99 and step.max() <= 0.1 * 1.01
    assert step.log().std() > 1.0  # log-uniform over two decades
    assert torch.equal(ss2d.D, torch.ones_like(ss2d.D))
    assert torch.equal(ss2d.A_log, torch.zeros_like(ss2d.A_log))  # log 1, for N = 1
    assert ss2d.dt_weight.abs().max() <= 4**-0.5


def test_nothing_is_computed_for_parameters_without_data():
    """On the device "meta" torch would import its compiler for it, which takes seconds."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function)
            return function(*args, **(kwargs or {}))

    calls = []
    ss2d = create_model("lqmamba-n", **TINY).stages[0].blocks[0].ss2d
    for device, expected in (("cpu", True), ("meta", False)):
        ss2d.to(device)
        calls.clear()
        with Watch():
            ss2d.reset_ssm_parameters()
        assert bool(calls) == expected


def test_what_should_not_decay():
    model = create_model("lqmamba-n", **TINY)
    still = model.no_weight_decay()
    assert {
        "stem.conv1.bias",
        "stages.0.blocks.0.ss2d.A_log",
        "stages.0.blocks.0.ss2d.D",
        "head.norm.weight",
    } <= still
    assert {"stem.conv1.weight", "stages.0.blocks.0.ss2d.dt_weight", "head.fc.weight"}.isdisjoint(still)


@pytest.mark.parametrize(
    ("arch", "overrides", "error", "message"),
    [
        ("qmamba-x", {}, UnknownModelError, "near names: qmamba-"),
        ("resnet50", {}, UnknownModelError, "lqmamba-n"),
        ("qmamba-t", {"width": (1, 2)}, ValueError, "width"),
        ("qmamba-t", {"widths": (8, 16)}, ValueError, "one entry per stage"),
        ("qmamba-t", {"widths": (6, 16, 32, 64)}, ValueError, "multiples of 4"),
        ("qmamba-t", {"depths": (1, 1, 0, 1)}, ValueError, "positive"),
        ("qmamba-t", {"windows": (2, 2)}, ValueError, "one entry per stage"),
        ("qmamba-t", {"drop_path": 1.0}, ValueError, "drop_path"),
    ],
)
def test_what_cannot_be_built_says_why(arch, overrides, error, message):
    with pytest.raises(error, match=message):
        create_model(arch, **overrides)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 31, 64)])
def test_images_of_wrong_shape_are_refused(shape):
    model = create_model("lqmamba-n", **TINY)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)|at least 32"):
        model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"drop_path": None}, "drop_path must be a number"),
        ({"mlp_ratio": 0}, "mlp_ratio must be between"),
        ({"mlp_ratio": -1}, "mlp_ratio must be between"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio must be between"),
        ({"windows": 7}, "one entry per stage"),
        ({"widths": "abcd"}, "one entry per stage"),
        ({"depths": (10**9, 1, 1, 1)}, "at most 1000"),
        ({"widths": (10**12,) * 4}, "at most 65536"),
    ],
)
def test_overrides_that_make_no_network_are_one_line(overrides, line):
    with pytest.raises(ValueError, match=line) as caught:
        create_model("lqmamba-n", **{**TINY, **overrides})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", [None, ["qmamba-t"], "QMAMBA-T"])
def test_no_such_architecture_is_one_line_whatever_was_given(arch):
    with pytest.raises(UnknownModelError, match=r"names: .*qmamba-t"):
        create_model(arch)


def test_overrides_from_numpy_are_plain_numbers():
    model = create_model("lqmamba-n", **{**TINY, "depths": np.ones(4, int)}, drop_path=np.float32(0.5))
    assert json.loads(json.dumps(model.overrides)) == {
        "widths": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "drop_path": 0.5
    }  # fmt: skip


def test_counting_a_half_precision_network():
    model = create_model("lqmamba-n", **TINY)
    assert qmamba.count(model, (64, 64)) == qmamba.count(model.half(), np.array([64, 64]))


@pytest.mark.parametrize("size", [224, (224,), (64.0, 64.0), (-64, 64), (31, 64)])
def test_counting_at_no_size_is_one_line(size):
    with pytest.raises(ValueError, match=r"size must be|at least 32"):
        qmamba.count(create_model("lqmamba-n", **TINY), size)


def test_counting_another_module_is_one_line():
    for other, message in ((torch.nn.Linear(3, 3), "and Linear does not"), (torch.relu, "must be a torch")):
        with pytest.raises(ValueError, match=message) as caught:
            qmamba.count(other)
        assert "\n" not in str(caught.value)


class Convnet(torch.nn.Module):
    """Of another family: a convolution, a norm with buffers, a product of its own, and a Linear."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 3, stride=2, padding=1, groups=1)
        self.norm = torch.nn.BatchNorm2d(width)
        self.gram = Gram()
        self.fc = torch.nn.Linear(width * width, 1)

    def forward(self, images):
        return self.fc(self.gram(self.norm(self.conv(images))).flatten(1))


class Gram(torch.nn.Module):
    def forward(self, x):
        x = x.flatten(2)
        return x @ x.transpose(1, 2)

    def multiply_adds(self, x):
        return x.shape[1] * x[0].numel()


def test_counting_a_network_of_another_family():
    model = Convnet()
    counted = qmamba.count(model, (20, 30))
    assert counted.parameters == 3 * 4 * 9 + 4 + 2 * 4 + 16 + 1
    assert counted.macs == 10 * 15 * 4 * 27 + 4 * (4 * 10 * 15) + 16
    assert counted.norms == 5 * 4 * 10 * 15
    assert model.norm.num_batches_tracked == 0


def test_an_empty_batch_gives_no_scores_with_and_without_gradients():
    for head in ("mean", "statistics"):
        model = create_model("lqmamba-n", **TINY, head=head)
        images = torch.zeros(0, 3, 64, 64)
        assert model(images).shape == torch.no_grad()(model)(images).shape == (0, 1)
