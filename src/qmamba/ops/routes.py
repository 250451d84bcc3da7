"""Routes: the orders in which a scan visits the positions of a grid.

QMamba's cross-scan walks the whole grid by rows and by columns; LQMamba's local scan cuts the grid into
windows first, so that neighbours in the image stay neighbours in the sequence (paper, section 3.1 and
Figure 1). Each is walked forwards and backwards, which makes K = 4 routes.
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
        window: side of the square windows that are visited one after the other; ``None`` for the whole grid
            at once. Where a side is not a multiple of it, the border windows are smaller: nothing is padded.
        reverse: visit the same positions from the last to the first.

    >>> Route("row", window=2).order(2, 4).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """

    axis: Literal["row", "column"]
    window: int | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        if self.axis not in ("row", "column"):
            raise ValueError(f"axis must be 'row' or 'column', got {self.axis!r}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be a positive number of positions, got {self.window}")

    @property
    def forward(self) -> Route:
        """Return the same route, walked forwards."""
        return Route(self.axis, self.window)

    def order(self, height: int, width: int) -> Tensor:
        """Return the permutation int64 (H·W,) whose t-th entry is the row-major index visited at t."""
        return torch.as_tensor(self.visits(height, width).copy(), device="cpu")

    def visits(self, height: int, width: int) -> np.ndarray:
        """Return the values of `order` as a read-only, cached array.

        It is NumPy's: a tensor made under a default device, in inference mode or while tracing would carry
        that state into other calls.
        """
        return _order(self.axis, self.window, self.reverse, height, width)


def cross_scan_routes() -> tuple[Route, ...]:
    """Return QMamba's four routes, in the order of published VMamba weights."""
    row, column = Route("row"), Route("column")
    return row, column, Route("row", reverse=True), Route("column", reverse=True)


def local_scan_routes(window: int) -> tuple[Route, ...]:
    """Return LQMamba's four routes over windows of ``window`` × ``window`` positions."""
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
    order.flags.writeable = False  # callers share it
    return order
