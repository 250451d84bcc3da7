"""Rated photographs: readers of data sets, their folds, and distortions of known strength."""

from __future__ import annotations

from .datasets import DATASETS, DataSet, read_dataset
from .distortions import DISTORTIONS, Distortion, KadidScale, kadid_quality
from .ratings import Rated, read_biq2021, read_manifest

__all__ = [
    "DATASETS",
    "DISTORTIONS",
    "DataSet",
    "Distortion",
    "KadidScale",
    "Rated",
    "kadid_quality",
    "read_biq2021",
    "read_dataset",
    "read_manifest",
]
