"""`qmamba models`: the checkpoints and adapters that come with the package."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any

import typer

from qmamba.cli._shared import note, quiet_ends


class ModelsFormat(str, Enum):
    """How `qmamba models` writes its rows."""

    table = "table"
    json = "json"


def models(
    form: Annotated[
        ModelsFormat, typer.Option("--format", "-f", help="How rows are written.")
    ] = ModelsFormat.table,
) -> None:
    """List the models that can be used without a download, and the adapters for them.

    SRCC is the rank correlation with people's opinions on test photographs, as the model's card reports it.
    """
    with quiet_ends():
        from qmamba.checkpoints.locate import list_models

        rows = [_describe(name) for name in list_models()]
        for row in rows:
            row["adapters"] = _adapters_for(row["name"])
        if form is ModelsFormat.json:
            typer.echo(json.dumps(rows, indent=2))
        elif rows:
            _table(rows)
        else:
            note("this installation has no embedded model; give `qmamba score --model` a folder or a Hub id")


def _describe(name: str) -> dict[str, Any]:
    import torch

    from qmamba.checkpoints import read_config
    from qmamba.checkpoints.locate import resolve
    from qmamba.models import create_model

    config = read_config(resolve(name))
    with torch.random.fork_rng(devices=[]):  # an untrained network draws its weights
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
    """The test SRCC in a config's `results`, which may nest it under a data set's and a fold's name."""
    if not isinstance(results, dict):
        return None
    if isinstance(results.get("srcc"), int | float):
        return float(results["srcc"])
    # "test" before "val" when both are there: only the test fold was not used to choose anything.
    for key in sorted(results, key=lambda k: ("test" not in str(k), str(k))):
        value = _srcc(results[key])
        if value is not None:
            return value
    return None


def _table(rows: list[dict[str, Any]]) -> None:
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
    widths = [max(len(line[i]) for line in [titles, *cells]) for i in range(len(titles))]
    for line in [titles, *cells]:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
