"""Range-floating Flexible Allocator: weights rounded at learned thresholds (Q-MambaIR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import WeightQuantizer
from .grid import Grid
from .rounding import check_bits, code_range, initial_step, scale_gradient, step_factor

OUTER_SLOPE = 0.1  # of the surrogate outside the breakpoints
LEAST_GAP = 1e-3  # between two breakpoints


def allocate(w: Tensor, alpha: Tensor, beta: Tensor, breakpoints: Tensor, bits: int) -> Tensor:
    """Quantize weights, with gradients that reach the weights, α, β and every breakpoint.

    With u = clip((w + β) / α, Qn, Qp), the code is the level L_i of the greatest i whose threshold
    (a_{i-1} + a_i) / 2 lies below u. The backward sees a piecewise linear function through the points
    (a_i, L_i) in place of these steps.

    Args:
        w: weights of any shape, float32.
        alpha, beta: step and offset, one element each.
        breakpoints: a (2^b,), increasing.
        bits: b.

    Returns:
        Values code · α - β, of the shape of w.
    """
    low, high = code_range(bits)
    step = scale_gradient(alpha, step_factor(w.numel(), high))
    u = torch.clamp((w + beta) / step, low, high)
    surrogate = _surrogate(u, breakpoints, low)
    return (surrogate + (codes(u, breakpoints, low) - surrogate).detach()) * step - beta


def codes(u: Tensor, breakpoints: Tensor, low: int) -> Tensor:
    """Return the level of each u, in the type of u."""
    a = breakpoints.detach()
    return (torch.searchsorted((a[1:] + a[:-1]) / 2, u.detach().contiguous()) + low).to(u.dtype)


def _surrogate(u: Tensor, a: Tensor, low: int) -> Tensor:
    """Return the piecewise linear function through (a_i, L_i), of slope 0.1 outside."""
    last = len(a) - 1
    right = torch.searchsorted(a.detach().contiguous(), u.detach().contiguous())  # a[right-1] < u <= a[right]
    left = (right - 1).clamp(0, last - 1)
    start, end = a[left], a[left + 1]
    inside = left + low + (u - start) / (end - start)
    below = low + OUTER_SLOPE * (u - a[0])
    above = low + last + OUTER_SLOPE * (u - a[-1])
    return torch.where(right == 0, below, torch.where(right > last, above, inside))


class RFA(WeightQuantizer):
    """Quantize a weight tensor by :func:`allocate`, with learnables of its own.

    Args:
        bits: 2, 4 or 8.
        public: as in the authors' public version: breakpoints are free, and may cross while they are trained.
            Otherwise they are the first one and positive gaps, and always increase.

    Attributes:
        alpha, beta: (1,), step and offset.
        a: (2^b,) with `public`; otherwise `first` (1,) and `gaps` (2^b - 1,), behind a softplus.
    """

    def __init__(self, bits: int, *, public: bool = False) -> None:
        super().__init__()
        self.bits, self.public = check_bits(bits), public
        self.alpha, self.beta = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        low, high = code_range(bits)
        levels = torch.arange(low, high + 1, dtype=torch.float32)
        if public:
            self.a = nn.Parameter(levels)
        else:
            self.first = nn.Parameter(levels[:1].clone())
            one = torch.expm1(torch.tensor(1.0 - LEAST_GAP)).log()  # the inverse of softplus
            self.gaps = nn.Parameter(one.expand(len(levels) - 1).clone())

    @property
    def breakpoints(self) -> Tensor:
        """The breakpoints a, (2^b,)."""
        if self.public:
            return self.a
        return torch.cat([self.first, self.first + (F.softplus(self.gaps) + LEAST_GAP).cumsum(0)])

    @torch.no_grad()
    def initialise(self, w: Tensor) -> None:
        """Set the step to 2 · mean|w| / √Qp, and the offset to zero."""
        self.alpha.copy_(initial_step(w, code_range(self.bits)[1]).view(1))
        self.beta.zero_()

    def forward(self, w: Tensor) -> Tensor:
        """Return quantized weights of the same shape."""
        return allocate(w, self.alpha, self.beta, self.breakpoints, self.bits)

    @torch.no_grad()
    def codes(self, w: Tensor) -> Tensor:
        """Return the codes of weights, int64."""
        low, high = code_range(self.bits)
        return codes(torch.clamp((w + self.beta) / self.alpha, low, high), self.breakpoints, low).long()

    @torch.no_grad()
    def grid(self) -> Grid:
        """Return what is kept of the quantizer after training: the values that its codes stand for."""
        return Grid(self.bits, self.alpha[0].clone(), self.beta[0].clone())
