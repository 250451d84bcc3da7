"""The route gate, written as its formula: what the other implementations are tested against."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5  # of the LayerNorm


class GateWeights(NamedTuple):
    """(D,), (D,) of the LayerNorm (eps 1e-5), (D/8, D), (D/8,), (D, D/8) and (D,) of the two Linears."""

    norm_weight: Tensor
    norm_bias: Tensor
    reduce_weight: Tensor
    reduce_bias: Tensor
    expand_weight: Tensor
    expand_bias: Tensor


def gate_routes_reference(y: Tensor, gate: GateWeights) -> Tensor:
    """Weigh each route by its gates and sum the routes, as :func:`qmamba.ops.gate_routes` does.

    Args:
        y: (B, K, H, W, D) routes, on the grid.
        gate: the weights.

    Returns:
        (B, H, W, D).
    """
    normed = F.layer_norm(y, y.shape[-1:], gate.norm_weight, gate.norm_bias, EPS)
    hidden = F.gelu(F.linear(normed.mean((2, 3)), gate.reduce_weight, gate.reduce_bias))
    gates = F.linear(hidden, gate.expand_weight, gate.expand_bias).sigmoid()  # (B, K, D)
    return (y * gates[:, :, None, None]).sum(1)
