"""Crossattn_Prompt: features attend to prompts (QMamba, section 4.4.3 and Table 8).

The paper prints 12.17 M parameters and gives no layout. This one has 12,172,056 on lqmamba-b, and prints the
same; others may too. N prompts as wide as the feature, weighted as StylePrompt weighs them, go through a
Linear; then attention with the feature's positions as queries and the prompts as keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AdapterError
from ..models.qmamba import QMamba
from .base import Adapter, check_at_least, is_paper_sized
from .prompts import PromptMixture
from .registry import register


@dataclass(frozen=True)
class CrossAttentionOptions:
    """Options of Crossattn_Prompt.

    Attributes:
        prompts: N, prompts a stage.
        width: of prompts and attention; by default each stage's own, and on networks narrower than the
            paper's twice that of the first stage's output, 128 for lqmamba-n: 386,904 parameters, 11 % of it
            (the paper's is 13 %).
        heads: of the attention.
    """

    prompts: int = 6
    width: int | None = None
    heads: int = 4

    def __post_init__(self) -> None:
        check_at_least(self, prompts=1, width=1, heads=1)


class CrossAttentionStage(nn.Module):
    """``F + Linear(Attention(F, prompts))``; the last Linear starts at zero."""

    def __init__(self, channels: int, prompts: int, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise AdapterError(f"width ({width}) must divide by heads ({heads})")
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
        """(B, H, W, C) → (B, H, W, C)."""
        weights = self.mixture.weights(x).to(x.dtype)
        prompts = self.align(weights[..., None] * self.mixture.prompts.flatten(1))  # (B, N, width)
        query, key, value = (
            tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens in (self.query(x.flatten(1, 2)), self.key(prompts), self.value(prompts))
        )
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        change: Tensor = self.out(seen).view(x.shape).to(x.dtype)
        return x + change


@register("crossattn-prompt", CrossAttentionOptions)
class CrossAttentionPrompt(Adapter):
    """One :class:`CrossAttentionStage` after each stage."""

    def __init__(self, network: QMamba, options: CrossAttentionOptions) -> None:
        narrow = None if is_paper_sized(network) else 2 * network.out_widths[0]
        parts = [
            CrossAttentionStage(channels, options.prompts, options.width or narrow or channels, options.heads)
            for channels in network.out_widths
        ]
        super().__init__(options, prompts=nn.ModuleList(parts))
