"""Pictures of features: t-SNE, coloured by what was done to the photographs (QMamba, Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FeaturesError

# Okabe and Ito's, which people tell apart whatever colours they see; in an order without like neighbours.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = "osD^vPX"  # seven for eight colours: 56 kinds differ in one or the other, and near ones in both
LEAST = 4


def tsne(
    values: npt.NDArray[np.float32], *, seed: int = 0, perplexity: float = 30.0
) -> npt.NDArray[np.float32]:
    """Places in the plane (n, 2) of features (n, C), each channel standardised; deterministic for a seed.

    Args:
        values: at least four rows.
        seed: of the search, which starts from the principal components.
        perplexity: about how many neighbours count; a third of the rows at most.

    Raises:
        FeaturesError: too few rows, or scikit-learn is not installed.
    """
    if len(values) < LEAST:
        raise FeaturesError(f"t-SNE takes {LEAST} photographs or more, and here are {len(values)}")
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise FeaturesError("t-SNE needs scikit-learn: pip install 'qmamba[plot]'") from error
    spread = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    search = TSNE(init="pca", perplexity=min(perplexity, (len(values) - 1) / 3), random_state=seed)
    found: npt.NDArray[np.float32] = search.fit_transform(scaled)
    return found


def draw_points(points: npt.NDArray[np.float32], kinds: Sequence[str], path: Path, title: str = "") -> None:
    """Draw points (n, 2) as a PNG, SVG or PDF, a colour and a marker for each kind, in alphabetical order.

    Raises:
        FeaturesError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FeaturesError("drawing needs matplotlib: pip install 'qmamba[plot]'") from error
    names = sorted(set(kinds))
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")  # no pyplot: nothing global
    axes = figure.subplots()
    for i, name in enumerate(names):
        mine = points[np.array([kind == name for kind in kinds])]
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.scatter(mine[:, 0], mine[:, 1], s=18, linewidths=0.4, edgecolors="#333333", label=name, **look)
    axes.set(xticks=[], yticks=[], title=title)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize="small",
        frameon=False,
        ncols=1 + len(names) // 28,
    )
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise FeaturesError(
            f"{path.name!r} is no picture that can be drawn: use .png, .svg or .pdf"
        ) from error
