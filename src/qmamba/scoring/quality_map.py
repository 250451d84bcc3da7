"""Where the score of an image comes from: the network's positions, each with what it adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from qmamba.calibration import Calibration
from qmamba.errors import BackendError
from qmamba.models.qmamba import QMamba
from qmamba.protocol import View, Window

COARSE = 48  # values along the longer side of a map that is drawn small
LEAST_REACH = 0.1  # how far from the score a scale of colours goes at least


@dataclasses.dataclass(frozen=True, eq=False)
class QualityMap:
    """What each position of the network adds to an image's score.

    The head of a network takes the mean of what its positions say, and a score is the mean over the parts of
    the protocol. So a score is a weighted sum: `(scores * shares).sum()` is `score`. For a part with the
    score s, whose positions say q with the mean r, the score of a position is s + c · (q - r), where c is
    the derivative of the calibration at r.

    A map shows where a score comes from. It is no set of independent ratings: the network mixes all
    positions before they speak, so a position knows of the whole part that it lies in, and a window cut out
    and rated by itself would get another score. Scores of positions are on the scale of the whole and may
    leave [0, 1].

    Attributes:
        height, width: of the image, in pixels.
        score: the image's score, as `Scorer.score` gives it.
        windows: n times (top, left, height, width), in pixels of the image: the cell of a position, all
            pixels that are nearest to its centre. Cells of different parts overlap.
        scores: (n,) float32 on the CPU, the value of each position; higher is better.
        shares: (n,) float32 on the CPU, what each counts in the score; they sum to 1.
        parts: per size of the protocol, and per crop of it, the values as a grid (h, w) float32.
        views: the sizes and crops that the parts belong to.
    """

    height: int
    width: int
    score: float
    windows: list[Window]
    scores: Tensor
    shares: Tensor
    parts: tuple[tuple[Tensor, ...], ...]
    views: tuple[View, ...]

    def coarse(self) -> np.ndarray:
        """`image` with a longer side of `COARSE`, which shows all that there is to see."""
        scale = COARSE / max(self.height, self.width)
        return self.image(*(max(1, round(side * scale)) for side in (self.height, self.width)))

    def limits(self) -> tuple[float, float]:
        """Where a scale of colours begins and ends, in scores.

        Equally far below and above the score, so that its colour is the middle one: as far as the value that
        is farthest from it on the smooth map, and at least `LEAST_REACH`, or noise would look like damage.
        """
        reach = max(LEAST_REACH, float(np.nanmax(np.abs(self.coarse() - self.score))))
        return self.score - reach, self.score + reach

    def image(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """The map as a picture, smooth and for display only: it does not sum to the score.

        Values lie at the centres of their cells, with straight lines between them; crops that overlap are
        averaged, and so are the sizes that the protocol looks at.

        Args:
            height, width: of the picture, in pixels; by default those of the image.

        Returns:
            (height, width) float32, on the scale of scores. NaN where no part of the protocol lies: a grid
            leaves gaps in very large images, and random crops leave many.

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
        picture: np.ndarray = (total / count).numpy()  # 0 / 0 is NaN, where nothing was looked at
        return picture


def mappable(network: nn.Module) -> QMamba:
    """The network, if it is one whose positions can be asked.

    Raises:
        BackendError: it is none that `create_model` builds.
    """
    if not isinstance(network, QMamba):
        raise BackendError(f"maps are for networks of create_model, not for a {type(network).__name__}")
    return network


def local_values(raw: Tensor, said: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Scores (N,) of crops with the raw quality (N,), and their positions' values, whose means they are.

    Args:
        raw: (N,) float32.
        said: (N, h, w), of any floating type: what the positions say, with the mean `raw` but for rounding.
        calibration: of the network, or of the adapter.

    Returns:
        (N,) and (N, h, w), float32.
    """
    scores, slopes = calibration(raw), calibration.derivative(raw)
    # Their own mean, so that values sum to the score however coarsely a narrow type has rounded.
    wide = said.to(torch.float32)
    away = wide - wide.mean(dim=(1, 2), keepdim=True)
    return scores, scores[:, None, None] + slopes[:, None, None] * away


def assembled(
    height: int, width: int, seen: Sequence[View], values: Sequence[Tensor], score: float
) -> QualityMap:
    """The map of an image of this size, from the values of its views' crops, (h, w) each, in their order."""
    windows: list[Window] = []
    scores, shares, parts = [], [], []
    rest = iter(values)
    for view in seen:
        grids = tuple(next(rest) for _ in view.windows)
        for box, grid in zip(view.windows, grids, strict=True):
            windows += (view.in_image(cell, height, width) for cell in _cells(box, *grid.shape))
            scores.append(grid.flatten())
            share = 1 / (len(seen) * len(view.windows) * grid.numel())
            shares.append(torch.full((grid.numel(),), share, device="cpu"))
        parts.append(grids)
    return QualityMap(
        height, width, score, windows, torch.cat(scores), torch.cat(shares), tuple(parts), tuple(seen)
    )


def _stride(length: int, count: int) -> int:
    """Pixels between positions: the power of two of which `count`, rounded up, make the length."""
    stride = 1
    while -(-length // stride) > count:
        stride *= 2
    return stride


def _cells(box: Window, rows: int, columns: int) -> Iterator[Window]:
    """The cells of a crop's positions, row by row, in the pixels that the crop is given in."""
    top, left, height, width = box
    for first, last in _edges(height, rows):
        for start, stop in _edges(width, columns):
            yield top + first, left + start, last - first, stop - start


def _edges(length: int, count: int) -> list[tuple[int, int]]:
    """Where cells begin and end. Strided convolutions with padding centre position i on pixel i · stride."""
    stride = _stride(length, count)
    cuts = [0, *(stride * i - stride // 2 for i in range(1, count)), length]
    return list(pairwise(cuts))


def _drawn(view: View, values: Sequence[Tensor], height: int, width: int) -> Tensor:
    """The mean of a view's crops, (height, width), NaN where none lies."""
    total, count = (torch.zeros(height, width, device="cpu") for _ in range(2))
    for (top, left, tall, wide), grid in zip(view.windows, values, strict=True):
        rows, across = _weights(height, view.height, top, tall, grid.shape[0])
        columns, down = _weights(width, view.width, left, wide, grid.shape[1])
        total[rows, columns] += across @ grid @ down.T
        count[rows, columns] += 1
    return total / count


def _weights(pixels: int, length: int, start: int, extent: int, count: int) -> tuple[slice, Tensor]:
    """Which of `pixels` along a side lie in a crop, and (those, count): what each position counts there.

    Args:
        pixels: of the picture along this side.
        length: of the view along it, which the picture shows.
        start, extent: of the crop, in pixels of the view.
        count: of the crop's positions.
    """
    places = (torch.arange(pixels, dtype=torch.float64, device="cpu") + 0.5) * (length / pixels) - start
    inside = ((places >= 0) & (places < extent)).nonzero()[:, 0]
    if inside.numel() == 0:
        return slice(0, 0), torch.zeros(0, count, device="cpu")
    first, last = int(inside[0]), int(inside[-1]) + 1
    at = ((places[first:last] - 0.5) / _stride(extent, count)).clamp(0, count - 1)
    near = torch.arange(count, device="cpu", dtype=torch.float64)
    return slice(first, last), (1 - (at[:, None] - near).abs()).clamp_min(0).to(torch.float32)
