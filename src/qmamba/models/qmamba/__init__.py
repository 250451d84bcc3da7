"""QMamba and LQMamba (QMamba, ICML 2025): the network, its parts, its sizes, and VMamba's weights."""

from __future__ import annotations

from . import sizes as sizes  # registers the architectures
from .network import QMamba, undecayed

__all__ = ["QMamba", "undecayed"]
