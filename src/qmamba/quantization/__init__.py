"""Quantization: networks with 8, 4 or 2 bits per weight and activation (Q-MambaIR)."""

from __future__ import annotations

from .calibration import calibrate
from .config import METHODS, Quantization
from .dls import DLS
from .grid import Grid
from .lsq import LSQ, LSQPlus
from .network import freeze, prepare, round_weights
from .planning import Plan, plan
from .rfa import RFA

__all__ = [
    "DLS",
    "LSQ",
    "METHODS",
    "RFA",
    "Grid",
    "LSQPlus",
    "Plan",
    "Quantization",
    "calibrate",
    "freeze",
    "plan",
    "prepare",
    "round_weights",
]
