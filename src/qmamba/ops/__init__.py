"""Operations that know no model: routes over a grid, and the selective scan along them."""

from __future__ import annotations

from .routes import Route, cross_scan_routes, local_scan_routes
from .selective_scan import selective_scan

__all__ = ["Route", "cross_scan_routes", "local_scan_routes", "selective_scan"]
