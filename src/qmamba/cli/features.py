"""`qmamba features`: what a network sees in photographs; and `qmamba plot`: pictures of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._options import Device, Model, Offline, Progress, ProtocolOption, Revision
from qmamba.cli._shared import bar_of, load_scorer, note, quiet_ends

if TYPE_CHECKING:
    from qmamba.errors import ImageError

FEATURES_EPILOG = """\
\b
Examples:
  qmamba features --data ratings.csv --out features.npz
  qmamba features --set kadid10k --data kadid10k --out kadid.parquet
  qmamba plot tsne kadid.parquet --out kadid.png

\b
Exit code:
  0  the file is there, and its name is on stdout
  1  it is, without some images; stderr names them
  2  it is not: no photographs, an unknown model, another kind of file
"""

TSNE_EPILOG = """\
\b
Examples:
  qmamba plot tsne features.npz --out tsne.png
  qmamba plot tsne features.npz --out stage1.svg --stage 1
"""


def features(
    data: Annotated[
        Path, typer.Option("--data", "-d", help="A manifest (CSV with image and mos), or --set's folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .npz or .parquet file.")],
    dataset: Annotated[
        str, typer.Option("--set", help="A data set of `qmamba data list`, whose folder --data is.")
    ] = "manifest",
    model: Model = "lqmamba-n",
    protocol: ProtocolOption = None,
    device: Device = None,
    revision: Revision = None,
    offline: Offline = False,
    progress: Progress = None,
) -> None:
    """Write a network's features of photographs: each stage's output, averaged over positions and crops.

    Beside them stand each photograph's path, MOS, distortion and reference.
    """
    with quiet_ends():
        from qmamba.analysis.features import check_path, extract, save_features
        from qmamba.data import read_dataset

        check_path(out)
        ratings = read_dataset(dataset, data)
        scorer = load_scorer(model, device, None, protocol, revision, offline)
        failed = []
        with bar_of(len(ratings), progress) as bar:

            def tell(error: ImageError) -> None:
                failed.append(error)
                bar.clear()
                note(str(error))

            save_features(out, extract(scorer, ratings, failed=tell, done=bar.update))
        typer.echo(str(out))
        if failed:
            raise typer.Exit(1)


def tsne(
    features: Annotated[Path, typer.Argument(metavar="FEATURES", help="A file of `qmamba features`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.")],
    stage: Annotated[
        int | None, typer.Option(min=1, help="Whose features: 1 is the first. Default: the last.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search for places.")] = 0,
    perplexity: Annotated[float, typer.Option(min=1, help="About how many neighbours count.")] = 30.0,
) -> None:
    """Draw photographs in the plane by t-SNE of their features, coloured by distortion.

    Needs scikit-learn and matplotlib: pip install "qmamba[plot]".
    """
    with quiet_ends():
        from qmamba.analysis.features import load_features
        from qmamba.analysis.tsne import draw_points
        from qmamba.analysis.tsne import tsne as place
        from qmamba.errors import FeaturesError

        found = load_features(features)
        which = len(found.stages) if stage is None else stage
        if which > len(found.stages):
            raise FeaturesError(f"{features} has {len(found.stages)} stages, and no stage {which}")
        points = place(found.stages[which - 1], seed=seed, perplexity=perplexity)
        kinds = [kind or "not known" for kind in found.distortion.tolist()]
        draw_points(points, kinds, out, f"t-SNE of stage {which}, {len(found)} photographs")
        typer.echo(str(out))


def build_plot(**options: Any) -> typer.Typer:
    """The group of commands, with the options of the whole."""
    group = typer.Typer(no_args_is_help=True, **options)
    group.callback()(_about)
    group.command("tsne", no_args_is_help=True, epilog=TSNE_EPILOG)(tsne)
    return group


def _about() -> None:
    """Pictures of what `qmamba features` has written."""
