"""The backend over mamba-ssm's public function, on a CPU with a stand-in of its documented signature.

The stand-in has the semantics that the package documents for it: u and delta (B, D, L); A (D, N); B and C
(B, G, N, L), each shared by D / G channels; D and delta_bias (D) float32; softplus of delta plus its bias;
h = exp(Δ A) h + Δ B u, y = C h + D u, all in float32, in the type of u.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import qmamba
from qmamba.errors import BackendError
from qmamba.ops import backend, cross_scan_routes, local_scan_routes, selective_scan
from qmamba.ops.scan import mamba_ssm
from test_selective_scan import assert_same, make_inputs, run

calls: list[tuple[torch.Size, torch.dtype]] = []


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor:
    assert z is None and not return_last_state and D is not None and delta_bias is not None
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    assert delta.shape == u.shape and A.shape == (channels, states) and channels % groups == 0
    assert B.shape == C.shape == (batch, groups, states, length)
    assert D.shape == delta_bias.shape == (channels,)
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert all(t.is_contiguous() for t in (u, delta, A, B, C, D, delta_bias))
    calls.append((u.shape, u.dtype))
    step = delta.float() + delta_bias[:, None]
    step = F.softplus(step) if delta_softplus else step
    wide_B, wide_C = (t.float().repeat_interleave(channels // groups, dim=1) for t in (B, C))  # (B, D, N, L)
    h, ys = u.new_zeros(batch, channels, states, dtype=torch.float32), []
    for t in range(length):
        h = torch.exp(step[:, :, t, None] * A) * h
        h = h + step[:, :, t, None] * wide_B[..., t] * u[:, :, t, None].float()
        ys.append((h * wide_C[..., t]).sum(-1))
    return (torch.stack(ys, dim=2) + D[:, None] * u.float()).to(u.dtype)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the package importable, and a CPU as good as a GPU."""
    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[names[-1]])["selective_scan_fn"] = selective_scan_fn
    for module in (backend, mamba_ssm):
        monkeypatch.setattr(module, "no_mamba_ssm", lambda tensors=(): None)
    mamba_ssm._function.cache_clear()
    calls.clear()
    yield
    mamba_ssm._function.cache_clear()


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "stacked"])
@pytest.mark.parametrize("routes", [cross_scan_routes(), local_scan_routes(2)], ids=["cross", "local"])
@pytest.mark.parametrize("size", [(2, 5, 7, 6, 2), (1, 4, 4, 8, 1)], ids=str)
def test_it_is_the_loop(stand_in: None, size: Any, routes: Any, merge: bool) -> None:
    batch, height, width, channels, states = size
    grid = (height, width, routes)
    inputs = make_inputs(*grid, batch=batch, channels=channels, n=states, dtype=torch.float32)
    want = run(inputs, routes, "reference", merge=merge)
    found = run(inputs, routes, "mamba-ssm", merge=merge)
    assert calls == [(torch.Size((batch, len(routes) * channels, height * width)), torch.float32)]
    assert all(found[name].dtype == torch.float32 for name in want)
    assert_same(found, want, 1e-4)


def test_a_network_in_bfloat16_and_with_gates(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = qmamba.create_model("lqmamba-n", widths=(8, 16, 32, 64), depths=(1, 1, 1, 1)).eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = network(images)
        monkeypatch.setenv("QMAMBA_BACKEND", "mamba-ssm")
        torch.testing.assert_close(network(images), want, rtol=1e-4, atol=1e-5)
        assert len(calls) == 4
        assert torch.isfinite(network.bfloat16()(images.bfloat16())).all()
    assert calls[-1][1] == torch.bfloat16


def test_never_chosen_silently(stand_in: None) -> None:
    inputs = make_inputs(3, 3, cross_scan_routes(), dtype=torch.float32)
    selective_scan(**inputs, routes=cross_scan_routes())
    assert not calls


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(3, 3, cross_scan_routes(), dtype=torch.float32)
    monkeypatch.setattr(backend, "_mamba_ssm_missing", lambda: 'mamba-ssm is not installed; pip install "x"')
    with pytest.raises(BackendError, match=r"mamba-ssm is not installed; pip install .*QMAMBA_BACKEND=auto"):
        selective_scan(**inputs, routes=cross_scan_routes(), backend="mamba-ssm")
    row = next(row for row in qmamba.backends() if row.name == "mamba-ssm")
    assert not row.usable and "not installed" in row.note
    monkeypatch.setattr(backend, "_mamba_ssm_missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="torch sees no GPU") as caught:
        selective_scan(**inputs, routes=cross_scan_routes(), backend="mamba-ssm")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendError, match="not all tensors are on a GPU"):
        selective_scan(**inputs, routes=cross_scan_routes(), backend="mamba-ssm")
