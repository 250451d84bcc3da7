"""`qmamba models`: the checkpoints and adapters that come with the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._options import OutputFormat, ReportFormat
from qmamba.cli._shared import columns, note

if TYPE_CHECKING:
    from qmamba.checkpoints.index import Entry, Kind


def models(
    every: Annotated[
        bool, typer.Option("--all", help="List all names of the index, too, published or not.")
    ] = False,
    form: OutputFormat = ReportFormat.table,
) -> None:
    """List the models that need no download, and the adapters for them.

    SRCC is the rank correlation with mean opinion scores on test photographs, from the model's card. With
    --all, names of the package's index and of QMAMBA_INDEX follow; the network is not used.
    """
    from qmamba.checkpoints.locate import embedded_models

    if every:
        _list_all(form)
        return
    rows = [_describe(name) for name in embedded_models()]
    for row in rows:
        row["adapters"] = _adapters_for(row["name"])
    if form is ReportFormat.json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        typer.echo(_table(rows))
    else:
        note("this installation has no embedded model; give `qmamba score --model` a folder or a Hub id")


def _list_all(form: ReportFormat) -> None:
    from qmamba.checkpoints.index import KINDS, listed, out_of_reach

    rows = _shipped()
    shipped = {row["name"] for row in rows}
    for kind in KINDS:
        rows += [_line(kind, entry) for name, entry in listed(kind).items() if name not in shipped]
    for place in out_of_reach():
        note(f"names of {place} are missing: it is not in the cache yet; load a model by one of its names")
    if form is ReportFormat.json:
        typer.echo(json.dumps(rows, indent=2))
        return
    titles = ("name", "kind", "arch", "trained on", "where", "SRCC")
    cells = [
        (
            row["name"], row["kind"], row["arch"], ", ".join(row["data"]) or "-", row["where"],
            "-" if row["srcc"] is None else f"{row['srcc']:.3f}",
        )
        for row in rows
    ]  # fmt: skip
    typer.echo(columns([titles, *cells]))


def _shipped() -> list[dict[str, Any]]:
    """Return the rows of embedded models and adapters."""
    from qmamba.adapters import read_adapter_config
    from qmamba.checkpoints import read_config
    from qmamba.checkpoints.locate import embedded_adapters, embedded_models, resolve, resolve_adapter

    rows = []
    for name in embedded_models():
        model = read_config(resolve(name))
        rows.append(_row(name, "model", model.arch, model.trained_on, _srcc(model.results), model.licence))
    for name in embedded_adapters():
        adapter = read_adapter_config(resolve_adapter(name))
        results = adapter.results.get("test, after", adapter.results)
        rows.append(_row(name, "adapter", adapter.base, adapter.trained_on, _srcc(results), adapter.licence))
    return rows


def _row(
    name: str, kind: str, arch: str, data: Sequence[str], srcc: float | None, licence: str
) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "arch": arch, "data": list(data), "where": "ships", "srcc": srcc,
        "licence": licence,
    }  # fmt: skip


def _line(kind: Kind, entry: Entry) -> dict[str, Any]:
    """Return the row of an index's line."""
    srcc = entry.results.get("srcc")
    row = _row(entry.name, kind.removesuffix("s"), entry.arch, entry.data, srcc, entry.licence)
    row["where"] = entry.repo if entry.published else "unpublished"
    details = {"commit": entry.commit, "sha256": entry.sha256, "base": entry.base, "train": entry.train}
    return {**row, **{key: value for key, value in details.items() if value}}


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
    from qmamba.checkpoints.locate import embedded_adapters, resolve_adapter

    return [name for name in embedded_adapters() if read_adapter_config(resolve_adapter(name)).base == model]


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
