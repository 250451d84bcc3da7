"""The networks: images (B, 3, H, W), normalised, to raw quality (B, 1). They know no files."""

from __future__ import annotations

from . import qmamba as qmamba  # registers its architectures
from .registry import Architecture, create_model, get_architecture, list_archs, register

__all__ = ["Architecture", "create_model", "get_architecture", "list_archs", "register"]
