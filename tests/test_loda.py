"""LoDa against recorded scores, tokens and gradients, its counts, and its frozen parts.

The recording is of a small network with every part of the real one, computed in float64 by another
implementation. The files in tests/data keep the large tensors of the ViT and of the injectors in half
precision, and every 31st element of large results; the whole recording is used too where it is available.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from qmamba import convert
from qmamba.errors import CapabilityError, CheckpointError
from qmamba.models import create_model, get_architecture
from qmamba.models.capabilities import DecayGroups, Positions, StageFeatures, require
from qmamba.models.loda import LoDa, is_stored

SMALL = {
    "image_size": 64, "patch_size": 16, "width": 96, "depth": 3, "heads": 3, "cnn_channels": (8, 12, 16, 24),
    "cnn_depths": (1, 2, 1, 1), "latent": 16, "grid": 2, "cross_heads": 2,
}  # fmt: skip
WHOLE = Path(__file__).parents[2] / "shared" / "oracles" / "loda"
COUNTS = {  # the specification's, to the unit
    "vit": 85_798_656,
    "cnn": 23_508_032,
    "extractor": 393_472,
    "down": 640_512,
    "attention": 197_376,
    "up": 7_686_144,
    "scale": 9_216,
    "head": 768,
}
TRAINED = COUNTS.keys() - {"vit", "cnn"}


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def random_network(**changes):
    torch.manual_seed(0)
    return create_model("loda", **{**SMALL, **changes})


def test_the_recording_in_half_precision(data_dir):
    state = load_file(data_dir / "loda_open_state.safetensors")
    io = load_file(data_dir / "loda_open_io.safetensors")
    check_recording(state, io, score=1e-3, tokens=1e-5, feature=1e-3, gradient=3e-3)


def test_the_whole_recording():
    if not WHOLE.is_dir():
        pytest.skip("the whole recording is not part of the repository")
    state, io = (load_file(WHOLE / f"open_{kind}.safetensors") for kind in ("state", "io"))
    check_recording(state, io, score=1e-6, tokens=1e-5, feature=1e-5, gradient=1e-4)


def check_recording(state, io, *, score, tokens, feature, gradient):
    """Compare scores, F_msd, the class feature, the gradient of the input and of all that is trained."""
    network = create_model("loda", **SMALL).eval()
    converted = convert.from_loda({name: tensor.float() for name, tensor in state.items()})
    network.load_state_dict(converted)
    seen = set()

    def compare(key, got, tolerance):
        got = got.detach()
        if key in io:
            want = io[key]
        else:
            key = f"every_31st.{key}"
            got, want = got.flatten()[::31], io[key]
        assert got.shape == want.shape
        assert relative(got, want) < tolerance, key
        seen.add(key)

    for i in range(2):
        images = io[f"{i}.input"].requires_grad_()
        output = network(images)
        compare(f"{i}.output", output, score)
        compare(f"{i}.cnn_tokens", network.distortion_tokens(images), tokens)
        compare(f"{i}.cls", network.class_feature(images), feature)
        (output * io[f"{i}.cotangent"]).sum().backward()
        compare(f"{i}.grad_input", images.grad, gradient)
        seen |= {f"{i}.input", f"{i}.cotangent"}
    parameters = dict(network.named_parameters())
    for name in state:
        if name.startswith("learner."):
            compare(f"grad.{name}", parameters[converted.renamed[name]].grad, gradient)
    assert seen == io.keys()
    frozen = [name for name, p in parameters.items() if p.grad is None]
    assert frozen == [name for name in parameters if name.startswith(("vit.", "cnn."))]


def test_parameters_by_part():
    with torch.device("meta"):
        network = create_model("loda")
    counts, trained = Counter(), Counter()
    for name, parameter in network.named_parameters():
        part = re.sub(r"^injectors\.\d+\.", "", name).split(".")[0]
        counts[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    assert counts == COUNTS and counts.total() == 118_234_176
    assert +trained == {part: COUNTS[part] for part in TRAINED} and trained.total() == 8_927_488


def test_multiply_adds():
    with torch.device("meta"):
        network = create_model("loda").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(23.68, rel=0.01)


def test_small_network_of_other_sizes():
    network = random_network(
        image_size=96, patch_size=32, width=60, heads=5, depth=2, mlp_ratio=2, cnn_stem=8, latent=12,
        cross_heads=3, grid=3, cnn_channels=(2, 4, 6, 8), cnn_depths=(2, 1, 1, 2),
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 96, 96)
    assert network.distortion_tokens(images).shape == (2, 4 * 9, 12)
    assert network.class_feature(images).shape == (2, 60)
    scores = network(images)
    assert scores.shape == (2, 1) and scores.abs().max() <= 1
    assert network.vit.blocks[0].mlp.fc1.out_features == 120
    alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(scores, alone, atol=1e-6)


def test_an_untrained_injector_hardly_changes_the_tokens():
    """The scales s_i start near zero, with a standard deviation of 0.02 (paper, section 3.3)."""
    network = random_network(depth=12)
    assert network.scale.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.head.weight.norm().item() == pytest.approx(1, abs=1e-6)


def test_the_score_is_a_cosine_in_float32():
    """A half-precision network loses nothing where features are long or short."""
    head = random_network().head
    feature = torch.randn(4, 96)
    want = torch.nn.functional.cosine_similarity(feature, head.weight[:, 0], dim=1)[:, None]
    assert torch.allclose(head(feature), want, atol=1e-6)
    assert torch.allclose(head(1e4 * feature), want, atol=1e-6)
    half = head.bfloat16()(feature.bfloat16())
    assert half.dtype == torch.float32 and torch.allclose(half, want, atol=1e-2)


def test_dropout_is_drawn_in_training_only():
    network = random_network(dropout=0.5, cnn_bn="frozen")
    images = torch.randn(2, 3, 64, 64)
    network.train()
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(("cnn_bn", "moves"), [("batch", True), ("frozen", False)])
def test_batch_norms_of_the_cnn_in_training(cnn_bn, moves):
    network = random_network(cnn_bn=cnn_bn).train()
    before = network.cnn.bn1.running_mean.clone()
    weights = {name: p.clone() for name, p in network.named_parameters()}
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    optimiser.step()
    assert torch.equal(network.cnn.bn1.running_mean, before) is not moves
    assert network.training and network.cnn.training is moves
    for name, parameter in network.named_parameters():
        frozen = name.startswith(("vit.", "cnn."))
        assert torch.equal(parameter, weights[name]) is frozen, name
    network.eval()
    assert not network.cnn.training


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 80), (1, 3, 224, 224)])
def test_images_of_another_shape_are_one_line(shape):
    with pytest.raises(
        ValueError, match=r"images must be \(B, 3, 64, 64\), got .*; crop or resize"
    ) as caught:
        random_network()(torch.zeros(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"widths": 96}, "loda cannot be built with .*widths"),
        ({"image_size": 65}, "image_size must be a multiple of patch_size, got 65 and 16"),
        ({"heads": 5}, "width must be a multiple of heads"),
        ({"cross_heads": 3}, "latent must be a multiple of cross_heads"),
        ({"width": 96.0}, "width must be a whole number"),
        ({"width": True}, "width must be a whole number"),
        ({"latent": 0}, "latent must be a whole number from 1"),
        ({"width": 10**12}, "width must be a whole number from 1 to 65536"),
        ({"depth": 2000}, "at most 1000"),
        ({"cnn_depths": (1, 1, 1)}, "cnn_depths must be four sizes"),
        ({"cnn_depths": "abcd"}, "cnn_depths must be four sizes"),
        ({"cnn_channels": (8, 12, 16, -1)}, "cnn_channels must be a whole number"),
        ({"dropout": 1.0}, "dropout must be a number from 0"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a number"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a number"),
        ({"cnn_bn": "train"}, "cnn_bn must be one of batch, frozen, got 'train'"),
    ],
)
def test_sizes_that_make_no_network_are_one_line(changes, line):
    with pytest.raises(ValueError, match=line) as caught:
        random_network(**changes)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def public_state():
    """A whole state dict under public names, with batch-norm statistics that are not those of a new one."""
    names = {
        r"extractor\.convs": "learner.conv",
        r"injectors\.(\d+)\.down": r"learner.down_proj.\1",
        r"injectors\.(\d+)\.attention": r"learner.cross_attn.\1",
        r"injectors\.(\d+)\.up": r"learner.up_proj.\1",
        "scale$": "learner.scale_factor",
        r"head\.": "learner.head.",
        r"cnn\.": "feature_model.",
        r"vit\.": "",
    }
    state = {}
    for name, tensor in random_network().state_dict().items():
        if not name.endswith("num_batches_tracked"):
            for ours, public in names.items():
                name, found = re.subn(f"^{ours}", public, name)
                if found:
                    break
            state[name] = tensor.clone().uniform_(0.5, 1) if "running" in name else tensor
    return state


def public_checkpoint(state, *, prefixes):
    """The part of a state dict that a public checkpoint holds."""
    learner = {n: t for n, t in state.items() if n.startswith("learner.")}
    statistics = {n: t for n, t in state.items() if "running" in n}
    if not prefixes:
        learner = {n.removeprefix("learner."): t for n, t in learner.items()}
        statistics = {n.removeprefix("feature_model."): t for n, t in statistics.items()}
    return {"learner": learner, "bn_buffer": statistics}


@pytest.mark.parametrize("prefixes", [True, False])
def test_a_public_checkpoint_leaves_the_towers_as_they_are(public_state, prefixes):
    torch.manual_seed(1)
    network = create_model("loda", **SMALL)
    before = {name: p.clone() for name, p in network.named_parameters()}
    converted = convert.load_loda(network, public_checkpoint(public_state, prefixes=prefixes))
    assert {n for n in network.state_dict() if is_stored(n)} == set(converted)
    assert set(converted.renamed) == {n for n in public_state if n.startswith("learner.") or "running" in n}
    for public, ours in converted.renamed.items():
        assert torch.equal(network.state_dict()[ours], public_state[public])
    for name, parameter in network.named_parameters():
        if name.startswith(("vit.", "cnn.")):
            assert torch.equal(parameter, before[name]), name


def test_a_public_checkpoint_fills_the_stored_part_of_a_network_without_memory(public_state):
    with torch.device("meta"):
        network = create_model("loda", **SMALL)
    get_architecture("loda").convert(network, public_checkpoint(public_state, prefixes=True))
    for name, tensor in network.state_dict().items():
        assert tensor.is_meta is not is_stored(name), name
    assert all(p.requires_grad is is_stored(n) for n, p in network.named_parameters())


def test_what_a_checkpoint_of_the_real_network_stores_is_a_thirteenth():
    with torch.device("meta"):
        state = create_model("loda").state_dict()
    stored = sum(tensor.nbytes for name, tensor in state.items() if is_stored(name))
    assert stored / 1e6 == pytest.approx(36, abs=0.5)
    assert sum(tensor.nbytes for tensor in state.values()) / 1e6 == pytest.approx(473, abs=1)


def test_names_of_a_data_parallel_state_dict_are_understood(public_state):
    wrapped = convert.from_loda({f"module.{name}": tensor for name, tensor in public_state.items()})
    plain = convert.from_loda(public_state)
    assert wrapped.keys() == plain.keys() and all(torch.equal(wrapped[n], plain[n]) for n in plain)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: {**s, "learner.router.weight": torch.zeros(1)}, "called 'learner.router.weight'"),
        (lambda s: {**s, "head.weight": torch.zeros(1)}, "called 'head.weight'"),
        (lambda s: {**s, "epoch": 3}, "'epoch' must be a tensor, got int"),
        (
            lambda s: {**s, "learner": {"head.weight": torch.zeros(96, 1)}},
            "two of its tensors are 'head.weight'",
        ),
        (lambda s: {n: t for n, t in s.items() if "scale_factor" not in n}, "lacks 'scale'"),
        (lambda s: {n: t for n, t in s.items() if n != "norm.bias"}, "lacks 'vit.norm.bias'"),
        (lambda s: {n: t for n, t in s.items() if "running" not in n}, "lacks 'cnn.bn1.num_batches"),
        (lambda s: {**s, "feature_model.fc.bias": torch.zeros(9)}, "lacks, 'cnn.fc.bias'"),
        (
            lambda s: {**s, "learner.scale_factor": torch.zeros(3, 48)},
            r"'scale' must be \(3, 96\) for this network, got \(3, 48\)",
        ),
        (lambda s: {}, "no tensors"),
        (lambda s: None, "must be a mapping, got NoneType"),
    ],
)
def test_wrong_state_dicts_are_one_line_and_load_nothing(public_state, change, line):
    torch.manual_seed(1)
    network = create_model("loda", **SMALL)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=line) as caught:
        convert.load_loda(network, change(public_state))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("depth", "last"), [(1, [0]), (3, [0, 1, 2]), (12, [2, 5, 8, 11]), (6, [1, 2, 4, 5])]
)
def test_features_of_stages(depth, last):
    network = random_network(depth=depth).eval()
    seen = {}
    for info in network.feature_info:
        module = network.get_submodule(info["module"])
        module.register_forward_hook(lambda m, _, out, name=info["module"]: seen.update({name: out}))
    images = torch.randn(2, 3, 64, 64)
    raw, features = network.forward_features(images)
    assert [info["module"] for info in network.feature_info] == [f"vit.blocks.{i}" for i in last]
    for feature, info in zip(features, network.feature_info, strict=True):
        assert feature.shape == (2, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
        assert torch.equal(feature[1, :, 2, 1], seen[info["module"]][1, 1 + 2 * 4 + 1])
    assert torch.equal(raw, network(images))


def test_activation_checkpointing_changes_no_gradient():
    network = random_network().eval()
    gradients = []
    for network.checkpointing in (False, True):
        network.zero_grad()
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        network(images).sum().backward()
        gradients.append([images.grad, *(p.grad for p in network.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert gradients[0][0].abs().max() > 0


def test_the_architecture_says_how_it_is_scored():
    protocol = get_architecture("loda").protocol
    assert (protocol.kind, protocol.crop, protocol.n_crops) == ("random", 224, 15)
    network = random_network()
    assert isinstance(network, LoDa)
    assert network.no_weight_decay() == set()
    assert isinstance(network, StageFeatures) and isinstance(network, DecayGroups)
    with pytest.raises(CapabilityError, match="'loda' has no quality map: its network does not give values"):
        require(network, Positions, "quality map")


def test_base_models_fill_what_a_checkpoint_does_not_store():
    architecture = get_architecture("loda")
    assert [base.prefix for base in architecture.bases] == ["vit.", "cnn."]
    state = random_network().state_dict()
    rest = {name for name in state if not architecture.trained(name)}
    assert rest == {n for n, p in random_network().named_parameters() if n.startswith(("vit.", "cnn."))}
