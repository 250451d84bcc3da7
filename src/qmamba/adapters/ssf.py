"""SSF prompt: γ and β learnt directly, without prompts (QMamba, section 4.4.3 and Table 8, after Lian et al.,
"Scaling & Shifting Your Features", NeurIPS 2022).

The paper prints 6.1 M parameters but no layout, and none could be recovered. Here γ and β are grids, one pair
per stage, resized to the feature: 33×33 positions are 6,133,248 parameters on lqmamba-b. With ``grid=1`` it
is SSF as published, at the four places where StylePrompt acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..models.capabilities import AdapterHost
from .base import Adapter, check_at_least, is_paper_sized
from .prompts import resized
from .registry import register


@dataclass(frozen=True)
class SSFOptions:
    """Options of the SSF prompt.

    Attributes:
        grid: side of the grids of γ and β; by default 33, and 12 on networks narrower than the paper's:
            202,752 parameters on lqmamba-n, about the paper's share.
    """

    grid: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, grid=1)


class ScaleShift(nn.Module):
    """``F · (1 + γ) + β`` with γ and β (grid, grid, C), both initialised to zero."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, grid, grid, channels))
        self.beta = nn.Parameter(torch.zeros(1, grid, grid, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → (B, H, W, C)."""
        gamma, beta = (resized(grid, x).to(x.dtype) for grid in (self.gamma, self.beta))
        return torch.addcmul(beta, x, 1 + gamma)


@register("ssf", SSFOptions)
class SSF(Adapter):
    """One scale and shift after each stage."""

    lr: ClassVar[float] = 1e-1  # an element of a grid acts on few positions, and alone

    def __init__(self, network: AdapterHost, options: SSFOptions) -> None:
        grid = options.grid or (33 if is_paper_sized(network) else 12)
        parts = [ScaleShift(channels, grid) for channels in network.out_widths]
        super().__init__(options, prompts=nn.ModuleList(parts))
