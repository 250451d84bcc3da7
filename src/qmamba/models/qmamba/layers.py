"""The parts of a backbone around SS2D: stem, MLP, drop path, block and downsampling (QMamba, Figure 2).

All but the stem take features with their channels last, (B, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import Route
from ..channels_last import conv_nhwc
from .ss2d import SS2D, Linear


class Stem(nn.Module):
    """Image (B, 3, H, W) → features (B, ⌈H/4⌉, ⌈W/4⌉, C): two strided convolutions with LayerNorms."""

    def __init__(self, width: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, C)."""
        # Contiguous with channels last; torch.func's vmap takes no memory_format.
        x = conv_nhwc(self.conv1, image.permute(0, 2, 3, 1).contiguous())
        x = F.gelu(self.norm1(x))  # (B, ⌈H/2⌉, ⌈W/2⌉, C/2)
        out: Tensor = self.norm2(conv_nhwc(self.conv2, x))
        return out


class Downsample(nn.Module):
    """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C'): a strided convolution and a LayerNorm."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out_width, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        out: Tensor = self.norm(conv_nhwc(self.conv, x))
        return out


class MLP(nn.Module):
    """Linear, GELU, Linear over the channels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) → (…, C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Skip a residual branch for some images of a batch while training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, …) → (B, …), the same in expectation."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Block(nn.Module):
    """``x + SS2D(LN(x))``, then ``x + MLP(LN(x))``."""

    def __init__(
        self, width: int, routes: Sequence[Route], *, gated: bool, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.ss2d = SS2D(width, routes, gated=gated)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(mlp_ratio * width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → (B, H, W, C)."""
        x = x + self.drop_path(self.ss2d(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out
