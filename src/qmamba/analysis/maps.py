"""Drawing a quality map beside its photograph, by matplotlib: the extra `plot`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from qmamba.errors import BackendError, QMambaError
from qmamba.images import printable, thumbnail
from qmamba.scoring import QualityMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 1000  # pixels of a drawn photograph's longer side
COLOURS = "viridis"  # even steps look even, and colour-blind people read it; dark is low
OPACITY = 0.65
NAME_LENGTH = 48
WIDE = 1.9  # a photograph so much wider than tall lies above its map, not beside it


def save_map(
    path: str | os.PathLike[str], pixels: torch.Tensor, found: QualityMap, *, name: str = ""
) -> None:
    """Write a picture of a photograph and, beside or under it, its map over it, with a colour bar.

    The colours run over `QualityMap.limits`; a line on the bar marks the photograph's score, which the title
    gives, too. Nothing is drawn over what the protocol did not look at. matplotlib's settings stay as they
    are.

    Args:
        path: of the picture. Its extension names the format: .png, .jpg, .pdf, .svg, .webp and others.
        pixels: (3, H, W), uint8 or float in [0, 1], as `qmamba.images.decode` gives it.
        found: the map of that photograph.
        name: for the title.

    Raises:
        BackendError: matplotlib is not installed.
        QMambaError: nothing is written under such an extension.
    """
    figure = _figure(pixels, found, name)
    check_picture_name(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font does not have
        figure.savefig(path, dpi=110)


def check_picture_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name whose extension stands for no format that matplotlib writes.

    Raises:
        BackendError: matplotlib is not installed.
        QMambaError: the extension is not one of them.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise BackendError('drawing a map needs matplotlib: pip install "qmamba[plot]"') from error
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FigureCanvasAgg.filetypes:
        ending = f"no picture is written as .{kind}" if kind else "the name has no extension"
        raise QMambaError(f"{printable(os.fspath(path))}: {ending}; use .png, .jpg, .pdf or .svg")


def _figure(pixels: torch.Tensor, found: QualityMap, name: str) -> Figure:
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
    low, high = found.limits()
    values = found.image(height, width)
    drawn = axes[1].imshow(values, cmap=COLOURS, vmin=low, vmax=high, alpha=OPACITY)
    bar = figure.colorbar(drawn, ax=axes[1] if beside else axes, label="what each place adds, as a score")
    bar.ax.axhline(found.score, color="white", linewidth=4)
    bar.ax.axhline(found.score, color="black", linewidth=1.5)
    return figure
