"""Files of the form that LoDa's published weights and its base models have, made here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qmamba.models import create_model, get_architecture
from qmamba.models.loda import is_stored

SMALL: dict[str, Any] = {
    "image_size": 64, "width": 96, "depth": 2, "heads": 3, "cnn_channels": [2, 3, 4, 5],
    "cnn_depths": [1, 1, 1, 1], "latent": 16, "grid": 2, "cross_heads": 2,
}  # fmt: skip
State = dict[str, torch.Tensor]
PARTS = {"down": "down_proj", "attention": "cross_attn", "up": "up_proj"}  # of an injector, ours and public


def public_name(name: str) -> str:
    """Return the public name, within its part of a checkpoint, of a tensor of ours."""
    if name == "scale":
        return "scale_factor"
    if name.startswith("injectors."):
        _, number, part, rest = name.split(".", 3)
        return f"{PARTS[part]}.{number}.{rest}"
    return name.replace("extractor.convs.", "conv.").removeprefix("cnn.")


def write_published(path: Path, **overrides: Any) -> Path:
    """Write a checkpoint of the public form: what is trained, and the CNN's statistics, all random."""
    with torch.device("meta"):
        state = create_model("loda", **overrides).state_dict()
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, dict[str, torch.Tensor]] = {"learner": {}, "bn_buffer": {}}
    for name, tensor in state.items():
        if is_stored(name) and not name.endswith("num_batches_tracked"):
            part = "bn_buffer" if name.startswith("cnn.") else "learner"
            parts[part][public_name(name)] = torch.rand(tensor.shape, generator=generator) / 10
    torch.save(parts, path)
    return path


def write_bases(cache: Path, state: State | None = None, **overrides: Any) -> State:
    """Put base models into a Hub cache, with heads that LoDa does without; return their tensors."""
    if state is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            state = create_model("loda", **overrides).state_dict()
    for base, head in zip(get_architecture("loda").bases, ("head", "fc"), strict=True):
        tensors = {n.removeprefix(base.prefix): t for n, t in state.items() if n.startswith(base.prefix)}
        tensors |= {f"{head}.weight": torch.zeros(10, 96), f"{head}.bias": torch.zeros(10)}
        commit = hashlib.sha1(base.repo.encode()).hexdigest()
        folder = cache / f"models--{base.repo.replace('/', '--')}"
        (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        save_file(tensors, folder / "snapshots" / commit / "model.safetensors")
    return state
