"""qmamba: how good does a photograph look? No-reference image quality with Vision Mamba.

>>> import qmamba
>>> "lqmamba-n" in qmamba.list_archs()
True
"""

from __future__ import annotations

from . import adapters, convert, errors, metrics
from ._distort import distort, list_distortions
from ._version import __version__
from .models import count, create_model, list_archs
from .ops.backend import backends
from .protocol import Protocol
from .registry import list_adapters, list_models
from .scorer import Scorer, load, score

__all__ = [
    "Protocol",
    "Scorer",
    "__version__",
    "adapters",
    "backends",
    "convert",
    "count",
    "create_model",
    "distort",
    "errors",
    "list_adapters",
    "list_archs",
    "list_distortions",
    "list_models",
    "load",
    "metrics",
    "score",
]
