"""StylePrompt: prompts that adapt the mean and deviation of a network's features (QMamba, section 3.2).

The layout was recovered from the paper's parameter counts: one StylePrompt after each of the four stages,
after the downsample, with prompts of width 256 and one 3×3 convolution shared by γ and β: 3,829,784
parameters on lqmamba-b.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AdapterError
from ..models.capabilities import AdapterHost
from ..models.channels_last import conv_nhwc
from .base import Adapter, check_at_least
from .prompts import PromptMixture, prompt_width, resized
from .registry import register

LAYER = "layer"


@dataclass(frozen=True)
class StylePromptOptions:
    """Options of StylePrompt.

    Attributes:
        prompts: N, prompts per stage (Table 9).
        width: channels of a prompt; by default the paper's 256, or less on narrower networks, see
            :func:`qmamba.adapters.prompts.prompt_width`.
        size: (h, w) of a prompt (Table 10), or "layer" for the size of each stage's output at 224×224.
    """

    prompts: int = 6
    width: int | None = None
    size: tuple[int, int] | str = (1, 1)

    def __post_init__(self) -> None:
        check_at_least(self, prompts=1, width=1)
        if self.size == LAYER:
            return
        sides = tuple(self.size) if isinstance(self.size, (tuple, list)) else ()
        if len(sides) != 2 or any(type(side) is not int or not 1 <= side <= 256 for side in sides):
            raise AdapterError(f'size must be (h, w) with sides from 1 to 256, or "layer", got {self.size!r}')
        object.__setattr__(self, "size", sides)  # JSON has lists only

    def size_of(self, stage: int, stages: int) -> tuple[int, int]:
        """Return (h, w) of the prompts after a stage."""
        if isinstance(self.size, str):
            side = 28 >> min(stage, stages - 2)
            return max(1, side), max(1, side)
        return self.size


class StyleStage(nn.Module):
    """``F' = F · (1 + γ) + β`` with γ and β generated from a mixture of prompts (equations 1 to 4).

    The two Linears are initialised to zero, so that F' = F. With prompts of one position, only the centre of
    the 3×3 kernel meets anything but padding: the other eight ninths count as parameters and never act.
    """

    def __init__(self, channels: int, prompts: int, width: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.mixture = PromptMixture(channels, prompts, width, size)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.gamma = nn.Linear(width, channels)
        self.beta = nn.Linear(width, channels)
        self.single = size == (1, 1)
        nn.init.normal_(self.conv.weight, std=(width if self.single else 9 * width) ** -0.5)
        for linear in (self.gamma, self.beta):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → (B, H, W, C)."""
        prompt = self.mixture(x)
        if self.single:
            style = F.linear(prompt, self.conv.weight[:, :, 1, 1])
        else:
            style = conv_nhwc(self.conv, prompt)
        gamma, beta = (resized(linear(style), x).to(x.dtype) for linear in (self.gamma, self.beta))
        return torch.addcmul(beta, x, 1 + gamma)


@register("style-prompt", StylePromptOptions)
class StylePrompt(Adapter):
    """One :class:`StyleStage` after each stage: 3,829,784 parameters on lqmamba-b, 157,336 on lqmamba-n.

    Prompts of one position are stored with 1×1 kernels: 1,732,632 and 83,608 elements.
    """

    options: StylePromptOptions

    def __init__(
        self, network: AdapterHost, options: StylePromptOptions, *, head: nn.Module | None = None
    ) -> None:
        width, stages = prompt_width(network, options.width), len(network.out_widths)
        parts = [
            StyleStage(channels, options.prompts, width, options.size_of(stage, stages))
            for stage, channels in enumerate(network.out_widths)
        ]
        super().__init__(options, prompts=nn.ModuleList(parts), head=head)

    def _kernels(self) -> list[str]:
        """Return the names of the 3×3 kernels of which only the centre acts."""
        parts = dict(self.named_modules())
        return [
            f"{n}.conv.weight" for n, part in parts.items() if isinstance(part, StyleStage) and part.single
        ]

    def stored(self) -> dict[str, Tensor]:
        tensors = super().stored()
        return tensors | {name: tensors[name][:, :, 1:2, 1:2] for name in self._kernels()}

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        whole = dict(tensors)
        for name in self._kernels():
            whole[name] = F.pad(whole[name], (1, 1, 1, 1))
        super()._take(whole)


@register("style-prompt-r", StylePromptOptions)
class StylePromptR(StylePrompt):
    """StylePrompt & R (Table 3): the head trains together with the prompts."""

    def __init__(self, network: AdapterHost, options: StylePromptOptions) -> None:
        super().__init__(network, options, head=copy.deepcopy(network.head))
