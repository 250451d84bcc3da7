"""`qmamba models`: the checkpoints and adapters that come with the package."""

from __future__ import annotations

import json
from typing import Any

import typer

from qmamba.cli._options import OutputFormat, ReportFormat
from qmamba.cli._shared import columns, note


def models(form: OutputFormat = ReportFormat.table) -> None:
    """List the models that need no download, and the adapters for them.

    SRCC is the rank correlation with mean opinion scores on test photographs, from the model's card.
    """
    from qmamba.checkpoints.locate import list_models

    rows = [_describe(name) for name in list_models()]
    for row in rows:
        row["adapters"] = _adapters_for(row["name"])
    if form is ReportFormat.json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        typer.echo(_table(rows))
    else:
        note("this installation has no embedded model; give `qmamba score --model` a folder or a Hub id")


def _describe(name: str) -> dict[str, Any]:
    import torch

    from qmamba.checkpoints import read_config
    from qmamba.checkpoints.locate import resolve
    from qmamba.models import create_model

    config = read_config(resolve(name))
    with torch.device("meta"):  # parameters are counted, not initialised
        network = create_model(config.arch, **config.overrides)
    return {
        "name": name,
        "arch": config.arch,
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained_on": list(config.trained_on),
        "protocol": config.protocol.kind,
        "srcc": _srcc(config.results),
    }


def _adapters_for(model: str) -> list[str]:
    from qmamba.adapters import read_adapter_config
    from qmamba.checkpoints.locate import list_adapters, resolve_adapter

    return [name for name in list_adapters() if read_adapter_config(resolve_adapter(name)).base == model]


def _srcc(results: Any) -> float | None:
    """Return the test SRCC of a config's `results`, which may be nested by data set and fold."""
    if not isinstance(results, dict):
        return None
    if isinstance(results.get("srcc"), int | float):
        return float(results["srcc"])
    # "test" before "val" if both are there: only the test fold was not used to choose anything.
    for key in sorted(results, key=lambda k: ("test" not in str(k), str(k))):
        value = _srcc(results[key])
        if value is not None:
            return value
    return None


def _table(rows: list[dict[str, Any]]) -> str:
    titles = ("name", "arch", "parameters", "trained on", "protocol", "SRCC", "adapters")
    cells = [
        (
            row["name"],
            row["arch"],
            f"{row['parameters']:,}",
            ", ".join(row["trained_on"]) or "-",
            row["protocol"],
            "-" if row["srcc"] is None else f"{row['srcc']:.3f}",
            ", ".join(row["adapters"]) or "-",
        )
        for row in rows
    ]
    return columns([titles, *cells])
