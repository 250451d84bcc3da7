"""Operations that know no model: routes over a grid, the selective scan along them, and their gate."""

from __future__ import annotations

from . import library as library
from .gated_scan import gated_scan
from .linear import linear
from .mlp import mlp
from .route_gate import GateWeights, gate_routes
from .routes import Route, cross_scan_routes, local_scan_routes
from .selective_scan import selective_scan

__all__ = [
    "GateWeights",
    "Route",
    "cross_scan_routes",
    "gate_routes",
    "gated_scan",
    "linear",
    "local_scan_routes",
    "mlp",
    "selective_scan",
]
