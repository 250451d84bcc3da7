"""The networks: images (B, 3, H, W), normalised, to raw quality (B, 1). They know no files."""

from __future__ import annotations

from . import lite0 as lite0
from . import loda as loda  # each registers its architectures
from . import qadapt as qadapt
from . import qmamba as qmamba
from .registry import (
    Architecture,
    BaseWeights,
    TokenizerFile,
    create_model,
    get_architecture,
    list_archs,
    register,
)

__all__ = [
    "Architecture",
    "BaseWeights",
    "TokenizerFile",
    "create_model",
    "get_architecture",
    "list_archs",
    "register",
]
