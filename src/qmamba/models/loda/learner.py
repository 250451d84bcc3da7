"""What LoDa trains: the local distortion extractor, the injectors and the head (LoDa, CVPR 2024, section 3).

Letters as in the paper: b images, l tokens of the transformer with d channels, r channels of the latent
space, and P = 4·grid² multi-scale distortion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layers import MLP


class Extractor(nn.Module):
    """Local distortion extractor: features of the CNN → multi-scale distortion tokens (equation 1).

    F̄_j = AvgPool(φ_j(F_j)), with φ_j a 1×1 and a 3×3 convolution, flattened and concatenated over j.

    Args:
        channels: c_j, channels of the CNN's features at each scale.
        latent: r.
        grid: side of the pooled features.
    """

    def __init__(self, channels: Sequence[int], latent: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(count, latent, 1),
                nn.GELU(),
                nn.Conv2d(latent, latent, 3, padding=1, bias=False),
            )
            for count in channels
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """One (b, c_j, m_j, n_j) for each scale → F_msd (b, P, r), scale by scale and row by row."""
        pooled = [
            F.adaptive_avg_pool2d(conv(feature), self.grid)  # (b, r, grid, grid)
            for conv, feature in zip(self.convs, features, strict=True)
        ]
        return torch.cat([rearrange(scale, "b r m n -> b (m n) r") for scale in pooled], dim=1)


class CrossAttention(nn.Module):
    """Multi-head cross-attention: tokens (b, l, r) attend to the distortion tokens (b, P, r) (equation 2)."""

    def __init__(self, latent: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(latent, latent, bias=False)
        self.kv = nn.Linear(latent, 2 * latent, bias=False)
        self.proj = nn.Linear(latent, latent)

    def forward(self, queries: Tensor, distortion: Tensor) -> Tensor:
        """Map (b, l, r), (b, P, r) → (b, l, r)."""
        q = rearrange(self.q(queries), "b l (heads c) -> b heads l c", heads=self.heads)
        kv = rearrange(self.kv(distortion), "b p (two heads c) -> two b heads p c", two=2, heads=self.heads)
        k, v = kv.unbind()  # (b, heads, P, c) each
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(rearrange(mixed, "b heads l c -> b l (heads c)"))
        return out


class Injector(nn.Module):
    """Local distortion injector: F̄_msd, what one block's tokens find in the distortion tokens.

    Down to r channels (equation 4), cross-attention with a residual (equation 2), and up to d again.
    """

    def __init__(self, width: int, latent: int, heads: int) -> None:
        super().__init__()
        self.down = MLP(width, latent, latent)
        self.attention = CrossAttention(latent, heads)
        self.up = MLP(latent, width, width)

    def forward(self, tokens: Tensor, distortion: Tensor) -> Tensor:
        """F_vit (b, l, d), F_msd (b, P, r) → F̄_msd (b, l, d)."""
        q = self.down(tokens)  # (b, l, r)
        q = self.attention(q, distortion) + q
        out: Tensor = self.up(q)
        return out


class CosineHead(nn.Module):
    """The score of a class feature is its cosine with a learned direction: (b, d) → (b, 1) in [-1, 1].

    Computed in float32 at least. The direction starts uniform in [-1, 1]^d, at unit length.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.empty(width, 1).uniform_(-1, 1), dim=0))

    def forward(self, feature: Tensor) -> Tensor:
        precise = torch.promote_types(feature.dtype, torch.float32)
        direction = F.normalize(self.weight.to(precise), dim=0)  # (d, 1)
        return F.normalize(feature.to(precise), dim=1) @ direction
