"""Rated photographs: readers of data sets, their folds, and degradations of known strength."""

from __future__ import annotations

from .degradations import DEGRADATIONS, degrade
from .ratings import Rated, read_biq2021, read_manifest

__all__ = ["DEGRADATIONS", "Rated", "degrade", "read_biq2021", "read_manifest"]
