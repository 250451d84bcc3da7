"""Operations that know no model: routes over a grid, the selective scan along them, and their gate."""

from __future__ import annotations

from . import operators as operators  # registers what torch.compile calls
from .feed_forward import mlp
from .fused_scan import gated_scan
from .matmul import linear
from .route_gate import GateWeights, gate_routes
from .routes import Route, cross_scan_routes, local_scan_routes
from .scan import selective_scan

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
