"""SS2D: the two-dimensional selective scan with its projections, and LQMamba's route gate.

(QMamba, section 3.1; VMamba v2 without a gate branch; LocalMamba's channel gate over routes.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import GateWeights, Route, gate_routes, gated_scan, linear, selective_scan
from ...ops.scratch import Scratch

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
AT_ONCE = 2**20  # elements that are convolved or scanned together in place


class Linear(nn.Linear):
    """``nn.Linear``, computed by :func:`qmamba.ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
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

    def weights(self) -> GateWeights:
        """As :func:`qmamba.ops.gated_scan` takes them."""
        norm, reduce, expand = self.norm, self.reduce, self.expand
        return GateWeights(norm.weight, norm.bias, reduce.weight, reduce.bias, expand.weight, expand.bias)

    def forward(self, y: Tensor) -> Tensor:
        """Routes (B, K, H, W, D) → their gated sum (B, H, W, D)."""
        return gate_routes(y, self.weights())


class SS2D(nn.Module):
    """Scan features (B, H, W, C) along K routes, inside D = ``expand``·C channels; same shape out.

    Args:
        width: C.
        routes: the K routes, see :mod:`qmamba.ops.routes`.
        d_state: N, states per channel.
        expand: D / C.
        dt_rank: R, rank of the step sizes' projection; by default ⌈C/16⌉.
        gated: multiply each route by LQMamba's route gate before the sum.
    """

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
        self.reset_ssm_parameters()

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """Mamba's initialisation: A = -1..-N, D = 1, softplus(dt_bias) log-uniform in [1e-3, 1e-1]."""
        K, channels, N = self.A_log.shape
        self.A_log.copy_(torch.arange(1, N + 1).log().expand(K, channels, N))
        self.D.fill_(1.0)
        bound = self.splits[0] ** -0.5
        self.dt_weight.uniform_(-bound, bound)
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        dt = torch.empty(K, channels).uniform_(low, high).exp().clamp(min=DT_FLOOR)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        out: Tensor = self.out_proj(self.norm(self.mix(self.in_proj(x))))
        return out

    def mix(self, x: Tensor) -> Tensor:
        """What brings positions together, inside the projections: (B, H, W, D) → (B, H, W, D)."""
        x = self.conv(x.permute(0, 3, 1, 2))  # (B, D, H, W), channels last in memory
        return self.scan(F.silu(x, inplace=not x.requires_grad).permute(0, 2, 3, 1))

    def mix_in_place(self, x: Tensor) -> Tensor:
        """:meth:`mix` on a processor, where no gradient is wanted and nobody else needs x: in memory that is
        used again, until the next call of this thread, and a few images at a time."""
        out = Scratch(x)("mixed", x.shape)
        images = max(1, AT_ONCE // x[0].numel())
        for some, its in zip(torch.split(x, images), torch.split(out, images), strict=True):
            self._conv_in_place(some)
            self.scan(some, out=its)
        return out

    def _conv_in_place(self, x: Tensor) -> None:
        """Convolution and SiLU of (B, H, W, D), some rows at a time."""
        height = x.shape[1]
        count = max(1, AT_ONCE // x[:, 0].numel())
        above = torch.zeros_like(x[:, :1])
        for top in range(0, height, count):
            rows = x[:, top : top + count]
            below = x[:, top + count : top + count + 1] if top + count < height else torch.zeros_like(above)
            strip = torch.cat([above, rows, below], 1).permute(0, 3, 1, 2)
            above = rows[:, -1:].clone()
            made = F.conv2d(strip, self.conv.weight, padding=(0, 1), groups=self.conv.groups)
            rows.copy_(F.silu(made, inplace=True).permute(0, 2, 3, 1))

    def scan(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(B, H, W, D) → the sum of its routes (B, H, W, D), written to ``out`` if that is given."""
        # Every projection acts on one position at a time, so it is made once, on the grid, for all routes.
        of_routes = self.x_proj(x).unflatten(-1, (len(self.routes), -1))
        dt, B, C = torch.split(of_routes, list(self.splits), dim=-1)  # (B, H, W, K, R), and N twice
        A = -self.A_log.float().exp()
        if self.gate is None:
            y = selective_scan(
                x, dt, B, C, dt_weight=self.dt_weight, dt_bias=self.dt_bias, A=A, D=self.D, routes=self.routes
            )
            return y if out is None else out.copy_(y)
        return gated_scan(
            x, dt, B, C, dt_weight=self.dt_weight, dt_bias=self.dt_bias, A=A, D=self.D, routes=self.routes,
            gate=self.gate.weights(), out=out,
        )  # fmt: skip
