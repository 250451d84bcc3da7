"""Analysis of scores and networks: comparisons, features, t-SNE, drawings of maps, reports."""

from __future__ import annotations

from .comparison import PairedComparison, compare, compare_folders

__all__ = ["PairedComparison", "compare", "compare_folders"]
