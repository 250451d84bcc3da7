"""Maps of quality: what each position of a network adds to the score of an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from qmamba.calibration import Calibration, Scale
from qmamba.checkpoints import ModelConfig
from qmamba.errors import CapabilityError
from qmamba.models.capabilities import Positions, require
from qmamba.protocol import View, Window
from qmamba.scoring.pipeline import Crops, CropScores, windows_and_weights

COARSE = 48  # values along the longer side of a small map
# Minimum half width of a colour scale, as a share of the range of scores. Positions of the undamaged
# photographs in examples/ are up to 0.26 from the score, and should not have the colours of damage.
LEAST_REACH = 0.4


@dataclasses.dataclass(frozen=True, eq=False)
class QualityMap:
    """What each position of a network adds to an image's score.

    The head of a network takes the mean over its positions, and a score is the mean over the parts of the
    protocol: so a score is a weighted sum, and `(scores * shares).sum()` is `score`. For a part with the
    score s, whose positions have the values q with the mean r, the score of a position is s + c · (q - r),
    where c is the derivative of the score with respect to r.

    A map shows where a score comes from. It is not a set of independent ratings: the network mixes all
    positions before its head, so that a position depends on the whole part that it lies in, and a window that
    is cut out and scored by itself gets another score. Scores of positions may leave the range of scores.

    Attributes:
        height, width: of the image, in pixels.
        score: the image's score, as `Scorer.score` returns it.
        windows: n times (top, left, height, width), in pixels of the image: the cell of a position, which is
            all pixels that are nearest to its centre. Cells of different parts overlap.
        scores: (n,) float32 on the CPU, the value of each position.
        shares: (n,) float32 on the CPU, the weight of each position in the score; they sum to 1.
        parts: per size of the protocol, and per crop of it, the values as a grid (h, w) float32.
        views: the sizes and crops that the parts belong to.
        span: width of the range of scores.
    """

    height: int
    width: int
    score: float
    windows: list[Window]
    scores: Tensor
    shares: Tensor
    parts: tuple[tuple[Tensor, ...], ...]
    views: tuple[View, ...]
    span: float = 1.0

    @property
    def std(self) -> float:
        """Weighted standard deviation of the scores of the parts; 0 for a single part."""
        weights, scores = zip(
            *((1 / len(grids), float(grid.mean())) for grids in self.parts for grid in grids), strict=True
        )
        shares = np.array(weights) / sum(weights)
        return float(np.sqrt((shares * (np.array(scores) - self.score) ** 2).sum()))

    def coarse(self) -> np.ndarray:
        """Return `image` with a longer side of `COARSE`, which is fine enough for all positions."""
        scale = COARSE / max(self.height, self.width)
        return self.image(*(max(1, round(side * scale)) for side in (self.height, self.width)))

    def limits(self) -> tuple[float, float]:
        """Return the ends of a colour scale, in scores.

        The scale is centred on the score and reaches to the value of the smooth map that is farthest from it,
        and at least `LEAST_REACH` of the range: with less, undamaged photographs would look damaged.
        """
        reach = max(LEAST_REACH * self.span, float(np.nanmax(np.abs(self.coarse() - self.score))))
        return self.score - reach, self.score + reach

    def image(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Return the map as a smooth picture, for display only: it does not sum to the score.

        Values lie at the centres of their cells and are interpolated linearly; crops that overlap are
        averaged, and so are the sizes of the protocol.

        Args:
            height, width: of the picture, in pixels; by default those of the image.

        Returns:
            (height, width) float32, in scores. NaN where no part of the protocol lies: a grid leaves gaps in
            very large images, and random crops leave many.

        Examples:
            >>> import qmamba
            >>> whole = qmamba.load("lqmamba-n").quality_map(torch.zeros(3, 96, 64))
            >>> whole.image(6, 4).shape
            (6, 4)
        """
        height = self.height if height is None else height
        width = self.width if width is None else width
        total, count = (torch.zeros(height, width, device="cpu") for _ in range(2))
        for view, values in zip(self.views, self.parts, strict=True):
            mean = _drawn(view, values, height, width)
            seen = ~mean.isnan()
            total[seen] += mean[seen]
            count += seen
        picture: np.ndarray = (total / count).numpy()  # 0 / 0 is NaN, outside all parts
        return picture


def mappable(network: nn.Module, config: ModelConfig) -> Positions:
    """Return the network, once it is known that its positions can be shown on an image.

    Raises:
        CapabilityError: it does not give values of positions, or its inputs are not windows of the image.
    """
    found = require(network, Positions, "quality map")
    if config.output != "number":
        raise CapabilityError(
            f"no quality map of {config.name!r}: its output is {config.output}, not a number"
        )
    crop, kind = (config.protocol.crop,) * 2, config.protocol.kind
    if config.preprocessing.size not in (None, crop if kind in ("grid", "random") else None):
        raise CapabilityError(
            f"no quality map of {config.name!r}: its preprocessing resizes crops; "
            'use protocol="grid" with crops of its input size'
        )
    return found


def local_values(raw: Tensor, positions: Tensor, scale: Calibration | Scale) -> tuple[Tensor, Tensor]:
    """Return scores of crops (N,), and values of their positions (N, h, w), whose means they are; float32.

    Args:
        raw: (N, 1), raw quality.
        positions: (N, h, w), any floating type: what each position adds to it; their mean is `raw`, up to
            rounding.
        scale: from raw quality to scores.
    """
    quality = raw[:, 0].to(torch.float32)
    scores, slopes = scale(quality), scale.derivative(quality)
    # Centred on their own mean: values then sum to the score however coarsely a narrow type has rounded.
    wide = positions.to(torch.float32)
    centred = wide - wide.mean(dim=(1, 2), keepdim=True)
    return scores, scores[:, None, None] + slopes[:, None, None] * centred


def assembled(
    height: int, width: int, looked: Sequence[tuple[Crops, tuple[Tensor, Tensor]]], span: float = 1.0
) -> QualityMap:
    """Return the map of an image of this size from its crops, each with the result of `local_values`."""
    parts, results = zip(*looked, strict=True)
    crop_windows, weights = windows_and_weights(parts, height, width)
    crop_scores = CropScores(crop_windows, torch.cat([scores for scores, _ in results]).cpu(), weights)
    windows: list[Window] = []
    values, shares = [], []
    grids: dict[int, list[Tensor]] = {}  # by view, which two sizes of a protocol may have equal
    for part, (_, local) in looked:
        for box, grid in zip(part.windows, local.cpu().clone(), strict=True):
            windows += (part.view.in_image(cell, height, width) for cell in _cells(box, *grid.shape))
            values.append(grid.flatten())
            shares.append(torch.full((grid.numel(),), part.weight / grid.numel(), device="cpu"))
            grids.setdefault(id(part.view), []).append(grid)
    return QualityMap(
        height, width, crop_scores.mean, windows, torch.cat(values), torch.cat(shares),
        tuple(map(tuple, grids.values())), tuple({id(part.view): part.view for part in parts}.values()), span,
    )  # fmt: skip


def _stride(length: int, count: int) -> int:
    """Return the pixels between positions: the power of two with ceil(length / stride) = count."""
    stride = 1
    while -(-length // stride) > count:
        stride *= 2
    return stride


def _cells(box: Window, rows: int, columns: int) -> Iterator[Window]:
    """Yield the cells of a crop's positions, row by row, in the pixels of the crop's view."""
    top, left, height, width = box
    for first, last in _edges(height, rows):
        for start, stop in _edges(width, columns):
            yield top + first, left + start, last - first, stop - start


def _edges(length: int, count: int) -> list[tuple[int, int]]:
    """Return start and end of each cell. Strided convolutions centre position i on pixel i · stride."""
    stride = _stride(length, count)
    cuts = [0, *(stride * i - stride // 2 for i in range(1, count)), length]
    return list(pairwise(cuts))


def _drawn(view: View, values: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Return the mean of a view's crops, (height, width), NaN outside all crops."""
    total, count = (torch.zeros(height, width, device="cpu") for _ in range(2))
    for (top, left, tall, wide), grid in zip(view.windows, values, strict=True):
        rows, across = _weights(height, view.height, top, tall, grid.shape[0])
        columns, down = _weights(width, view.width, left, wide, grid.shape[1])
        total[rows, columns] += across @ grid @ down.T
        count[rows, columns] += 1
    return total / count


def _weights(pixels: int, length: int, start: int, extent: int, count: int) -> tuple[slice, Tensor]:
    """Return the pixels of one side that lie in a crop, and the weights (pixels, count) of its positions.

    Args:
        pixels: length of the picture's side.
        length: length of the view's side, in pixels of the view.
        start, extent: of the crop, in pixels of the view.
        count: number of the crop's positions.
    """
    places = (torch.arange(pixels, dtype=torch.float64, device="cpu") + 0.5) * (length / pixels) - start
    inside = ((places >= 0) & (places < extent)).nonzero()[:, 0]
    if inside.numel() == 0:
        return slice(0, 0), torch.zeros(0, count, device="cpu")
    first, last = int(inside[0]), int(inside[-1]) + 1
    at = ((places[first:last] - 0.5) / _stride(extent, count)).clamp(0, count - 1)
    near = torch.arange(count, device="cpu", dtype=torch.float64)
    return slice(first, last), (1 - (at[:, None] - near).abs()).clamp_min(0).to(torch.float32)
