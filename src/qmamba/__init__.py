"""qmamba: how good does a photograph look? No-reference image quality with Vision Mamba.

>>> import qmamba
>>> "lqmamba-n" in qmamba.list_archs()
True
"""

from __future__ import annotations

from . import adapters, convert, errors, metrics
from .checkpoints.locate import list_adapters, list_models
from .data.distort import distort, list_distortions
from .models import create_model, list_archs
from .models.count import count
from .ops.backend import backends
from .protocol import Protocol
from .scoring import Scorer, load, score
from .version import __version__

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
