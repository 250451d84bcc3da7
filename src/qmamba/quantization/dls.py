"""Dynamic-balancing Learnable Scalar: activations quantized by their own statistics (Q-MambaIR)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .base import ActivationQuantizer
from .rounding import (
    SIGNED_BELOW,
    code_range,
    images_of,
    round_through,
    scale_gradient,
    step_factor,
)

FLAT = 1e-6  # a tensor whose values span less is passed through
LEAST_STEP = 1e-6
WIDTHS = (*(0.4 + 0.2 * i for i in range(14)), *(3.5 + 0.5 * i for i in range(18)))
"""Half ranges, in standard deviations, that :meth:`DLS.fit` tries."""


class Statistics(NamedTuple):
    """Mean, unbiased standard deviation, minimum and maximum, each broadcastable to the tensor."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


def statistics_of(x: Tensor, dims: tuple[int, ...]) -> Statistics:
    """Return the statistics of x over some dimensions, which are kept with length 1."""
    variance = x.var(dim=dims, keepdim=True, unbiased=True)
    # Not std(), whose gradient is NaN for a constant tensor.
    std = torch.where(variance > 0, variance.clamp(min=1e-30).sqrt(), torch.zeros_like(variance))
    return Statistics(
        x.mean(dim=dims, keepdim=True), std, x.amin(dim=dims, keepdim=True), x.amax(dim=dims, keepdim=True)
    )


class DLS(ActivationQuantizer):
    """Quantize activations with a step and an offset that are learned functions of their statistics.

    With μ, σ, min and max of an image's activations: β = v₁μ + v₂σ + v₃min + v₄max, x' = x + β, and
    α = |w₁|mean x'| + w₂ std x' + w₃ min x' + w₄ max x'|, at most (max x - min x) / 2^b.

    Args:
        bits: 2, 4 or 8.
        public: as in the authors' public version: statistics span the batch, so that an image's result
            depends on its batch-mates; codes are unsigned where the first batch has no negative value,
            although the mean is subtracted; a constant tensor gives NaN.

    Attributes:
        w, v: (4,) each.
        signed: (1,) buffer, 1 where codes are signed; always without `public`.
    """

    def __init__(self, bits: int, *, public: bool = False) -> None:
        super().__init__(bits, public)
        self.w = nn.Parameter(torch.tensor([1.0, 3.0, 0.0, 0.0]) / code_range(bits)[1])
        self.v = nn.Parameter(torch.tensor([-1.0, 0.0, 0.0, 0.0]))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Choose the sign where it is not fixed."""
        self.signed.fill_(float(not self.public or bool(x.min() < SIGNED_BELOW)))

    @torch.no_grad()
    def fit(self, rows: Tensor, search: bool) -> None:
        """Choose w and v for activations (n, m), one row for each image.

        The range is all of each image's, α = (max x' - min x') / (2^b - 1) with its middle at zero; with
        `search` it is the one of least squared error among this and ranges of some deviations around the
        mean.

        Args:
            rows: of each image first the least and the greatest value, which do not count for the error.
            search: as above.
        """
        high = code_range(self.bits)[1]
        widest = 1 / (2**self.bits - 1)
        choices = [((0.0, 0.0, -widest, widest), (0.0, 0.0, -0.5, -0.5))]
        if search:
            choices += [((0.0, width / high, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0)) for width in WIDTHS]
        errors = []
        for w, v in choices:
            self.w.copy_(torch.tensor(w))
            self.v.copy_(torch.tensor(v))
            errors.append((self(rows) - rows)[:, 2:].square().mean())
        w, v = choices[int(torch.stack(errors).argmin())]
        self.w.copy_(torch.tensor(w))
        self.v.copy_(torch.tensor(v))

    def forward(self, x: Tensor) -> Tensor:
        """Return quantized activations (B, …) of the same shape and type, computed in float32."""
        given, x = x.dtype, x.float()
        dims = tuple(range(x.ndim)) if self.public else images_of(x)
        if not dims or x.numel() == 0:
            return x.to(given)
        low, high = self._range()
        of_x = statistics_of(x, dims)
        span = (of_x.high - of_x.low).detach()
        beta = sum(v * s for v, s in zip(self.v, of_x, strict=True))
        centred = x + beta
        # The statistics of x + β, without another pass over it.
        moved = ((of_x.mean + beta).abs(), of_x.std, of_x.low + beta, of_x.high + beta)
        raw = sum(w * s for w, s in zip(self.w, moved, strict=True))
        elements = x.numel() // span.numel()
        step = scale_gradient(torch.as_tensor(raw).abs(), step_factor(elements, high))
        step = torch.minimum(step.clamp(min=LEAST_STEP), span / 2**self.bits)
        if self.public:
            return self._rounded(centred, step, beta, of_x, low, high).to(given)
        flat = span < FLAT
        out = self._rounded(centred, torch.where(flat, torch.ones_like(step), step), beta, of_x, low, high)
        return torch.where(flat, x, out).to(given)

    @staticmethod
    def _rounded(
        centred: Tensor, step: Tensor, beta: Tensor | int, of_x: Statistics, low: Tensor, high: Tensor
    ) -> Tensor:
        code = round_through(torch.clamp(centred / step, low, high))
        return torch.clamp(code * step - beta, of_x.low, of_x.high)
