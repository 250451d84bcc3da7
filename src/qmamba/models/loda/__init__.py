"""LoDa (CVPR 2024): a frozen vision transformer that is told of local distortions by a frozen CNN."""

from __future__ import annotations

from .network import LoDa
from .sizes import Sizes

__all__ = ["LoDa", "Sizes"]
