"""The selective scan as a plain loop over the equations: slow, obvious, and the reference of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..routes import Route
from .tensors import ScanTensors


def selective_scan_reference(tensors: ScanTensors, routes: tuple[Route, ...], merge: bool) -> Tensor:
    """Compute :func:`qmamba.ops.selective_scan`; gradients come from autograd through the loop."""
    x, dt, B, C, dt_weight, dt_bias, A, D = tensors
    batch, height, width, channels = x.shape
    per_route = []
    for k, route in enumerate(routes):
        order = route.order(height, width).to(x.device)
        x_k = x.flatten(1, 2)[:, order]  # (B, L, D): the positions in the order of the route
        dt_k, B_k, C_k = (p[:, :, :, k].flatten(1, 2)[:, order] for p in (dt, B, C))
        delta = F.softplus(dt_k @ dt_weight[k].T + dt_bias[k])  # (B, L, D)

        h = x.new_zeros(batch, channels, A.shape[-1])  # (B, D, N)
        ys = []
        for t in range(height * width):
            decay = torch.exp(delta[:, t, :, None] * A[k])  # exp(Δ_t A)
            h = decay * h + (delta[:, t] * x_k[:, t])[:, :, None] * B_k[:, t, None, :]
            ys.append((h * C_k[:, t, None, :]).sum(-1) + D[k] * x_k[:, t])

        y = torch.stack(ys, dim=1)[:, order.argsort()]  # back to row-major
        per_route.append(y.view(batch, height, width, channels))
    return torch.stack(per_route).sum(0) if merge else torch.stack(per_route, dim=1)
