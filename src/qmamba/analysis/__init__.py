"""Analysis of scores and networks: comparisons, reasons, features, t-SNE, drawings of maps, reports."""

from __future__ import annotations

from qmamba.images.measures import Reasons, reasons

from .comparison import PairedComparison, compare, compare_folders

__all__ = ["PairedComparison", "Reasons", "compare", "compare_folders", "reasons"]
