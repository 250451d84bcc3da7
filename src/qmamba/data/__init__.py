"""Rated photographs: readers of data sets, their folds, and distortions of known strength."""

from __future__ import annotations

from .degradations import DEGRADATIONS, degrade
from .distortions import DISTORTIONS, Distortion
from .ratings import Rated, read_biq2021, read_manifest

__all__ = ["DEGRADATIONS", "DISTORTIONS", "Distortion", "Rated", "degrade", "read_biq2021", "read_manifest"]
