"""Names of checkpoints, and of the files in their folders and in those of adapters, which follow peft."""

from __future__ import annotations

import re

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")  # of a checkpoint or an adapter
