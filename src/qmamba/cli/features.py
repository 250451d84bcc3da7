"""`qmamba features`: a network's features of photographs; and `qmamba plot`: pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._command import Command, with_groups
from qmamba.cli._options import Force, Progress, ScorerOptions, Seed
from qmamba.cli._progress import bar_of
from qmamba.cli._ratings import Data, read_ratings
from qmamba.cli._shared import check_target, note

if TYPE_CHECKING:
    from qmamba.errors import ImageError

EPILOG = """\
\b
Examples:
  qmamba features --data ratings.csv --out features.npz
  qmamba features --data kadid10k=kadid10k --out kadid.parquet
  qmamba plot tsne kadid.parquet --out kadid.png

\b
Exit code:
  0  the file is written, and its name is on stdout
  1  the file is written without some images, which stderr names
  2  nothing was written: no photographs, an unknown model, a file that exists
"""

TSNE_EPILOG = """\
\b
Examples:
  qmamba plot tsne features.npz --out tsne.png
  qmamba plot tsne features.npz --out stage1.svg --stage 1
"""


@with_groups
def features(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .npz or .parquet.")],
    scorer: ScorerOptions,
    force: Force = False,
    progress: Progress = None,
) -> None:
    """Write a network's features of photographs: each stage's output, averaged over positions and crops.

    The file also holds each photograph's path, MOS, distortion and reference.
    """
    from qmamba.analysis.features import check_path, extract, save_features

    check_path(out)
    check_target(out, force)
    ratings = read_ratings(data)
    loaded = scorer.load()
    failed = []
    with bar_of(len(ratings), progress) as bar:

        def tell(error: ImageError) -> None:
            failed.append(error)
            bar.clear()
            note(str(error))

        save_features(out, extract(loaded, ratings, failed=tell, done=bar.update))
    typer.echo(str(out))
    if failed:
        raise typer.Exit(1)


def tsne(
    features: Annotated[Path, typer.Argument(metavar="FEATURES", help="File of `qmamba features`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write: .png, .svg or .pdf.")],
    stage: Annotated[
        int | None, typer.Option(min=1, help="Stage whose features are drawn, from 1. Default: the last.")
    ] = None,
    seed: Seed = 0,
    perplexity: Annotated[
        float, typer.Option(min=1, help="Perplexity of t-SNE: about how many neighbours count.")
    ] = 30.0,
    force: Force = False,
) -> None:
    """Draw photographs in the plane by t-SNE of their features, coloured by distortion.

    Needs scikit-learn and matplotlib: pip install "qmamba[plot]".
    """
    from qmamba.analysis.features import load_features
    from qmamba.analysis.tsne import draw_points
    from qmamba.analysis.tsne import tsne as embedded
    from qmamba.errors import FeaturesError

    check_target(out, force)
    found = load_features(features)
    chosen = len(found.stages) if stage is None else stage
    if chosen > len(found.stages):
        raise FeaturesError(f"{features} has {len(found.stages)} stages, got --stage {chosen}")
    points = embedded(found.stages[chosen - 1], seed=seed, perplexity=perplexity)
    kinds = [kind or "unknown" for kind in found.distortion.tolist()]
    draw_points(points, kinds, out, f"t-SNE of stage {chosen}, {len(found)} photographs")
    typer.echo(str(out))


def build_plot(**options: Any) -> typer.Typer:
    """Return the group of commands; `options` are those of the whole program."""
    group = typer.Typer(no_args_is_help=True, **options)
    group.callback()(_about)
    group.command("tsne", cls=Command, no_args_is_help=True, epilog=TSNE_EPILOG)(tsne)
    return group


def _about() -> None:
    """Draw pictures of what `qmamba features` has written."""
