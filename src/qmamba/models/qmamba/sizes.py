"""The sizes of QMamba and LQMamba, registered as architectures.

Widths and depths are the paper's; its "depth 4" and "depth 15" are the depths of the third stage.
Windows and drop-path rates are choices of this project, as the paper does not give them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..registry import Architecture, register
from .network import QMamba
from .vmamba import load_vmamba

WINDOWS = (2, 4, 7, 7)  # they divide the grids of a 224-pixel input: 56, 28, 14, 7


@dataclass(frozen=True)
class Size:
    """A network of four stages; each is twice as wide as the one before.

    Args:
        width: channels of the first stage.
        depth: blocks of the third stage; the others have two.
        drop_path: highest rate of stochastic depth.
        windows: None for QMamba's cross-scan, or the window side of each stage for LQMamba's local scan.
    """

    width: int
    depth: int
    drop_path: float
    windows: tuple[int, ...] | None = None

    def __call__(self, **overrides: Any) -> QMamba:
        """Build the network, with the keyword arguments of :class:`QMamba` in place of its own."""
        plan: dict[str, Any] = {
            "widths": doubling(self.width),
            "depths": (2, 2, self.depth, 2),
            "drop_path": self.drop_path,
            "windows": self.windows,
        }
        return QMamba(**{**plan, **overrides})


def doubling(width: int) -> tuple[int, int, int, int]:
    """Widths of four stages, each twice the one before."""
    return width, 2 * width, 4 * width, 8 * width


SIZES = {
    "qmamba-t": Size(96, 4, 0.2),  # 27,993,409 parameters
    "qmamba-s": Size(96, 15, 0.3),  # 49,379,521
    "qmamba-b": Size(128, 15, 0.6),  # 87,533,825
    "lqmamba-t": Size(96, 4, 0.2, WINDOWS),  # 29,877,841
    "lqmamba-s": Size(96, 15, 0.3, WINDOWS),  # 52,912,369
    "lqmamba-b": Size(128, 15, 0.6, WINDOWS),  # 93,792,577
    "lqmamba-n": Size(32, 4, 0.1, WINDOWS),  # 3,384,177; this project's small one
}
for _name, _size in SIZES.items():
    register(Architecture(_name, _size, convert=load_vmamba))
