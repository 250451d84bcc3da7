"""The program `qmamba` and its commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qmamba.cli import (
    adapt,
    ask,
    compare,
    convert,
    data,
    describe,
    distort,
    env,
    evaluate,
    explain,
    export,
    features,
    map,
    models,
    photos,
    publish,
    qbench,
    quantize,
    report,
    reproduce,
    score,
    train,
)
from qmamba.cli._command import Command, Program
from qmamba.cli._memory import keep_memory
from qmamba.cli._shared import draw_to_files, open_closed_streams
from qmamba.version import __version__

# Plain help and plain errors: one line per error is easier to read in a log than a drawn box.
PLAIN: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qmamba {__version__}")
        raise typer.Exit()


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Score the quality of photographs without a reference image, in [0, 1]; higher is better."""


def _build() -> typer.Typer:
    application = typer.Typer(name="qmamba", cls=Program, no_args_is_help=True, **PLAIN)
    application.callback()(_main)
    for module, command in (
        (score, score.score),
        (explain, explain.explain),
        (compare, compare.compare),
        (map, map.draw_map),
        (report, report.report),
        (ask, ask.ask),
        (describe, describe.describe),
        (qbench, qbench.qbench),
        (models, models.models),
        (evaluate, evaluate.evaluate),
        (train, train.train),
        (reproduce, reproduce.reproduce),
        (adapt, adapt.adapt),
        (publish, publish.publish),
        (quantize, quantize.quantize),
        (photos, photos.photos),
        (distort, distort.distort),
        (features, features.features),
        (export, export.export),
        (convert, convert.convert),
        (env, env.env),
    ):
        epilog = getattr(module, "EPILOG", None)
        name = module.__name__.rpartition(".")[2]
        # A command that needs arguments shows its help without any.
        application.command(name, cls=Command, no_args_is_help=epilog is not None, epilog=epilog)(command)
    application.add_typer(data.build(**PLAIN), name="data")
    application.add_typer(features.build_plot(**PLAIN), name="plot")
    return application


app = _build()


def main() -> None:
    """Run the program `qmamba`."""
    open_closed_streams()
    draw_to_files()
    keep_memory()
    app(prog_name="qmamba")
