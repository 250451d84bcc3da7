"""Routes: the orders in which a scan visits the positions of a grid.

QMamba's cross-scan walks the whole grid by rows and by columns; LQMamba's local scan cuts the grid into
windows first, so that neighbours in the picture stay neighbours in the sequence (paper, section 3.1 and
Figure 1). Each of the two is walked forwards and backwards, which makes K = 4 routes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Route:
    """One order over the H·W positions of a grid.

    Args:
        axis: ``"row"`` visits row after row, ``"column"`` column after column. With windows, both the
            windows and the positions inside each window are visited that way.
        window: side of the square windows that are finished one after the other; ``None`` for the whole
            grid at once. Where a side is not a multiple of it, the border windows are smaller: no
            position is invented.
        reverse: visit the same positions from the last to the first.

    >>> Route("row", window=2).order(2, 4).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """

    axis: Literal["row", "column"]
    window: int | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        if self.axis not in ("row", "column"):
            raise ValueError(f"a route's axis is 'row' or 'column', not {self.axis!r}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"a route's window is a positive number of positions, not {self.window}")

    @property
    def forward(self) -> Route:
        """The same route, walked forwards."""
        return Route(self.axis, self.window)

    def order(self, height: int, width: int) -> Tensor:
        """The route as a permutation: int64 (H·W,), whose t-th entry is the row-major index visited at t."""
        return torch.as_tensor(self.visits(height, width).copy(), device="cpu")

    def visits(self, height: int, width: int) -> np.ndarray:
        """What `order` holds, read-only and kept. In numpy: tensors made under a default device, in inference
        mode or while a graph is traced keep something of it, and must not be met again elsewhere."""
        return _order(self.axis, self.window, self.reverse, height, width)


def cross_scan_routes() -> tuple[Route, ...]:
    """QMamba's four routes, in the order that published VMamba weights depend on."""
    row, column = Route("row"), Route("column")
    return row, column, Route("row", reverse=True), Route("column", reverse=True)


def local_scan_routes(window: int) -> tuple[Route, ...]:
    """LQMamba's four routes over windows of ``window`` × ``window`` positions."""
    row, column = Route("row", window), Route("column", window)
    return row, column, Route("row", window, reverse=True), Route("column", window, reverse=True)


def _blocks(length: int, size: int) -> Iterator[range]:
    for start in range(0, length, size):
        yield range(start, min(start + size, length))


@lru_cache(maxsize=512)
def _order(
    axis: Literal["row", "column"], window: int | None, reverse: bool, height: int, width: int
) -> np.ndarray:
    if axis == "column":  # the row route of the transposed grid
        transposed = _order("row", window, reverse, width, height)
        return _frozen(transposed % height * width + transposed // height)
    grid = np.arange(height * width, dtype=np.int64).reshape(height, width)
    size = window or max(height, width)
    order = np.concatenate(
        [
            grid[rows.start : rows.stop, columns.start : columns.stop].reshape(-1)
            for rows in _blocks(height, size)
            for columns in _blocks(width, size)
        ]
    )
    return _frozen(order[::-1].copy() if reverse else order)


def _frozen(order: np.ndarray) -> np.ndarray:
    order.flags.writeable = False  # many callers share it
    return order
