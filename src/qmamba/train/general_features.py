"""General features: those of EfficientNet-Lite0 trained on ImageNet, as maps and as statistics.

The teacher is never tuned: tuning it on one set of ratings may cost it features that ratings of another
domain need.

Seven blocks are read, the last of each width and stride. Their outputs for B crops of S pixels are the maps,
(B, C, S / reduction, S / reduction). The statistics are (B, 2848): end by end the C means and then the C
deviations over positions, and last the 1280 means of the features that ImageNet's classifier saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..models import create_model
from ..models.lite0 import LITE0, EfficientNetLite0, start_lite0
from ..models.statistics import channel_statistics
from .networks import interface_of
from .processes import Processes

BLOCKS = (0, 2, 4, 7, 10, 14, 15)
ENDS = [
    {"num_chs": width, "reduction": reduction}
    for width, reduction in ((16, 2), (24, 4), (40, 8), (80, 16), (112, 16), (192, 32), (320, 32))
]
PARTS = (2 * (16 + 24 + 40), 2 * (80 + 112), 2 * (192 + 320), 1280)  # early, middle and late ends, the last
STATISTICS = sum(PARTS)


class GeneralFeatures(NamedTuple):
    """The teacher's features of B crops, in float32.

    Attributes:
        maps: per end (B, C, H, W), see :data:`ENDS`.
        statistics: (B, 2848), means and deviations of the maps and means of the last features.
    """

    maps: list[Tensor]
    statistics: Tensor


class GeneralTeacher(nn.Module):
    """A frozen EfficientNet-Lite0 with the weights of ImageNet, behind pixels.

    Raises:
        RecipeError: the packages of the extra ``distil`` are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            network = create_model(LITE0)
            start_lite0(network)
        self.network = network.eval().requires_grad_(False)
        self.interface = interface_of(LITE0)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> GeneralFeatures:
        """Return the features of pixels (B, 3, S, S) uint8."""
        images = self.interface.images(pixels, next(self.network.parameters()).device)
        outputs, last = cast(EfficientNetLite0, self.network).block_outputs(images, BLOCKS)
        maps = [output.float() for output in outputs]
        return GeneralFeatures(maps, torch.cat([channel_statistics(maps), last.float().mean((2, 3))], dim=1))


def measure(teacher: nn.Module, pixels: Iterator[Tensor], processes: Processes) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (2848,) of a teacher's statistics over crops, in float32 on the device.

    Args:
        teacher: a :class:`GeneralTeacher`.
        pixels: this process's crops, (B, 3, S, S) uint8 at a time.
        processes: all of them get the figures of all crops.
    """
    count, total, squares = 0, torch.zeros(STATISTICS).double(), torch.zeros(STATISTICS).double()
    for each in pixels:
        statistics = teacher(each).statistics.double().cpu()
        count += len(statistics)
        total += statistics.sum(0)
        squares += statistics.square().sum(0)
    counts, totals, sums = zip(*processes.collect((count, total, squares)), strict=True)
    mean = torch.stack(totals).sum(0) / sum(counts)
    variance = (torch.stack(sums).sum(0) / sum(counts) - mean.square()).clamp(min=0)
    return mean.float().to(processes.device), variance.sqrt().float().to(processes.device)
