"""The tensors that every implementation of the selective scan takes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScanTensors(NamedTuple):
    """The tensors of a scan along K routes, as :func:`qmamba.ops.selective_scan` explains them.

    Attributes:
        x: (B, H, W, D) features.
        dt: (B, H, W, K, R) step sizes before their expansion from rank R.
        B, C: (B, H, W, K, N) input and output maps of the state.
        dt_weight: (K, D, R).
        dt_bias: (K, D).
        A: (K, D, N), negative.
        D: (K, D) skip weights.
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
