"""The command line: `qmamba score`, and what lies around it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qmamba._version import __version__
from qmamba.cli._memory import keep_memory
from qmamba.cli.adapt import EPILOG as ADAPT_EPILOG
from qmamba.cli.adapt import adapt
from qmamba.cli.compare import EPILOG as COMPARE_EPILOG
from qmamba.cli.compare import compare
from qmamba.cli.data import build as build_data
from qmamba.cli.distort import EPILOG as DISTORT_EPILOG
from qmamba.cli.distort import distort
from qmamba.cli.env import env
from qmamba.cli.evaluate import EPILOG as EVALUATE_EPILOG
from qmamba.cli.evaluate import evaluate
from qmamba.cli.export import EPILOG as EXPORT_EPILOG
from qmamba.cli.export import export
from qmamba.cli.features import FEATURES_EPILOG, build_plot, features
from qmamba.cli.map import EPILOG as MAP_EPILOG
from qmamba.cli.map import draw_map
from qmamba.cli.models import models
from qmamba.cli.photos import EPILOG as PHOTOS_EPILOG
from qmamba.cli.photos import photos
from qmamba.cli.report import EPILOG as REPORT_EPILOG
from qmamba.cli.report import report
from qmamba.cli.reproduce import EPILOG as REPRODUCE_EPILOG
from qmamba.cli.reproduce import reproduce
from qmamba.cli.score import EPILOG, score
from qmamba.cli.train import EPILOG as TRAIN_EPILOG
from qmamba.cli.train import train

__all__ = ["app", "main"]


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
    application.command(no_args_is_help=True, epilog=EPILOG)(score)
    application.command(no_args_is_help=True, epilog=COMPARE_EPILOG)(compare)
    application.command("map", no_args_is_help=True, epilog=MAP_EPILOG)(draw_map)
    application.command(no_args_is_help=True, epilog=REPORT_EPILOG)(report)
    application.command()(models)
    application.command(no_args_is_help=True, epilog=EVALUATE_EPILOG)(evaluate)
    application.command(no_args_is_help=True, epilog=TRAIN_EPILOG)(train)
    application.command(no_args_is_help=True, epilog=REPRODUCE_EPILOG)(reproduce)
    application.command(no_args_is_help=True, epilog=ADAPT_EPILOG)(adapt)
    application.command(no_args_is_help=True, epilog=PHOTOS_EPILOG)(photos)
    application.command(no_args_is_help=True, epilog=DISTORT_EPILOG)(distort)
    application.command(no_args_is_help=True, epilog=FEATURES_EPILOG)(features)
    application.command(no_args_is_help=True, epilog=EXPORT_EPILOG)(export)
    application.add_typer(build_data(**plain), name="data")
    application.add_typer(build_plot(**plain), name="plot")
    application.command()(env)
    return application


app = _build()


def main() -> None:
    """The program `qmamba`."""
    keep_memory()
    app(prog_name="qmamba")
