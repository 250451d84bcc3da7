"""Convert weights from published formats to this library's.

The published tensor names are in :mod:`qmamba.models.qmamba.vmamba` and :mod:`qmamba.models.loda.published`.
"""

from __future__ import annotations

from .models.converted import ConvertedState
from .models.loda.published import from_loda, load_loda
from .models.qmamba.vmamba import from_vmamba, load_vmamba

__all__ = ["ConvertedState", "from_loda", "from_vmamba", "load_loda", "load_vmamba"]
