"""The selective scan by the package mamba-ssm, on CUDA.

Its public function scans sequences of channels (B, K·D, L) that have been laid out in memory for it, so that
each route's copies of the features, the expanded step sizes and the outputs exist as tensors. It is here for
comparison, and is used only if named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...errors import BackendError
from ..backend import no_mamba_ssm
from ..routes import Route
from .tensors import ScanTensors


def selective_scan_mamba_ssm(tensors: ScanTensors, routes: Sequence[Route], merge: bool = True) -> Tensor:
    """See :func:`qmamba.ops.selective_scan`; gradients are mamba-ssm's own.

    Raises:
        BackendError: mamba-ssm is not installed, or cannot take these tensors.
    """
    x, dt, B, C, dt_weight, dt_bias, A, D = tensors
    if (reason := no_mamba_ssm((x, dt, B, C))) is not None:
        raise BackendError(f"the mamba-ssm backend cannot be used: {reason}; set QMAMBA_BACKEND=auto")
    height, width = x.shape[1:3]
    orders = torch.stack([route.order(height, width) for route in routes]).to(x.device)  # (K, L)
    u = rearrange(x.flatten(1, 2)[:, orders], "b k l d -> b k d l")
    low_rank, Bs, Cs = (
        _in_order(values, orders) for values in (dt, B, C)
    )  # (B, K, R, L), (B, K, N, L) twice
    delta = torch.einsum("bkrl,kdr->bkdl", low_rank, dt_weight.to(low_rank.dtype))
    y = _function()(
        rearrange(u, "b k d l -> b (k d) l").contiguous(),
        rearrange(delta, "b k d l -> b (k d) l").to(x.dtype).contiguous(),
        A.flatten(0, 1).float().contiguous(),  # (K·D, N)
        Bs.to(x.dtype).contiguous(),
        Cs.to(x.dtype).contiguous(),
        D.flatten().float().contiguous(),
        delta_bias=dt_bias.flatten().float().contiguous(),
        delta_softplus=True,
    )  # (B, K·D, L)
    back = orders.argsort(dim=1)[None, :, :, None]  # (1, K, L, 1)
    y = rearrange(y, "b (k d) l -> b k l d", k=len(routes))
    y = y.gather(2, back.expand(y.shape))  # (B, K, L, D), positions in row-major order
    out: Tensor = y.unflatten(2, (height, width)).to(x.dtype)
    return out.sum(dim=1) if merge else out


def _in_order(values: Tensor, orders: Tensor) -> Tensor:
    """(B, H, W, K, R) → (B, K, R, L), each route in the order (K, L) of its positions."""
    values = rearrange(values, "b h w k r -> b k r (h w)")
    return values.gather(3, orders[None, :, None].expand(values.shape))


@lru_cache(maxsize=1)
def _function() -> Callable[..., Any]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    found: Callable[..., Any] = selective_scan_fn
    return found
