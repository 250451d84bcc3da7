"""Learned step sizes: LSQ for weights, and LSQ+, with an offset, for activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import ActivationQuantizer, WeightQuantizer
from .grid import Grid, fit_range
from .rounding import (
    SIGNED_BELOW,
    check_bits,
    code_range,
    initial_step,
    round_through,
    scale_gradient,
    step_factor,
)


class LSQ(WeightQuantizer):
    """Quantize weights with one learned step: round(clip(w / α, Qn, Qp)) · α (LSQ).

    Attributes:
        alpha: (1,), the step.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.alpha = nn.Parameter(torch.ones(1))

    @torch.no_grad()
    def initialise(self, w: Tensor) -> None:
        """Set the step to 2 · mean|w| / √Qp."""
        self.alpha.copy_(initial_step(w, code_range(self.bits)[1]).view(1))

    def forward(self, w: Tensor) -> Tensor:
        """Return quantized weights of the same shape."""
        low, high = code_range(self.bits)
        step = scale_gradient(self.alpha, step_factor(w.numel(), high))
        return round_through(torch.clamp(w / step, low, high)) * step

    @torch.no_grad()
    def codes(self, w: Tensor) -> Tensor:
        """Return the codes of weights, int64."""
        return torch.clamp(w / self.alpha, *code_range(self.bits)).round().long()

    @torch.no_grad()
    def grid(self) -> Grid:
        """Return the values that the codes stand for."""
        return Grid(self.bits, self.alpha[0].clone(), torch.zeros((), device=self.alpha.device))


class LSQPlus(ActivationQuantizer):
    """Quantize activations with a learned step and offset (the LSQ+ kind of Q-MambaIR).

    x̂ = round(clip((x + β) / α, Qn, Qp)) · α - β; both are constants after training, so that the result for an
    image depends on nothing but the image.

    Args:
        bits: 2, 4 or 8.
        public: codes are unsigned where the first batch has no negative value.

    Attributes:
        alpha, beta: (1,), step and offset.
        signed: (1,) buffer, 1 where codes are signed.
    """

    def __init__(self, bits: int, *, public: bool = False) -> None:
        super().__init__(bits, public)
        self.alpha, self.beta = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Choose the sign, set the step to 2 · mean|x| / √Qp and the offset to zero."""
        signed = not self.public or bool(x.min() < SIGNED_BELOW)
        self.signed.fill_(float(signed))
        self.alpha.copy_(initial_step(x, code_range(self.bits, signed)[1]).view(1))
        self.beta.zero_()

    @torch.no_grad()
    def fit(self, rows: Tensor, search: bool) -> None:
        """Set step and offset to a range of values (n, m): all of it, or the one of least squared error."""
        self.signed.fill_(1.0)
        grid = fit_range(rows, self.bits, search)
        self.alpha.copy_(grid.scale.view(1))
        self.beta.copy_(grid.offset.view(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return quantized activations of the same shape and type, computed in float32."""
        low, high = self._range()
        given, x = x.dtype, x.float()
        step = scale_gradient(self.alpha, step_factor(x.numel(), high))
        code = round_through(torch.clamp((x + self.beta) / step, low, high))
        return (code * step - self.beta).to(given)
