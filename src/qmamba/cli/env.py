"""`qmamba env`: what is installed, and which implementations of the scan can be used."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import typer

from qmamba.cli._options import OutputFormat, ReportFormat
from qmamba.version import __version__


def env(form: OutputFormat = ReportFormat.table) -> None:
    """Show what is installed and how the scan is computed here, to paste into a bug report."""
    found = _found()
    if form is ReportFormat.json:
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

    from qmamba.checkpoints.locate import embedded_models
    from qmamba.ops.backend import backends

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "qmamba": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "embedded models": ", ".join(embedded_models()) or "none",
        "QMAMBA_BACKEND": os.environ.get("QMAMBA_BACKEND", "auto"),
        "backends": [backend._asdict() for backend in backends()],
    }
