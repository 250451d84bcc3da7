"""Features with their channels last, (B, H, W, C), through modules that take channels first."""

from __future__ import annotations

from torch import Tensor, nn


def conv_nhwc(conv: nn.Module, x: Tensor) -> Tensor:
    """Return a convolution of (B, H, W, C). The permutations are views: channels stay last in memory."""
    y: Tensor = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return y
