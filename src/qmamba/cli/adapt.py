"""`qmamba adapt`: from rated photographs of another domain to an adapter folder."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._options import Model, Seed
from qmamba.cli._ratings import Data, read_ratings
from qmamba.cli._shared import note
from qmamba.cli._watch import RunOptions
from qmamba.errors import AdapterError

EPILOG = """\
\b
Examples:
  qmamba adapt --data stills.csv --out runs/stills
  qmamba adapt --data stills.csv --out runs/ssf --method ssf --seed 1
  qmamba adapt --data stills.csv --out runs/p4 --option prompts=4 --option width=32
  qmamba adapt --list
  qmamba score photo.jpg --adapter runs/stills/adapter

\b
Exit code:
  0    the adapter is written: its folder is on stdout, SRCC before and after on stderr
  2    nothing was trained: too few photographs, an unknown model, a wrong option
  3    the time limit of --minutes is reached; the same command resumes the run
  130  stopped by Ctrl-C; the same command resumes the run
"""


class Precision(str, Enum):
    """Floating types of matrix products in training."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def _list(wanted: bool) -> None:
    if wanted:
        from qmamba.adapters import list_methods

        typer.echo("\n".join(list_methods()))
        raise typer.Exit()


@with_groups
def adapt(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the adapter, the log, and the state to resume.")
    ],
    run: RunOptions,
    model: Model = "lqmamba-n",
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="Method of adaptation, from `qmamba adapt --list`.")
    ] = "style-prompt",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Option of the method; repeatable.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Maximum number of epochs.")] = 30,
    crops: Annotated[
        int, typer.Option(min=1, help="Crops of each photograph, the same ones in every epoch.")
    ] = 5,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Peak learning rate. Default: the method's own.")
    ] = None,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better validation SRCC before training stops.")
    ] = 6,
    precision: Annotated[
        Precision,
        typer.Option(help="Floating type of matrix products in training; bfloat16 is faster where native."),
    ] = Precision.float32,
    seed: Seed = 0,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the methods and exit.")
    ] = False,
) -> None:
    """Adapt a model to another domain; docs/adapters.md describes the methods.

    The model itself is not changed. The fold `val` decides when to stop; without one, a fifth of the other
    photographs is drawn, with all photographs of a reference together. SRCC is reported on the fold `test`
    if there is one, and else on the fold that decides.
    """
    from qmamba.train import AdaptRecipe
    from qmamba.train import adapt as train

    options = _options(option or [])
    recipe = AdaptRecipe(
        epochs=epochs, crops=crops, lr=lr, patience=patience, precision=precision.value, seed=seed
    )
    ratings = read_ratings(data)
    device = run.prepare()
    with run.watch() as watch, watch.ends(run.resume):
        folder = train(
            model, ratings, out, method=method, options=options, recipe=recipe, device=device,
            resume=run.resume, report=watch,
        )  # fmt: skip
    _tell(folder)
    typer.echo(str(folder))


def _options(texts: list[str]) -> dict[str, Any]:
    """Return options from texts NAME=VALUE, whose value is JSON or else a word.

    >>> _options(["prompts=4", "size=[7, 7]", "size=layer"])
    {'prompts': 4, 'size': 'layer'}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise AdapterError(f"--option must be NAME=VALUE, such as prompts=4, got {text!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _tell(folder: Path) -> None:
    """Write SRCC before and after adaptation, with its interval, to stderr."""
    from qmamba.adapters import read_adapter_config

    for where, found in read_adapter_config(folder).results.items():
        fold, _, when = where.partition(", ")
        decided = " (which also decided when to stop)" if fold == "val" and when == "after" else ""
        interval = f"{_number(found['srcc_low'])} to {_number(found['srcc_high'])}"
        photographs = f"{found['n']} photographs of {fold}{decided}"
        note(f"SRCC {when:6s} {_number(found['srcc'])} ({interval}), {photographs}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
