"""Names of the files in the folders of checkpoints and of adapters, whose names are peft's."""

from __future__ import annotations

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
