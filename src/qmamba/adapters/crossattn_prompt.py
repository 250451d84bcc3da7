"""Crossattn_Prompt: features attend to prompts (QMamba, section 4.4.3 and Table 8).

The paper prints 12.17 M parameters but no layout. This one has 12,172,056 on lqmamba-b, which prints the
same; other layouts may too. N prompts as wide as the feature, weighted as in StylePrompt, go through a
Linear; then the feature's positions attend, as queries, to the prompts as keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import AdapterError
from ..models.capabilities import AdapterHost
from .base import Adapter, check_at_least, is_paper_sized
from .prompts import PromptMixture
from .registry import register


@dataclass(frozen=True)
class CrossAttentionOptions:
    """Options of Crossattn_Prompt.

    Attributes:
        prompts: N, prompts per stage.
        width: channels of prompts and attention; by default each stage's own, and on networks narrower than
            the paper's twice that of the first stage's output: 128 on lqmamba-n, 386,904 parameters or 11 %
            of the network (the paper's share is 13 %).
        heads: attention heads.
    """

    prompts: int = 6
    width: int | None = None
    heads: int = 4

    def __post_init__(self) -> None:
        check_at_least(self, prompts=1, width=1, heads=1)


class CrossAttentionStage(nn.Module):
    """``F + Linear(Attention(F, prompts))``; the last Linear is initialised to zero."""

    def __init__(self, channels: int, prompts: int, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise AdapterError(f"width must be a multiple of heads ({heads}), got {width}")
        self.heads = heads
        self.mixture = PromptMixture(channels, prompts, width)
        self.align = nn.Linear(width, width)
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → (B, H, W, C)."""
        weights = self.mixture.weights(x).to(x.dtype)
        prompts = self.align(weights[..., None] * self.mixture.prompts.flatten(1))  # (B, N, width)
        positions = rearrange(x, "b h w c -> b (h w) c")
        query, key, value = (
            rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.heads)
            for tokens in (self.query(positions), self.key(prompts), self.value(prompts))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        change: Tensor = self.out(rearrange(mixed, "b heads n d -> b n (heads d)")).to(x.dtype)
        return x + rearrange(change, "b (h w) c -> b h w c", h=x.shape[1])


@register("crossattn-prompt", CrossAttentionOptions)
class CrossAttentionPrompt(Adapter):
    """One :class:`CrossAttentionStage` after each stage."""

    def __init__(self, network: AdapterHost, options: CrossAttentionOptions) -> None:
        narrow = None if is_paper_sized(network) else 2 * network.out_widths[0]
        parts = [
            CrossAttentionStage(channels, options.prompts, options.width or narrow or channels, options.heads)
            for channels in network.out_widths
        ]
        super().__init__(options, prompts=nn.ModuleList(parts))
