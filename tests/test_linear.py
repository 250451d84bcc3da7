"""The Linear that the networks use is F.linear, whatever computes it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from qmamba.ops import linear
from qmamba.ops.matmul import _available


def operations(function) -> set[str]:
    with torch.profiler.profile() as profile:
        function()
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(
    ("shape", "out"), [((2, 5, 7, 24), 48), ((3, 17), 1), ((16,), 5), ((1, 301, 33), 65), ((2, 0, 8), 4)]
)
def test_values_and_every_gradient(shape, out, bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(out, shape[-1], generator=generator)
    tensors = [x, weight] + [torch.randn(out, generator=generator)] * bias
    ours = [t.clone().requires_grad_() for t in tensors]
    theirs = [t.double().requires_grad_() for t in tensors]
    y, expected = linear(*ours), F.linear(*theirs)
    cotangent = torch.randn(y.shape, generator=generator)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(y, ours, cotangent)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, theirs, cotangent.double()), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        assert linear(*tensors).equal(y)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(4, 8, 6, 6).permute(0, 2, 3, 1),
        torch.randn(10, 16)[:, :8],
        torch.randn(10, 16)[::3, 1:9],
        torch.randn(1, 8).expand(5, 8),
        torch.randn(33)[1:].view(4, 8),
    ],
    ids=["permuted", "columns", "rows", "expanded", "unaligned"],
)
def test_any_layout(x):
    weight = torch.randn(8, 12).t()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_wanted():
    x, weight = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(5, 4))


def test_a_gradient_of_the_gradient():
    x = torch.randn(3, 4, dtype=torch.float32, requires_grad=True)
    weight, bias = torch.randn(5, 4, requires_grad=True), torch.randn(5, requires_grad=True)

    def second(function):
        (g,) = torch.autograd.grad(function(x, weight, bias).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), (x, weight, bias))

    for got, wanted in zip(second(linear), second(F.linear), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def test_autocast_and_other_dtypes_are_torchs():
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert linear(x.bfloat16(), weight.bfloat16()).equal(F.linear(x.bfloat16(), weight.bfloat16()))
    assert linear(x.to("meta"), weight.to("meta")).is_meta


def test_a_counter_of_operations_sees_it():
    with FlopCounterMode(display=False) as counter:
        linear(torch.randn(3, 4), torch.randn(5, 4))
    assert counter.get_total_flops() == 2 * 3 * 4 * 5


def test_a_tracer_records_what_runs_anywhere():
    traced = torch.jit.trace(linear, (torch.randn(3, 4), torch.randn(5, 4)))
    assert "mkldnn" not in str(traced.graph)


@pytest.mark.skipif(not _available(), reason="this torch or this CPU has nothing better than F.linear")
def test_onednn_computes_it_unless_it_is_switched_off():
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    assert "mkldnn::_linear_pointwise" in operations(lambda: linear(x, weight))
    with torch.backends.mkldnn.flags(enabled=False):
        assert "mkldnn::_linear_pointwise" not in operations(lambda: linear(x, weight))


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_is_kept_for_a_gradient_that_is_not_wanted(trained):
    """A frozen network in a loss: what its Linears are given is not needed again."""
    x = torch.randn(50, 4, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=trained)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        linear(x, weight)
    assert ((50, 4) in kept) == trained
