"""The MLP that is done some positions at a time is Linear, GELU, Linear."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from qmamba.models.qmamba.layers import MLP
from qmamba.ops import linear, mlp

module = importlib.import_module("qmamba.ops.feed_forward")


def theirs(x, weight1, bias1, weight2, bias2):
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def arguments(shape=(2, 5, 3, 8), hidden=12, out=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = shape, (hidden, shape[-1]), (hidden,), (out, hidden), (out,)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@pytest.fixture(params=[1, 48, 2**20], ids=["position by position", "four", "all"])
def hidden_at_once(request, monkeypatch):
    monkeypatch.setattr(module, "HIDDEN", request.param)


@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (7, 8), (8,), (0, 8), (1, 3, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_every_gradient(hidden_at_once, shape, dtype):
    ours = arguments(shape, dtype=dtype)
    reference = [t.detach().double().requires_grad_() for t in ours]
    y, expected = mlp(*ours), theirs(*reference)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(y.double(), expected, **close)
    cotangent = torch.randn(y.shape, dtype=dtype)
    wanted = torch.autograd.grad(expected, reference, cotangent.double())
    for got, w in zip(torch.autograd.grad(y, ours, cotangent), wanted, strict=True):
        torch.testing.assert_close(got.double(), w, **close)


def test_first_and_second_derivatives(hidden_at_once):
    assert torch.autograd.gradcheck(mlp, arguments())
    assert torch.autograd.gradgradcheck(mlp, arguments((2, 3, 4), 5, 2))


@pytest.mark.parametrize("wanted", range(5), ids=["x", "weight1", "bias1", "weight2", "bias2"])
def test_only_the_gradients_that_are_wanted(hidden_at_once, wanted):
    ours = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(arguments())]
    (expected,) = torch.autograd.grad(theirs(*ours).pow(2).sum(), ours[wanted])
    mlp(*ours).pow(2).sum().backward()
    torch.testing.assert_close(ours[wanted].grad, expected)
    assert all(t.grad is None for i, t in enumerate(ours) if i != wanted)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(4, 8, 6, 6).permute(0, 2, 3, 1),
        torch.randn(10, 16)[::3, 1:9],
        torch.randn(1, 8).expand(5, 8),
    ],
    ids=["permuted", "rows", "expanded"],
)
def test_any_layout(x):
    weights = [t.detach().float() for t in arguments()[1:]]
    for given in (x, x.clone(memory_format=torch.contiguous_format)):
        given.requires_grad_()
    ours, expected = (f(x, *weights) for f in (mlp, theirs))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    g = torch.randn(expected.shape).transpose(0, 1).contiguous().transpose(0, 1)
    got, wanted = (torch.autograd.grad(y, x, g)[0] for y in (ours, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_less_is_kept_than_by_torch():
    def kept(function):
        sizes = {}

        def pack(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            given = arguments((1000, 16), 64, 16)
            held = function(*given)
        del held
        return sum(sizes.values())

    assert kept(mlp) < 0.65 * kept(theirs)


def test_autocast_is_torchs():
    ours = [t.detach().float().requires_grad_() for t in arguments()]
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp(*ours).equal(theirs(*ours))


class TestTheLayer:
    def used(self, layer, monkeypatch):
        calls = []
        monkeypatch.setattr(
            importlib.import_module("qmamba.models.qmamba.layers"),
            "mlp",
            lambda *a: calls.append(1) or theirs(*a),
        )
        out = layer(torch.randn(3, 8))
        return bool(calls), out

    def test_as_a_whole(self, monkeypatch):
        assert self.used(MLP(8, 16), monkeypatch)[0]

    @pytest.mark.parametrize("which", ["fc1", "fc2"])
    def test_not_where_somebody_looks_at_a_linear(self, which, monkeypatch):
        seen = []
        layer = MLP(8, 16)
        getattr(layer, which).register_forward_hook(lambda m, a, out: seen.append(out.shape))
        assert not self.used(layer, monkeypatch)[0]
        assert len(seen) == 1

    def test_not_where_a_linear_is_another(self, monkeypatch):
        layer = MLP(8, 16)
        nn.utils.parametrizations.weight_norm(layer.fc1)
        assert not self.used(layer, monkeypatch)[0]
        layer = MLP(8, 16)
        layer.fc2 = nn.Sequential(layer.fc2, nn.Dropout(0.0))
        assert not self.used(layer, monkeypatch)[0]


class TestTransforms:
    """What torch.func and forward mode get is torch's: Functions break there, oneDNN loses the tangent."""

    @pytest.mark.parametrize(
        "function", [mlp, lambda x, w1, b1, w2, b2: linear(x, w1, b1)], ids=["mlp", "linear"]
    )
    def test_gradient_and_derivative_along_a_direction(self, function):
        given = [t.detach().float() for t in arguments()]
        direction = torch.randn(given[0].shape)

        def of_x(x):
            return function(x, *given[1:]).sum()

        x = given[0].clone().requires_grad_()
        (expected,) = torch.autograd.grad(of_x(x), x)
        torch.testing.assert_close(torch.func.grad(of_x)(given[0]), expected)
        _, along = torch.func.jvp(of_x, (given[0],), (direction,))
        torch.testing.assert_close(along, (expected * direction).sum(), rtol=1e-4, atol=1e-4)
        with forward_ad.dual_level():
            dual = function(forward_ad.make_dual(given[0], direction), *given[1:]).sum()
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, along, rtol=1e-4, atol=1e-4)
