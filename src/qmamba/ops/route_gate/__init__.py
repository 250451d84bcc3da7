"""The route gate over the outputs of a scan's routes: one public function with several implementations."""

from __future__ import annotations

from .reference import GateWeights, gate_routes_reference
from .torch import gate_routes

__all__ = ["GateWeights", "gate_routes", "gate_routes_reference"]
