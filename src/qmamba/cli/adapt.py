"""`qmamba adapt`: from rated photographs of another domain to an adapter folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._options import Model, Seed
from qmamba.cli._ratings import Data, source_of
from qmamba.cli._shared import note, two_numbers
from qmamba.cli._watch import RunOptions
from qmamba.errors import AdapterError, HubError

if TYPE_CHECKING:
    from qmamba.data import Rated
    from qmamba.train import AdaptRecipe

SCALE_FORM = "WORST:BEST, such as 1:5, or 100:0 if lower is better"
EPILOG = """\
\b
Examples:
  qmamba adapt --data stills.csv --out runs/stills
  qmamba adapt --data stills.csv --out runs/stills --quick
  qmamba adapt --data dmos.csv --scale 100:0 --out runs/dmos
  qmamba adapt --data stills.csv --out runs/ssf --method ssf --seed 1
  qmamba adapt --data stills.csv --out runs/p4 --option prompts=4 --option width=32
  qmamba adapt --list
  qmamba score photo.jpg --adapter runs/stills/adapter

\b
Exit code:
  0    the adapter is written: its folder is on stdout, SRCC before and after on stderr
  1    no adapter was better than the base on the held-out part: the one written is the base
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


@dataclass(frozen=True)
class RecipeOptions:
    """How an adapter is trained."""

    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer steps: 8 epochs, 3 crops and a patience of 3 as defaults.")
    ] = False
    epochs: Annotated[int | None, typer.Option(min=1, help="Maximum number of epochs. Default: 30.")] = None
    crops: Annotated[
        int | None,
        typer.Option(min=1, help="Crops of each photograph, the same ones in every epoch. Default: 5."),
    ] = None
    lr: Annotated[
        float | None, typer.Option(min=0, help="Peak learning rate. Default: the method's own.")
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Epochs without a better validation SRCC before training stops. Default: 6."
        ),
    ] = None
    precision: Annotated[
        Precision,
        typer.Option(help="Floating type of matrix products in training; bfloat16 is faster where native."),
    ] = Precision.float32
    seed: Seed = 0

    def recipe(self) -> AdaptRecipe:
        """Return the recipe: the given values, the rest from the quick or the usual one."""
        from qmamba.train import QUICK, AdaptRecipe

        given: dict[str, Any] = {"epochs": self.epochs, "crops": self.crops, "patience": self.patience}
        given = {name: value for name, value in given.items() if value is not None}
        plan = replace(QUICK if self.quick else AdaptRecipe(), **given)
        return replace(plan, lr=self.lr, precision=self.precision.value, seed=self.seed)


@dataclass(frozen=True)
class CardOptions:
    """An adapter's card, and the Hub repository it is uploaded to."""

    licence: Annotated[
        str, typer.Option("--license", metavar="LICENSE", help="License of the weights, for the card: MIT, …")
    ] = "unknown"
    trained_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name of the data, for the card; repeatable. Default: the data set's, if it is a known one.",
        ),
    ] = None
    hub_id: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="USER/NAME", help="Upload the adapter to this Hub repository."),
    ] = None

    def __post_init__(self) -> None:
        from qmamba.checkpoints.hub import is_repo_id

        if self.hub_id is not None and not is_repo_id(self.hub_id):
            raise HubError(f"--push-to-hub must be a Hub id such as user/name, got {self.hub_id!r}")


@with_groups
def adapt(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the adapter, the log, and the state to resume.")
    ],
    how: RecipeOptions,
    card: CardOptions,
    run: RunOptions,
    model: Model = "lqmamba-n",
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="Method of adaptation, from `qmamba adapt --list`.")
    ] = "style-prompt",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Option of the method; repeatable.")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="WORST:BEST",
            help="Scale of the ratings, such as 1:5, or 100:0 if lower is better. Default: found from them.",
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the methods and exit.")
    ] = False,
) -> None:
    """Adapt a model to another domain; docs/adapters.md describes the methods.

    The model itself is not changed. The fold `val` decides which weights are kept; without one, a fifth of
    the other photographs is drawn, with all photographs of a reference together. Where nothing scores it
    better than the model, the model is kept. SRCC is reported on the fold `test` if there is one, and else
    on the fold that decides.
    """
    from qmamba.adapters import push_to_hub
    from qmamba.data import rescaled
    from qmamba.train import adapt as train

    method_options, recipe = _options(option or []), how.recipe()
    source = source_of(data)
    ratings = source.read()
    ends = _note_scale(ratings) if scale is None else two_numbers(scale, "--scale", SCALE_FORM)
    ratings = rescaled(ratings, ends)
    device = run.prepare()
    names = card.trained_on or ([] if source.is_manifest else [source.name])
    with run.watch() as watch, watch.ends(run.resume):
        folder = train(
            model, ratings, out, method=method, options=method_options, recipe=recipe,
            licence=card.licence, trained_on=names, device=device, resume=run.resume, report=watch,
        )  # fmt: skip
    is_base = _tell(folder)
    if card.hub_id is not None and not is_base:
        note(f"uploaded: {push_to_hub(folder, card.hub_id)}")
    typer.echo(str(folder))
    if is_base:
        raise typer.Exit(1)


def _note_scale(ratings: list[Rated]) -> tuple[float, float]:
    """Return the scale that is found from ratings, and say so unless it is [0, 1]."""
    from qmamba.data import rating_scale

    worst, best = rating_scale(ratings)
    if (worst, best) != (0, 1):
        note(f"ratings are taken as {worst:g} (worst) to {best:g} (best); give --scale if they are not")
    return worst, best


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


def _tell(folder: Path) -> bool:
    """Write SRCC before and after, with intervals, to stderr; return whether the base was kept."""
    from qmamba.adapters import read_adapter_config

    config = read_adapter_config(folder)
    for where, found in config.results.items():
        fold, _, when = where.partition(", ")
        decided = " (which also decided what to keep)" if fold == "val" and when == "after" else ""
        interval = f"{_number(found['srcc_low'])} to {_number(found['srcc_high'])}"
        photographs = f"{found['n']} photographs of {fold}{decided}"
        note(f"SRCC {when:6s} {_number(found['srcc'])} ({interval}), {photographs}")
    is_base = bool(config.training["best_step"] == 0)
    if is_base:
        note(
            "nothing was better than the base on the held-out part, so the base is kept: the adapter changes "
            "no score; try another --lr or --method, or more photographs"
        )
    return is_base


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
