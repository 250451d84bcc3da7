"""Adapters small enough for tests, and moved so far that they change scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qmamba.adapters import Adapter, AdapterConfig, create, save_adapter
from qmamba.calibration import Calibration
from qmamba.scoring import Scorer

CALIBRATION = Calibration(slope=0.7, offset=-0.2)


def louder(adapter: Adapter, seed: int = 3) -> Adapter:
    """An adapter as if it had learnt something: every parameter has moved."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return adapter


def made(scorer: Scorer, method: str = "style-prompt", seed: int = 3, **options: Any) -> Adapter:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return louder(create(method, scorer.base(), **options), seed)


def config_for(scorer: Scorer, method: str = "style-prompt", **more: Any) -> AdapterConfig:
    return AdapterConfig(method, scorer.name, scorer.base_sha256(), calibration=CALIBRATION, **more)


def saved(
    folder: Path, scorer: Scorer, method: str = "style-prompt", seed: int = 3, dtype: Any = None
) -> Path:
    save_adapter(folder, made(scorer, method, seed), config_for(scorer, method), dtype=dtype)
    return folder
