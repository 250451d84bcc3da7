"""torch.compile: whole models without a break in the graph, and the operators that it sees."""

from __future__ import annotations

import pytest
import torch
from torch import library as registry

from qmamba.models import create_model
from qmamba.ops import Route, cross_scan_routes, local_scan_routes, operators
from qmamba.ops.compile import numbers_of
from test_selective_scan import make_inputs

TINY = {"widths": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}
ORDER = ("x", "dt", "B", "C", "dt_weight", "dt_bias", "A", "D")

pytestmark = pytest.mark.skipif(
    getattr(torch.compiler, "is_exporting", None) is None, reason="torch before 2.7: no operators"
)


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(params=["torch", "native"])
def backend(request, monkeypatch):
    if request.param == "native":
        request.getfixturevalue("library")
    monkeypatch.setenv("QMAMBA_BACKEND", request.param)
    return request.param


def check(arch, mode):
    torch.manual_seed(0)
    model = create_model(arch, **TINY).eval()
    images = torch.randn(2, 3, 40, 56)
    want = model(images)
    grads = torch.autograd.grad(want.sum(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend=mode)
    got = compiled(images)
    assert torch.allclose(got, want, atol=1e-5)
    for a, b in zip(torch.autograd.grad(got.sum(), list(model.parameters())), grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * max(1, float(b.abs().max())))
    with torch.no_grad():
        assert torch.allclose(compiled(images), want, atol=1e-5)


@pytest.mark.parametrize("arch", ["lqmamba-n", "qmamba-t"])
def test_a_whole_model_is_one_graph(arch, backend):
    with torch.random.fork_rng():
        check(arch, "aot_eager")


@pytest.mark.slow
def test_inductor(library):
    with torch.random.fork_rng():
        check("lqmamba-n", "inductor")


def operands(routes, *, gated):
    inputs = make_inputs(3, 5, routes, dtype=torch.float32)
    tensors = [inputs[name].detach().requires_grad_() for name in ORDER]
    channels = tensors[0].shape[-1]
    if gated:
        shapes = (channels,), (channels,), (2, channels), (2,), (channels, 2), (channels,)
        tensors += [torch.randn(s, requires_grad=True) for s in shapes]
    return tensors


@pytest.mark.parametrize("routes", [cross_scan_routes(), local_scan_routes(2)], ids=["cross", "local"])
def test_the_operators_keep_the_rules(routes, backend):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        numbers = numbers_of(routes)
        for merge in (True, False):
            registry.opcheck(operators.scan_operator, (operands(routes, gated=False), numbers, merge, "auto"))
        registry.opcheck(operators.gated_operator, (operands(routes, gated=True), numbers))


def test_routes_as_numbers():
    routes = (Route("row"), Route("column", 3), Route("row", 7, reverse=True))
    assert numbers_of(routes) == [0, 0, 0, 1, 3, 0, 0, 7, 1]
    assert operators._routes_of(numbers_of(routes)) == routes
