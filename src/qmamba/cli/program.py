"""The command line: `qmamba score`, and what lies around it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qmamba.cli import (
    adapt,
    compare,
    data,
    distort,
    env,
    evaluate,
    export,
    features,
    map,
    models,
    photos,
    report,
    reproduce,
    score,
    train,
)
from qmamba.cli._memory import keep_memory
from qmamba.version import __version__


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qmamba {__version__}")
        raise typer.Exit()


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """How good does a photograph look? Scores without a reference image; higher is better, in [0, 1]."""


def _build() -> typer.Typer:
    # Plain help and plain errors: one line per error is easier to read in a log than a drawn box.
    plain: dict[str, Any] = {
        "add_completion": False,
        "rich_markup_mode": None,
        "pretty_exceptions_enable": False,
        "context_settings": {"help_option_names": ["-h", "--help"]},
    }
    application = typer.Typer(name="qmamba", no_args_is_help=True, **plain)
    application.callback()(_main)
    application.command(no_args_is_help=True, epilog=score.EPILOG)(score.score)
    application.command(no_args_is_help=True, epilog=compare.EPILOG)(compare.compare)
    application.command("map", no_args_is_help=True, epilog=map.EPILOG)(map.draw_map)
    application.command(no_args_is_help=True, epilog=report.EPILOG)(report.report)
    application.command()(models.models)
    application.command(no_args_is_help=True, epilog=evaluate.EPILOG)(evaluate.evaluate)
    application.command(no_args_is_help=True, epilog=train.EPILOG)(train.train)
    application.command(no_args_is_help=True, epilog=reproduce.EPILOG)(reproduce.reproduce)
    application.command(no_args_is_help=True, epilog=adapt.EPILOG)(adapt.adapt)
    application.command(no_args_is_help=True, epilog=photos.EPILOG)(photos.photos)
    application.command(no_args_is_help=True, epilog=distort.EPILOG)(distort.distort)
    application.command(no_args_is_help=True, epilog=features.FEATURES_EPILOG)(features.features)
    application.command(no_args_is_help=True, epilog=export.EPILOG)(export.export)
    application.add_typer(data.build(**plain), name="data")
    application.add_typer(features.build_plot(**plain), name="plot")
    application.command()(env.env)
    return application


app = _build()


def main() -> None:
    """The program `qmamba`."""
    keep_memory()
    app(prog_name="qmamba")
