"""A scorer where it is not alone: little memory, an outer module of another type, transforms, a compiler."""

from __future__ import annotations

import gc
import io
import threading
import time
import weakref
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qmamba.adapters import create
from qmamba.errors import ImageError
from qmamba.images import Decoded
from qmamba.ops import GateWeights, cross_scan_routes, gate_routes, local_scan_routes, selective_scan
from qmamba.ops.fused_scan import gated_scan
from qmamba.ops.scan.composed import selective_scan_composed
from qmamba.ops.scan.tensors import ScanTensors
from qmamba.protocol import Protocol
from qmamba.scoring import Scorer, load
from qmamba.scoring.stream import decode_ahead
from test_selective_scan import make_inputs
from tiny_scorer import encode, photo, quick_config, tiny_config, tiny_network


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


# Memory

FAILURES = {
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes"
    ),
    "python": MemoryError(),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


class Starved(nn.Module):
    """A network for which memory does not suffice when it sees a dark image."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__()
        self.weight, self.failure = nn.Parameter(torch.ones(1)), failure
        self.seen: list[Any] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(weakref.ref(images))
        if images.mean() < 0:
            raise self.failure
        return self.weight * images.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("kind", FAILURES)
def test_an_image_without_memory_is_an_error_and_the_rest_goes_on(kind: str) -> None:
    network = Starved(FAILURES[kind])
    scorer = Scorer(network, quick_config())
    light, dark = photo(70, 80) // 8 + 220, photo(70, 80) // 8
    results = [result for _, result in scorer.iter_scores([light, dark, light])]
    assert isinstance(results[0], float) and results[2] == results[0]
    assert isinstance(results[1], ImageError) and "not enough memory on cpu" in str(results[1])
    scores = scorer.score([dark, light], on_error="nan")
    assert scores.isnan().tolist() == [True, False]
    network.failure.__traceback__ = None  # the test's own hold on the batch
    gc.collect()
    assert not any(ref() is not None for ref in network.seen), "kept errors keep no pixels"


def test_another_failure_of_the_network_is_not_hidden() -> None:
    scorer = Scorer(Starved(RuntimeError("weights are on another device")), quick_config())
    with pytest.raises(RuntimeError, match="another device"):
        scorer.score(photo(70, 80) // 8)


def test_no_memory_to_decode(monkeypatch: pytest.MonkeyPatch, scorer: Scorer) -> None:
    from qmamba.scoring import stream

    def decode_for(image: Any, least: Any, *, max_pixels: int) -> Decoded:
        if image == "large":
            raise FAILURES["cpu"]
        return Decoded(torch.zeros(3, 64, 64, dtype=torch.uint8), image, 64, 64)

    monkeypatch.setattr(stream, "decode_for", decode_for)
    results = [result for _, result in scorer.iter_scores(["large", "small"])]
    assert "not enough memory to decode" in str(results[0]) and isinstance(results[1], float)


# Types


@pytest.mark.parametrize(
    "change",
    [
        methodcaller("half"),
        methodcaller("bfloat16"),
        methodcaller("double"),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float16),
        lambda module: module.type(torch.float64),
    ],
)
def test_an_outer_module_leaves_the_type_alone(scorer: Scorer, change: Callable[[nn.Module], Any]) -> None:
    scorer.add_adapter("mine", create("ssf", scorer.base()))
    scorer.set_adapter("mine")
    image, outer = photo(70, 83), nn.Sequential(nn.Linear(2, 2), scorer)
    want = scorer.score(image)
    change(outer)
    assert outer[0].weight.dtype != torch.float32
    assert {p.dtype for p in scorer.parameters()} == {torch.float32} and scorer.score(image) == want
    change(scorer)
    assert torch.float32 not in {p.dtype for p in scorer.parameters()}
    assert scorer.float().score(image) == pytest.approx(want, abs=0.02)


def test_an_outer_module_takes_it_to_its_device(scorer: Scorer) -> None:
    nn.ModuleList([scorer]).to("meta", torch.float16)
    assert {(p.device.type, p.dtype) for p in scorer.parameters()} == {("meta", torch.float32)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_default_types_with_an_adapter(dtype: torch.dtype) -> None:
    image = photo(70, 83)
    want = load(adapter="video-stills").score(image)
    torch.set_default_dtype(dtype)
    try:
        scorer = load(adapter="video-stills")
        assert scorer.score(image) == want
        assert scorer.quality_map(image).score == want
        with torch.device("meta"):
            assert load(adapter="video-stills").score(image) == want
    finally:
        torch.set_default_dtype(torch.float32)


# Derivatives


@pytest.mark.parametrize("routes", [cross_scan_routes(), local_scan_routes(2)])
@pytest.mark.parametrize("n", [1, 2])
def test_the_composed_scan_is_the_loop(routes: Any, n: int) -> None:
    inputs = make_inputs(3, 5, routes, n=n)
    for merge in (True, False):
        want = selective_scan(**inputs, routes=routes, merge=merge, backend="reference")
        got = selective_scan_composed(ScanTensors(**inputs), tuple(routes), merge)
        assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "native", "reference"])
def test_second_derivatives_of_a_scan(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "native":
        request.getfixturevalue("library")
    routes = local_scan_routes(2)
    inputs = make_inputs(3, 4, routes, batch=1, channels=2)
    dtype = torch.float32 if backend == "native" else torch.float64
    leaves = [inputs[name].detach().to(dtype).requires_grad_() for name in inputs]

    def penalty(name: str) -> list[Tensor]:
        # B is computed from x: its own place's gradient must not be counted in that of x.
        given = dict(zip(inputs, leaves, strict=True))
        given["B"] = given["B"] + given["x"].mean(-1)[..., None, None]
        y = selective_scan(**given, routes=routes, backend=name)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    for got, want in zip(penalty(backend), penalty("reference"), strict=True):
        assert torch.allclose(got, want, rtol=1e-3 if backend == "native" else 1e-9, atol=1e-6)


def test_second_derivatives_of_gate_and_gated_scan() -> None:
    routes = local_scan_routes(2)
    inputs = make_inputs(3, 4, routes, batch=1, channels=8)
    gate = [torch.randn(s, dtype=torch.float64) for s in ((8,), (8,), (2, 8), (2,), (8, 2), (8,))]
    leaves = [t.detach().requires_grad_() for t in (*inputs.values(), *gate)]

    def scan(*tensors: Tensor) -> Tensor:
        given = dict(zip(inputs, tensors, strict=False))
        return gated_scan(**given, gate=GateWeights(*tensors[8:]), routes=routes)

    assert torch.autograd.gradcheck(scan, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(scan, leaves, fast_mode=True)
    y = torch.randn(1, 4, 2, 3, 8, dtype=torch.float64, requires_grad=True)
    gates = [g.requires_grad_() for g in gate]
    assert torch.autograd.gradgradcheck(
        lambda y, *w: gate_routes(y, GateWeights(*w)), (y, *gates), fast_mode=True
    )


@pytest.mark.parametrize("adapter", [False, True])
def test_transforms_of_torch_func(scorer: Scorer, adapter: bool) -> None:
    if adapter:
        scorer.add_adapter("mine", create("style-prompt", scorer.base()))
        scorer.set_adapter("mine")
    images = torch.rand(2, 3, 64, 72, generator=torch.Generator().manual_seed(0))
    leaf = images.clone().requires_grad_()
    scores = scorer(leaf)
    (want,) = torch.autograd.grad(scores.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(want.square().sum(), leaf)
    close = {"rtol": 1e-3, "atol": 1e-4}

    def total(x: Tensor) -> Tensor:
        return scorer(x).sum()

    def one(x: Tensor) -> Tensor:
        return scorer(x[None])[0]

    assert torch.allclose(torch.func.grad(total)(images), want, **close)
    assert torch.allclose(torch.func.vmap(one)(images), scores, atol=1e-5)
    assert torch.allclose(torch.func.vmap(torch.func.grad(one))(images), want, **close)
    assert torch.allclose(torch.func.jacrev(scorer)(images)[1, 1], want[1], **close)
    along = torch.func.jvp(total, (images,), (torch.ones_like(images),))[1]
    assert torch.allclose(along, want.sum(), **close)
    twice = torch.func.grad(lambda x: torch.func.grad(total)(x).square().sum())(images)
    assert (twice - second).abs().max() <= 1e-2 * second.abs().max()
    with pytest.raises(ImageError, match="values from"):
        torch.func.vmap(one)(images + 3)


# Compilation

SIZES = [(64, 80), (70, 96), (100, 64), (81, 77), (128, 96), (90, 130)]


def test_a_compiled_network_is_compiled_once_for_all_sizes(scorer: Scorer, fresh_graphs: None) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()  # runs each graph in eager mode
    config = tiny_config().replace(protocol=Protocol("scales", max_crops=0, sides=(64, 96)))
    scorer = Scorer(tiny_network(), config)
    batches = [torch.rand(2, 3, *size) for size in SIZES]
    want = [scorer(batch) for batch in batches]
    scorer.network.compile(backend=counter, dynamic=True)  # the recipe of docs/loss.md
    for batch, scores in zip(batches, want, strict=True):
        assert torch.allclose(scorer(batch), scores, atol=1e-5)
    assert counter.frame_count <= 2


# Threads


class Stalled(io.BytesIO):
    """An image file whose contents never come until the event is set."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__(encode(photo(40, 40, 0)))
        self.event = event

    def read(self, size: int | None = -1) -> bytes:
        self.event.wait(60)
        return super().read(size)


def test_closing_a_stream_does_not_wait_for_its_threads() -> None:
    """The garbage collector closes abandoned streams in threads that must not wait for another."""
    event = threading.Event()
    stream = decode_ahead(iter([photo(40, 40, 0), Stalled(event)]), 10**6, held=True)
    next(stream)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 30
    event.set()
