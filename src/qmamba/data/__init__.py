"""Rated photographs: readers of data sets, their folds, and distortions of known strength."""

from __future__ import annotations

from .datasets import DATASETS, DataSet, read_dataset
from .distortions import DISTORTIONS, Distortion
from .ratings import Rated, read_biq2021, read_manifest

__all__ = [
    "DATASETS",
    "DISTORTIONS",
    "DataSet",
    "Distortion",
    "Rated",
    "read_biq2021",
    "read_dataset",
    "read_manifest",
]
