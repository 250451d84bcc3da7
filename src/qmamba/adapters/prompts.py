"""Generate a prompt from a feature, as several adapters do (QMamba, equation 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.capabilities import AdapterHost
from .base import is_paper_sized


def prompt_width(network: AdapterHost, width: int | None) -> int:
    """Return the width of prompts: the given one, or by default the paper's 256.

    On networks narrower than the paper's, the default is three quarters of the first stage's output: 48 on
    lqmamba-n, 4.6 % of its parameters, about the paper's share (3.83 M of 93.79 M, 4.1 %). 256 would be 81 %.
    """
    if width is not None:
        return width
    return 256 if is_paper_sized(network) else max(1, 3 * network.out_widths[0] // 4)


class PromptMixture(nn.Module):
    """``P_f = Σ_n w_n P_n`` with ``w = softmax(Linear(GAP(F)))``: N prompts, mixed by the feature.

    Args:
        channels: C, of the feature.
        prompts: N, their number.
        width: channels of a prompt.
        size: (h, w), positions of a prompt.
    """

    def __init__(self, channels: int, prompts: int, width: int, size: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.predict = nn.Linear(channels, prompts)
        self.prompts = nn.Parameter(torch.empty(prompts, *size, width))
        nn.init.trunc_normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)
        nn.init.normal_(self.prompts)

    def weights(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → w (B, N)."""
        return F.softmax(self.predict(x.mean(dim=(1, 2))), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) → P_f (B, h, w, width)."""
        mixed = self.weights(x) @ self.prompts.flatten(1)
        return mixed.view(-1, *self.prompts.shape[1:])


def resized(grid: Tensor, x: Tensor) -> Tensor:
    """Resize a grid (B, h, w, C) bilinearly to the height and width of x (B, H, W, C').

    Shrinking is antialiased. Half-precision grids come out as float32, and a grid of one position is left to
    broadcasting.
    """
    if grid.shape[1:3] in ((1, 1), x.shape[1:3]):
        return grid
    height, width = x.shape[1:3]
    shrinks = grid.shape[1] > height or grid.shape[2] > width
    planes = grid.permute(0, 3, 1, 2)
    if planes.dtype.itemsize < 4:  # torch cannot shrink bfloat16 on a CPU
        planes = planes.float()
    size = (height, width)
    planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    return planes.permute(0, 2, 3, 1)
