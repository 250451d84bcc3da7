"""`qmamba env`: what is installed here, and which implementations of the scan can be used."""

from __future__ import annotations

import json
import os
import platform
from enum import Enum
from typing import Annotated, Any

import typer

from qmamba.cli._shared import quiet_ends
from qmamba.version import __version__


class EnvFormat(str, Enum):
    """How `qmamba env` writes what it found."""

    text = "text"
    json = "json"


def env(
    form: Annotated[EnvFormat, typer.Option("--format", "-f", help="How it is written.")] = EnvFormat.text,
) -> None:
    """Say what is installed here, and how the scan is computed: to be pasted into a report of a problem."""
    with quiet_ends():
        found = _found()
        if form is EnvFormat.json:
            typer.echo(json.dumps(found, indent=2))
            return
        for key, value in found.items():
            if key != "backends":
                typer.echo(f"{key:16s} {value}")
        for backend in found["backends"]:
            state = "yes" if backend["usable"] else "no"
            typer.echo(f"backend {backend['name']:10s}{state:4s}{backend['note']}")


def _found() -> dict[str, Any]:
    import torch

    from qmamba.checkpoints.locate import list_models
    from qmamba.ops.backend import backends

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "qmamba": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "embedded models": ", ".join(list_models()) or "none",
        "QMAMBA_BACKEND": os.environ.get("QMAMBA_BACKEND", "auto"),
        "backends": [backend._asdict() for backend in backends()],
    }
