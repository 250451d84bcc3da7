"""The route gate against the same formula in plain autograd."""

from __future__ import annotations

import pytest
import torch

from qmamba.ops import GateWeights, gate_routes
from qmamba.ops.route_gate import gate_routes_reference

NAMES = GateWeights._fields


def make(grid=(3, 5), batch=2, routes=4, channels=16, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = [(batch, routes, *grid, channels), (channels,), (channels,), (channels // 8, channels)]
    shapes += [(channels // 8,), (channels, channels // 8), (channels,)]
    tensors = [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
    tensors[0] = tensors[0] * 3 + 5  # a mean that is not small beside the deviation
    return [t.requires_grad_() for t in tensors]


def plain(y, *weights):
    return gate_routes_reference(y, GateWeights(*weights))


def ours(y, *weights):
    return gate_routes(y, GateWeights(*weights))


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 13)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-5)])
def test_value_and_gradients(grid, dtype, tolerance):
    tensors = make(grid, dtype=dtype)
    truth = [t.detach().double().requires_grad_() for t in tensors]
    got, want = ours(*tensors), plain(*truth)
    assert torch.allclose(got.double(), want, rtol=0, atol=tolerance * want.abs().max().item())
    cotangent = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad(got, tensors, cotangent.to(dtype))
    for name, g, w in zip(("y", *NAMES), grads, torch.autograd.grad(want, truth, cotangent), strict=True):
        assert (g.double() - w).abs().max() <= tolerance * max(w.abs().max().item(), 1.0), name


def test_half_precision_is_rounded_once():
    tensors = [t.detach() for t in make(dtype=torch.bfloat16)]
    want = ours(*(t.float() for t in tensors))
    assert torch.equal(ours(*tensors), want.bfloat16())


def test_routes_without_positions():
    assert ours(*make((0, 2), dtype=torch.float32)).shape == (2, 0, 2, 16)
