"""Conv_Prompt: prompt and feature, concatenated, go through a convolution (QMamba, Table 8).

Recovered from the paper's parameter count: StylePrompt's generator without its convolution, then a 3×3
convolution of both without bias: 28,334,616 parameters on lqmamba-b.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.capabilities import AdapterHost
from ..models.channels_last import conv_nhwc
from .base import Adapter, check_at_least
from .prompts import PromptMixture, prompt_width
from .registry import register


@dataclass(frozen=True)
class ConvPromptOptions:
    """Options of Conv_Prompt.

    Attributes:
        prompts: N, prompts per stage.
        width: channels of a prompt; by default as StylePrompt's.
    """

    prompts: int = 6
    width: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, prompts=1, width=1)


class ConvStage(nn.Module):
    """``F' = Conv3×3([P_f, F])``, with the kernel stored as its difference from the identity.

    That is the paper's kernel minus a Dirac kernel on the feature's channels. It starts at zero, and a
    convolution with zeros is exactly zero on every device, where one with a Dirac kernel may round.
    """

    def __init__(self, channels: int, prompts: int, width: int) -> None:
        super().__init__()
        self.mixture = PromptMixture(channels, prompts, width)
        self.conv = nn.Conv2d(width + channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → (B, H, W, C)."""
        prompt = self.mixture(x).to(x.dtype).expand(-1, *x.shape[1:3], -1)
        return x + conv_nhwc(self.conv, torch.cat([prompt, x], dim=-1))


@register("conv-prompt", ConvPromptOptions)
class ConvPrompt(Adapter):
    """One :class:`ConvStage` after each stage."""

    def __init__(self, network: AdapterHost, options: ConvPromptOptions) -> None:
        width = prompt_width(network, options.width)
        parts = [ConvStage(channels, options.prompts, width) for channels in network.out_widths]
        super().__init__(options, prompts=nn.ModuleList(parts))
