"""A plain vision transformer (ViT, ICLR 2021) with timm's tensor names, without its classification head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layers import MLP

EPS = 1e-6  # of every LayerNorm


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, C), with biases: softmax(QKᵀ / √d) V, d = C / heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, N, C) → (B, N, C)."""
        qkv = rearrange(self.qkv(z), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        q, k, v = qkv.unbind()  # (B, heads, N, d) each
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return out

    def multiply_adds(self, z: Tensor) -> int:
        """Return the multiply-adds of QKᵀ and of the mean of V, for tokens (B, N, C)."""
        return 2 * z.shape[1] * z.numel()


class Block(nn.Module):
    """``z + Attention(LN(z))``, then ``z + MLP(LN(z))``: (B, N, C) → (B, N, C)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, hidden, width)

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.attn(self.norm1(z))
        out: Tensor = z + self.mlp(self.norm2(z))
        return out


class PatchEmbed(nn.Module):
    """One token for each square patch: (B, 3, H, W) → (B, H·W / patch², C), row by row."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = rearrange(self.proj(images), "b c h w -> b (h w) c")
        return out


class VisionTransformer(nn.Module):
    """The transformer's parts, for a caller that runs the blocks one by one and may change tokens in between.

    ``embed``, then every block of ``blocks``, then ``norm``, is the whole network up to its head.

    Args:
        image_size: side of the square images, in pixels; a multiple of ``patch_size``.
        patch_size: side of a patch, in pixels.
        width: C, channels of a token.
        depth: number of blocks.
        heads: attention heads; a divisor of ``width``.
        mlp_ratio: hidden width of the MLPs over ``width``.
    """

    def __init__(
        self, *, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        patches = (image_size // patch_size) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, width))
        self.patch_embed = PatchEmbed(patch_size, width)
        self.blocks = nn.ModuleList([Block(width, heads, int(mlp_ratio * width)) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """ViT's initialisation: truncated normals of std 0.02, biases 0."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens before the first block: (B, 3, H, W) → (B, 1 + patches, C), the class token first."""
        patches = self.patch_embed(images)
        class_token = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.pos_embed
