"""Adapters as modules: the paper's counts, an identity at the start, what trains, what is kept."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
import pkgutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qmamba import adapters, create_model
from qmamba.adapters.style_prompt import StylePrompt, StyleStage
from qmamba.errors import AdapterError, CapabilityError
from tiny_adapters import louder
from tiny_scorer import tiny_network

METHODS = (
    "conv-prompt", "crossattn-prompt", "full", "linear-probe", "lora", "ssf", "style-prompt",
    "style-prompt-r",
)  # fmt: skip
COUNTS = {  # trained and stored; 3.83, 28.33 and 12.17 M in the paper's Table 8
    ("lqmamba-b", "style-prompt"): (3_829_784, 1_732_632),
    ("lqmamba-b", "style-prompt-r"): (3_829_784 + 3 * 1024 + 1, 1_732_632 + 3 * 1024 + 1),
    ("lqmamba-b", "conv-prompt"): (28_334_616, 28_334_616),
    ("lqmamba-b", "crossattn-prompt"): (12_172_056, 12_172_056),
    ("lqmamba-b", "ssf"): (6_133_248, 6_133_248),
    ("lqmamba-b", "linear-probe"): (3073, 3073),
    ("lqmamba-b", "full"): (93_792_577, 93_792_577),
    ("lqmamba-n", "style-prompt"): (157_336, 83_608),
}


def make(method: str, network: nn.Module | None = None, seed: int = 1, **options) -> adapters.Adapter:
    if method == "lora":
        pytest.importorskip("peft", reason="LoRA comes from peft, which is not installed")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return adapters.create(method, network or tiny_network().eval(), **options)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    return tiny_network().eval().requires_grad_(False)


def test_the_methods():
    assert adapters.list_methods() == sorted(METHODS)


@pytest.mark.parametrize(("arch", "method"), COUNTS)
def test_counts_to_the_unit(arch, method):
    with torch.device("meta"):
        adapter = adapters.create(method, create_model(arch))
    assert adapter.size == COUNTS[arch, method]
    assert sum(p.numel() for p in adapter.parameters() if p.requires_grad) == adapter.size.trained


def test_lqmamba_n_spends_the_papers_share():
    with torch.device("meta"):
        network = create_model("lqmamba-n")
        shares = [
            adapters.create("style-prompt", network, width=w).size.trained / 3_384_177 for w in (48, 256)
        ]
    assert shares == pytest.approx([0.0465, 0.81], abs=0.005)


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_adapter_changes_no_bit(method, network):
    adapter = make(method, network)
    for shape in ((1, 3, 32, 32), (3, 3, 71, 45), (2, 3, 224, 224)):
        x = images(*shape)
        with torch.no_grad():
            assert torch.equal(adapter(network, x), network(x))
        assert torch.equal(adapter(network, x), network(x))


@pytest.mark.parametrize("method", METHODS)
def test_a_learnt_one_does_and_leaves_the_network_alone(method, network):
    x, before = images(2, 3, 64, 48), {n: v.clone() for n, v in network.state_dict().items()}
    plain = network(x)
    adapter = louder(make(method, network))
    adapted = adapter(network, x)
    assert adapted.shape == plain.shape and not torch.allclose(adapted, plain, atol=1e-4)
    assert torch.equal(network(x), plain)
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_exactly_its_parameters_train(method, network):
    adapter = louder(make(method, network))
    adapter(network, images(2, 3, 40, 40)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad.any() for n, p in adapter.named_parameters() if "predict" not in n)


@pytest.mark.parametrize("method", METHODS)
def test_what_comes_before_can_be_kept(method, network):
    adapter, x = louder(make(method, network)), images(2, 3, 64, 80)
    with torch.no_grad():
        kept = adapter.before(network, x)
    assert all(t.grad_fn is None for t in kept)
    found, want = adapter.after(network, kept), adapter(network, x)
    assert torch.allclose(found, want, atol=1e-5)
    grads = [torch.autograd.grad(y.sum(), list(adapter.parameters())) for y in (found, want)]
    assert all(torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(*grads, strict=True))
    if method.startswith("style"):
        assert kept[0].shape == (2, 8, 10, 16)
    if method == "linear-probe":
        assert kept[0].shape == (2, 2, 3, 64)


def test_nothing_is_kept_for_a_backward_before_the_first_prompt(network):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        make("style-prompt", network)(network, images(1, 3, 64, 64))
    assert saved and not [shape for shape in saved if len(shape) == 4 and shape[1:3] == (16, 16)]
    (x,) = network.forward_until(images(1, 3, 64, 64), 0)
    assert x.grad_fn is None and not x.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_stored_and_restored(method, network):
    adapter, x = louder(make(method, network)), images(2, 3, 40, 56)
    stored = {name: value.half() for name, value in adapter.stored().items()}
    repeated = make(method, network, seed=2)
    repeated.restore(stored)
    assert torch.allclose(repeated(network, x), adapter(network, x), atol=2e-2, rtol=2e-2)
    twice = make(method, network, seed=5)
    twice.restore(repeated.stored())
    assert torch.equal(twice(network, x), repeated(network, x))
    name = next(iter(stored))
    for wrong in ({**stored, "more": torch.zeros(1)}, {**stored, name: torch.zeros(1, 2, 3)}, {}):
        with pytest.raises(AdapterError, match="not the weights of a"):
            repeated.restore(wrong)


@pytest.mark.parametrize("method", METHODS)
def test_copies_and_pickles(method, network):
    network = copy.deepcopy(network)
    adapter, x = louder(make(method, network)), images(1, 3, 40, 56)
    want = adapter(network, x)
    assert torch.equal(copy.deepcopy(adapter)(network, x), want)
    both = nn.ModuleList([network, adapter])
    for copied in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert torch.equal(copied[1](copied[0], x), want)
        assert copied[0].stem.conv1.weight is not network.stem.conv1.weight


# StylePrompt


def plainly(stage: StyleStage, x: torch.Tensor) -> torch.Tensor:
    """Equations 1 to 4 for one position of one image at a time, with the convolution as it is written."""
    out = torch.empty_like(x)
    for b, feature in enumerate(x):
        pooled = feature.flatten(0, 1).mean(0)
        w = torch.softmax(stage.mixture.predict.weight @ pooled + stage.mixture.predict.bias, 0)
        prompt = sum(w[n] * stage.mixture.prompts[n] for n in range(len(w)))
        style = F.conv2d(prompt.permute(2, 0, 1)[None], stage.conv.weight, padding=1)[0, :, 0, 0]
        gamma = stage.gamma.weight @ style + stage.gamma.bias
        beta = stage.beta.weight @ style + stage.beta.bias
        out[b] = feature * (1 + gamma) + beta
    return out


def test_style_prompt_is_the_papers_equations(network):
    adapter = louder(make("style-prompt", network, prompts=3, width=10))
    x = images(2, 5, 7, 16)
    assert torch.allclose(adapter.prompts[0](x), plainly(adapter.prompts[0], x), atol=1e-5)


def test_eight_ninths_of_the_kernel_never_act(network):
    adapter = louder(make("style-prompt", network))
    assert isinstance(adapter, StylePrompt)
    adapter(network, images(2, 3, 32, 32)).sum().backward()
    for name in adapter._kernels():
        grad = adapter.get_parameter(name).grad
        assert grad[:, :, 1, 1].any()
        grad[:, :, 1, 1] = 0
        assert not grad.any()
    assert len(adapter._kernels()) == 4
    inert = sum(8 * p[:, :, 0, 0].numel() for p in map(adapter.get_parameter, adapter._kernels()))
    assert adapter.size.trained - adapter.size.stored == inert


@pytest.mark.parametrize("size", [(7, 7), (3, 5), "layer", [2, 2]])
def test_prompts_with_a_size(size, network):
    adapter, x = make("style-prompt", network, size=size), images(2, 3, 71, 45)
    assert torch.equal(adapter(network, x), network(x))
    assert adapter.size.trained == adapter.size.stored
    moved = louder(adapter)(network, x)
    assert moved.isfinite().all() and not torch.allclose(moved, network(x))
    stage = adapter.prompts[0]
    out = stage(torch.ones(1, 6, 6, 16))
    assert not torch.allclose(out[:, 0, 0], out[:, 5, 5])  # the place matters now
    sides = [(28, 28), (14, 14), (7, 7), (7, 7)] if size == "layer" else [tuple(size)] * 4
    assert [part.mixture.prompts.shape[1:3] for part in adapter.prompts] == sides


@pytest.mark.parametrize("method, options", [("style-prompt", {"size": (14, 14)}), ("ssf", {"grid": 14})])
def test_prompts_with_a_size_in_bfloat16(method, options, network):
    adapter, x = louder(make(method, network, **options)), images(2, 3, 71, 45)  # stages of 18 × 12 to 3 × 2
    with torch.inference_mode():
        expected, plain = adapter(network, x), network(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert (adapter(network, x) - expected).abs().max() < 0.75 * (expected - plain).abs().max()
        halves = copy.deepcopy(adapter).bfloat16()(copy.deepcopy(network).bfloat16(), x.bfloat16())
    assert halves.isfinite().all()


def test_the_number_of_prompts(network):
    per_prompt = 4 * 12 + sum(network.out_widths) + 4  # the prompts, their weights' Linears
    sizes = [make("style-prompt", network, prompts=n).size.trained for n in (1, 2, 10)]
    assert (sizes[1] - sizes[0], sizes[2] - sizes[0]) == (per_prompt, 9 * per_prompt)


# LoRA, by its library


def test_lora_shares_the_tensors_of_the_base():
    network = tiny_network().eval()
    adapter = make("lora", network)
    assert all(p.requires_grad for p in network.parameters())  # as it was
    tuned = adapter.__dict__["_tuned"]
    own = {id(p) for p in adapter.parameters()}
    shared = {id(p) for p in network.parameters()}
    assert {id(p) for p in tuned.parameters()} == own | shared and not own & shared
    assert len(list(network.state_dict())) == len(shared)  # the base has got no layers of peft's
    with pytest.raises(AdapterError, match="another network"):
        adapter(tiny_network().eval(), images(1, 3, 32, 32))
    x = images(1, 3, 32, 32)
    louder(adapter)
    want = adapter(network, x)
    moved = adapter.double()(network.double(), x.double())  # both, since the adapter shares the network's
    assert torch.allclose(moved.float(), want, atol=1e-3)


def test_peft_itself_on_the_backbone():
    """peft's own verbs on our network, without any of ours."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    network, x = tiny_network().eval(), images(2, 3, 40, 40)
    plain = network(x).detach()
    model = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["in_proj", "fc1", "fc2"]))
    assert torch.equal(model(x), plain)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p += 0.1
        assert not torch.allclose(model(x), plain)
        with model.disable_adapter():
            assert torch.equal(model(x), plain)


def test_without_peft_lora_says_so(monkeypatch, network):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AdapterError, match=r"pip install .qmamba\[lora\]"):
        adapters.create("lora", network)


# Errors, compilation, documentation


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("style-promt", {}, "near names: style-prompt"),
        ("style-prompt", {"n": 6}, "no option 'n'; its options are prompts, size, width"),
        ("full", {"n": 6}, "its options are none"),
        ("style-prompt", {"prompts": 0}, "prompts must be an integer of at least 1, got 0"),
        ("style-prompt", {"width": 2.5}, "width must be an integer"),
        ("style-prompt", {"size": (0, 1)}, "size must be"),
        ("style-prompt", {"size": "large"}, "size must be"),
        ("ssf", {"grid": True}, "grid must be"),
        ("crossattn-prompt", {"width": 10}, "width must be a multiple of heads"),
    ],
)
def test_mistakes_are_one_line(method, options, says, network):
    with pytest.raises(AdapterError) as caught:
        adapters.create(method, network, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_only_for_our_networks():
    with pytest.raises(CapabilityError, match="Linear has no adapters"):
        adapters.create("style-prompt", nn.Linear(3, 1))


@pytest.mark.skipif(getattr(torch.compiler, "is_exporting", None) is None, reason="torch before 2.7")
@pytest.mark.parametrize("method", ["style-prompt-r", "ssf", "conv-prompt", "crossattn-prompt"])
def test_an_adapted_network_is_one_graph(method, network):
    adapter, x = louder(make(method, network)), images(2, 3, 40, 56)
    torch.compiler.reset()
    try:
        compiled = torch.compile(lambda x: adapter(network, x), fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert torch.allclose(compiled(x), adapter(network, x), atol=1e-5)
    finally:
        torch.compiler.reset()


def test_one_file_adds_one(network):
    from qmamba.adapters import registry

    @adapters.register("louder-head")
    class LouderHead(adapters.Adapter):
        def __init__(self, network, options):
            super().__init__(options, head=copy.deepcopy(network.head))

    try:
        assert adapters.create("louder-head", network).size == (193, 193)
    finally:
        del registry._KINDS["louder-head"]


def test_examples_in_docstrings():
    for module in pkgutil.walk_packages(adapters.__path__, "qmamba.adapters."):
        failed, _ = doctest.testmod(importlib.import_module(module.name))
        assert failed == 0
    assert doctest.testmod(adapters).attempted >= 5 and doctest.testmod(adapters).failed == 0
