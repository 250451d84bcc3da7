"""Rated photographs: data set readers, folds, and distortions of known strength."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets import DATASETS, DataSet, read_dataset
    from .distortions import DISTORTIONS, Distortion, KadidScale, kadid_quality
    from .ratings import Rated, read_biq2021, read_manifest
    from .scales import rating_scale, rescaled

__all__ = [
    "DATASETS",
    "DISTORTIONS",
    "DataSet",
    "Distortion",
    "KadidScale",
    "Rated",
    "kadid_quality",
    "rating_scale",
    "read_biq2021",
    "read_dataset",
    "read_manifest",
    "rescaled",
]

_MODULES = {
    "datasets": ("DATASETS", "DataSet", "read_dataset"),
    "distortions": ("DISTORTIONS", "Distortion", "KadidScale", "kadid_quality"),
    "ratings": ("Rated", "read_biq2021", "read_manifest"),
    "scales": ("rating_scale", "rescaled"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import qmamba` stays light.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
