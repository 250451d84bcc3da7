"""Weights in published formats, converted to this library's.

VMamba's tensor names are in :mod:`qmamba.models.qmamba.vmamba`.
"""

from __future__ import annotations

from .models.qmamba.vmamba import ConvertedState, from_vmamba, load_vmamba

__all__ = ["ConvertedState", "from_vmamba", "load_vmamba"]
