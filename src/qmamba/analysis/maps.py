"""Draw a quality map beside its photograph with matplotlib, which the extra `plot` installs."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from qmamba.errors import ArgumentError, BackendError, QMambaError
from qmamba.images import printable, thumbnail
from qmamba.scoring import QualityMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 1000  # pixels of a drawn photograph's longer side
COLOURS = "viridis"  # perceptually uniform and safe for colour-blind readers; dark is low
OPACITY = 0.65
NAME_LENGTH = 48
WIDE = 1.9  # from this ratio of width to height a photograph is drawn above its map, not beside it


def save_map(
    path: str | os.PathLike[str],
    pixels: torch.Tensor,
    found: QualityMap,
    *,
    name: str = "",
    limits: tuple[float, float] | None = None,
) -> None:
    """Write a picture of a photograph beside its map, which is drawn over it, with a colour bar.

    A line on the bar marks the photograph's score, which is also in the
    title. Parts that the protocol did not look at stay uncovered. matplotlib's settings are left alone.

    Args:
        path: of the picture. Its extension names the format: .png, .jpg, .pdf, .svg, .webp and others.
        pixels: (3, H, W), uint8 or float in [0, 1], as `qmamba.images.decode` returns them.
        found: the map of that photograph.
        name: for the title.
        limits: ends of the colour scale, in scores, the same for pictures that are compared; values beyond
            them get the colour of the end. By default `QualityMap.limits`.

    Raises:
        ArgumentError: limits that do not rise.
        BackendError: matplotlib is not installed.
        QMambaError: matplotlib writes no format of this extension.
    """
    low, high = found.limits() if limits is None else limits
    if not -math.inf < low < high < math.inf:  # written so that NaN fails
        raise ArgumentError(f"limits of a colour scale must rise, got {low:g} to {high:g}")
    figure = _figure(pixels, found, name, low, high)
    check_picture_name(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about letters that the font lacks
        figure.savefig(path, dpi=110)


def check_picture_name(path: str | os.PathLike[str]) -> None:
    """Refuse a file name whose extension is no format that matplotlib writes.

    Raises:
        BackendError: matplotlib is not installed.
        QMambaError: matplotlib writes no format of this extension.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise BackendError('drawing a map needs matplotlib: pip install "qmamba[plot]"') from error
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FigureCanvasAgg.filetypes:
        given = f".{kind}" if kind else "no extension"
        raise QMambaError(
            f"{printable(os.fspath(path))}: the extension must be .png, .jpg, .pdf or .svg, got {given}"
        )


def _figure(pixels: torch.Tensor, found: QualityMap, name: str, low: float, high: float) -> Figure:
    from matplotlib.figure import Figure

    photograph = np.asarray(thumbnail(pixels, LONGEST))
    height, width = photograph.shape[:2]
    beside = width < WIDE * height
    across = min(5.2, 5.2 * width / height) if beside else 8.0  # inches of a panel
    tall = across * height / width
    size = (2 * across + 1.3, tall + 0.9) if beside else (across + 1.3, 2 * tall + 1.1)
    figure = Figure(figsize=(max(size[0], 6.0), max(size[1], 2.4)), layout="constrained")
    axes = figure.subplots(*((1, 2) if beside else (2, 1)))
    title = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH // 2]}…{name[-NAME_LENGTH // 2 :]}"
    figure.suptitle(
        f"{title}: score {found.score:.3f}".removeprefix(": "), parse_math=False, fontsize="large"
    )
    for panel in axes:
        panel.axis("off")
    axes[0].imshow(photograph)
    axes[1].imshow(photograph.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    values = found.image(height, width)
    drawn = axes[1].imshow(values, cmap=COLOURS, vmin=low, vmax=high, alpha=OPACITY)
    beyond = np.nanmin(values) < low, np.nanmax(values) > high
    bar = figure.colorbar(
        drawn, ax=axes[1] if beside else axes, label="contribution of each place, in scores",
        extend={(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither"),
    )  # fmt: skip
    if low <= found.score <= high:
        bar.ax.axhline(found.score, color="white", linewidth=4)
        bar.ax.axhline(found.score, color="black", linewidth=1.5)
    return figure
