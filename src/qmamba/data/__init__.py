"""Rated photographs: readers of data sets, their folds, and distortions of known strength."""

from __future__ import annotations

from .distortions import DISTORTIONS, Distortion
from .ratings import Rated, read_biq2021, read_manifest

__all__ = ["DISTORTIONS", "Distortion", "Rated", "read_biq2021", "read_manifest"]
