"""Checkpoints: folders with a config, weights and a card; on the Hub, or found by name."""

from __future__ import annotations

from .card import render_card
from .config import FORMAT_VERSION, ModelConfig
from .file_names import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from .folder import load_checkpoint, read_config, save_checkpoint, verify_checkpoint

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "WEIGHTS_FILE",
    "ModelConfig",
    "load_checkpoint",
    "read_config",
    "render_card",
    "save_checkpoint",
    "verify_checkpoint",
]
