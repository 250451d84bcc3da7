"""qmamba: how good does a photograph look? No-reference image quality with Vision Mamba.

>>> import qmamba
>>> "lqmamba-n" in qmamba.list_archs()
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import adapters, convert, errors, metrics
from .checkpoints.locate import list_adapters, list_models
from .models import create_model, list_archs
from .models.count import count
from .ops.backend import backends
from .protocol import Protocol
from .scoring import Scorer, load, score
from .version import __version__

if TYPE_CHECKING:
    from .data.distort import distort, list_distortions
    from .scoring.quantizing import quantize

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
    "quantize",
    "score",
]

if not TYPE_CHECKING:  # a type checker would take any name from it

    def __getattr__(name: str) -> Any:
        # `qmamba.data` is imported when the first distortion is asked for.
        if name in ("distort", "list_distortions"):
            from .data import distort as module

            return getattr(module, name)
        if name == "quantize":
            from .scoring.quantizing import quantize

            return quantize
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
