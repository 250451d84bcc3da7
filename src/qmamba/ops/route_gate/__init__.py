"""The route gate over the outputs of a scan's routes. Its passes in C are in ``ops/native/gate.py``."""

from __future__ import annotations

from .reference import GateWeights, gate_routes_reference
from .torch import gate_routes

__all__ = ["GateWeights", "gate_routes", "gate_routes_reference"]
