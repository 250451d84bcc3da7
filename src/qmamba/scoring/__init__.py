"""Scoring: from a photograph to a number, and to a map of where it comes from."""

from __future__ import annotations

from .api import DEFAULT_MODEL, load, score
from .explanation import Explanation
from .faults import Fault, FaultProbe
from .language import LanguageScorer
from .quality_map import QualityMap
from .scorer import Scorer

__all__ = [
    "DEFAULT_MODEL",
    "Explanation",
    "Fault",
    "FaultProbe",
    "LanguageScorer",
    "QualityMap",
    "Scorer",
    "load",
    "score",
]
