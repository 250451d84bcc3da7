"""The networks: images (B, 3, H, W), normalised, to raw quality (B, 1). They know no files."""

from __future__ import annotations

from .backbone import QMamba
from .count import Count, count
from .sizes import create_model, list_archs, register

__all__ = ["Count", "QMamba", "count", "create_model", "list_archs", "register"]
