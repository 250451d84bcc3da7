"""SS2D: the two-dimensional selective scan with its projections, and LQMamba's route gate.

(QMamba, section 3.1; VMamba v2 without a gate branch; LocalMamba's channel gate over routes.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...ops import GateWeights, Route, gated_scan, linear, selective_scan
from ...ops.hooks import hooked
from ...ops.route_gate.reference import EPS
from ..channels_last import conv_nhwc

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class Linear(nn.Linear):
    """``nn.Linear``, computed by :func:`qmamba.ops.linear`."""

    computes_linear = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, I) → (…, O)."""
        return linear(x, self.weight, self.bias)


class RouteGate(nn.Module):
    """LQMamba's gate on each route's output, shared by the routes of a block.

    ``g = sigmoid(expand(GELU(reduce(mean over positions of LN(y)))))``, and y is multiplied by g.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, channels)

    def forward(self, y: Tensor) -> Tensor:
        """Return the gated sum (B, H, W, D) of routes (B, K, H, W, D)."""
        pooled = self.norm(y).mean(dim=(2, 3))  # (B, K, D)
        gates = torch.sigmoid(self.expand(F.gelu(self.reduce(pooled))))
        return (y * rearrange(gates, "b k d -> b k 1 1 d")).sum(dim=1)


def gate_weights(gate: nn.Module | None) -> GateWeights | None:
    """Return a gate's weights for :func:`qmamba.ops.gated_scan`; None where its modules must be called.

    That is where one of them has hooks or is of another class, as a parametrized or quantized one is.
    """
    if type(gate) is not RouteGate or hooked(gate):
        return None
    norm, reduce, expand = gate.norm, gate.reduce, gate.expand
    kinds = ((norm, nn.LayerNorm), (reduce, nn.Linear), (expand, nn.Linear))
    if any(type(module) is not kind or hooked(module) for module, kind in kinds) or norm.eps != EPS:
        return None
    weights = (norm.weight, norm.bias, reduce.weight, reduce.bias, expand.weight, expand.bias)
    return None if any(weight is None for weight in weights) else GateWeights(*weights)


class SS2D(nn.Module):
    """Scan features (B, H, W, C) along K routes, inside D = ``expand``·C channels; same shape out.

    Args:
        width: C.
        routes: the K routes, see :mod:`qmamba.ops.routes`.
        d_state: N, states per channel.
        expand: D / C.
        dt_rank: R, rank of the step sizes' projection; by default ⌈C/16⌉.
        gated: multiply each route by LQMamba's route gate before the sum.

    Attributes:
        quantizable: tensors of the scan that can be quantized. Δ is quantized in its low-rank form dt
            (B, H, W, K, R): before the softplus it exists within the scan only.
        quantizers: what these tensors pass through, by name; None in a float network.
    """

    quantizable: ClassVar[Mapping[str, Literal["input", "weight", "parameter"]]] = {
        "x": "input", "dt": "input", "B": "input", "C": "input", "dt_weight": "weight",
        "dt_bias": "parameter", "A": "parameter", "D": "parameter",
    }  # fmt: skip

    def __init__(
        self,
        width: int,
        routes: Sequence[Route],
        *,
        d_state: int = 1,
        expand: int = 2,
        dt_rank: int | None = None,
        gated: bool = False,
    ) -> None:
        super().__init__()
        channels, K = expand * width, len(routes)
        R = dt_rank if dt_rank is not None else math.ceil(width / 16)
        self.routes = tuple(routes)
        self.splits = (R, d_state, d_state)
        self.in_proj = Linear(width, channels, bias=False)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.x_proj = Linear(channels, K * sum(self.splits), bias=False)  # all routes in one matmul
        self.dt_weight = nn.Parameter(torch.empty(K, channels, R))
        self.dt_bias = nn.Parameter(torch.empty(K, channels))
        self.A_log = nn.Parameter(torch.empty(K, channels, d_state))
        self.D = nn.Parameter(torch.empty(K, channels))
        self.gate = RouteGate(channels) if gated else None
        self.norm = nn.LayerNorm(channels)
        self.out_proj = Linear(channels, width, bias=False)
        self.quantizers: nn.ModuleDict | None = None
        self.reset_ssm_parameters()

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """Initialise as Mamba does: A = -1..-N, D = 1, softplus(dt_bias) log-uniform in [1e-3, 1e-1].

        Parameters on the device "meta" have no values to initialise, and are left alone: torch imports its
        compiler for some of these operations there, which takes two seconds.
        """
        if self.A_log.is_meta:
            return
        K, channels, N = self.A_log.shape
        self.A_log.copy_(torch.arange(1, N + 1).log().expand(K, channels, N))
        self.D.fill_(1.0)
        bound = self.splits[0] ** -0.5
        self.dt_weight.uniform_(-bound, bound)
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        dt = torch.empty(K, channels).uniform_(low, high).exp().clamp(min=DT_FLOOR)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → (B, H, W, C)."""
        x = F.silu(conv_nhwc(self.conv, self.in_proj(x)))  # (B, H, W, D)
        out: Tensor = self.out_proj(self.norm(self.scan(x)))
        return out

    def scan(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the sum of the routes, gated, of features (B, H, W, D); ``out`` is written to if given."""
        # Every projection acts on one position at a time, so it is made once, on the grid, for all routes.
        projected = self.x_proj(x).unflatten(-1, (len(self.routes), -1))  # (B, H, W, K, R + 2N)
        dt, B, C = torch.split(projected, list(self.splits), dim=-1)  # (B, H, W, K, R), and N twice
        A = -torch.exp(self.A_log.float())
        tensors: tuple[Tensor, ...] = (x, dt, B, C, self.dt_weight, self.dt_bias, A, self.D)
        if self.quantizers is not None:
            tensors = self._quantized(self.quantizers, *tensors)
        x, dt, B, C, dt_weight, dt_bias, A, D = tensors
        gate = gate_weights(self.gate)
        if gate is not None:  # the scan and its gate as one operation
            return gated_scan(
                x, dt, B, C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D,
                routes=self.routes, gate=gate, out=out,
            )  # fmt: skip
        y = selective_scan(
            x, dt, B, C, dt_weight=dt_weight, dt_bias=dt_bias, A=A, D=D,
            routes=self.routes, merge=self.gate is None,
        )  # fmt: skip
        y = y if self.gate is None else self.gate(y)
        return y if out is None else out.copy_(y)

    def _quantized(self, quantizers: nn.ModuleDict, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return tensors in the order of :attr:`quantizable`, each through its quantizer if it has one."""
        named = zip(self.quantizable, tensors, strict=True)
        return tuple(quantizers[name](t) if name in quantizers else t for name, t in named)

    def multiply_adds(self, x: Tensor) -> int:
        """Return the multiply-adds for features (B, H, W, C), beside those of the modules within.

        The selective scan counts 9·K·L·D·N + K·L·D, with Δ from its rank-R form K·L·D·R more, and the product
        with the gates K·L·D.
        """
        K, D, N = self.A_log.shape
        elements = x[..., 0].numel() * K * D
        return elements * (9 * N + 1 + self.splits[0] + (self.gate is not None))
