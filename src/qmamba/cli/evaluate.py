"""`qmamba evaluate`: how well a model's scores agree with what people said."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.checkpoints.card import METRIC_TITLES
from qmamba.cli._options import (
    AdapterOption,
    BatchSize,
    Device,
    Dtype,
    Model,
    Offline,
    Progress,
    ProtocolOption,
    Revision,
)
from qmamba.cli._shared import USAGE, bar_of, load_scorer, note, quiet_ends
from qmamba.errors import ImageError, RecipeError

if TYPE_CHECKING:
    from qmamba.data import Rated
    from qmamba.scoring import Scorer

EPILOG = """\
\b
Examples:
  qmamba evaluate --biq2021 BIQ2021
  qmamba evaluate --model runs/mine/checkpoint --data ratings.csv --fold val
  qmamba evaluate --data ratings.csv --out scores.csv --format json

\b
Exit code:
  0  every image was scored
  1  some images were not; stderr names them, and the numbers are about the others
  2  nothing was measured: no ratings, an unknown model, a wrong option
"""

TITLES = {name: title for name, title in METRIC_TITLES.items() if name != "n"}
EVERY = "all"


class EvaluateFormat(str, Enum):
    """How `qmamba evaluate` writes what it measured."""

    table = "table"
    json = "json"


def evaluate(
    model: Model = "lqmamba-n",
    adapter: AdapterOption = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="A manifest: CSV with image, mos and perhaps fold.")
    ] = None,
    biq2021: Annotated[Path | None, typer.Option(help="A folder with the data set BIQ2021.")] = None,
    fold: Annotated[
        str | None, typer.Option(help="A fold, or `all`. Default: test; all of a manifest without folds.")
    ] = None,
    protocol: ProtocolOption = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Draws of the bootstrap that gives 95 % intervals; 0 for none.")
    ] = 1000,
    form: Annotated[
        EvaluateFormat, typer.Option("--format", "-f", help="How the numbers are written.")
    ] = EvaluateFormat.table,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="CSV file for image, mos, score and error of each image."),
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    offline: Offline = False,
    progress: Progress = None,
) -> None:
    """Score rated photographs, and tell how well the scores agree with the ratings.

    Rank correlations (SRCC, KRCC), linear correlation and error, raw and after a four-parameter logistic has
    been fitted (which needs scipy), each with its 95 % bootstrap interval.
    """
    with quiet_ends():
        ratings, used = _ratings(data, biq2021, fold)
        scorer = load_scorer(model, device, dtype, protocol, revision, offline, adapter)
        scores = _score(scorer, ratings, out, batch_size, progress)
        failed = len(ratings) - len(scores)
        if len(scores) < 2:
            note(f"{len(scores)} of {len(ratings)} images could be scored; a correlation takes two at least")
            raise typer.Exit(USAGE)
        report = {
            "model": scorer.name,
            "adapter": adapter,
            "data": str(data or biq2021),
            "fold": used,
            "protocol": scorer.protocol.to_dict(),
            "failed": failed,
            "results": _measure([s for s, _ in scores], [m for _, m in scores], resamples),
        }
        typer.echo(_table(report) if form is EvaluateFormat.table else json.dumps(report, indent=2))
        if failed:
            note(f"{failed} of {len(ratings)} images could not be scored, and the numbers leave them out")
            raise typer.Exit(1)


def _ratings(data: Path | None, biq2021: Path | None, fold: str | None) -> tuple[list[Rated], str]:
    """The photographs of a fold, and its name."""
    from qmamba.data import read_biq2021, read_manifest

    if data is not None and biq2021 is None:
        ratings = read_manifest(data)
    elif biq2021 is not None and data is None:
        ratings = read_biq2021(biq2021)
    else:
        raise RecipeError(
            "give ratings: either --data with a manifest, or --biq2021 with the data set's folder"
        )
    folds = sorted({r.fold for r in ratings} - {""})
    wanted = fold or ("test" if folds else EVERY)
    chosen = [r for r in ratings if wanted in (r.fold, EVERY)]
    if not chosen:
        there = ", ".join([*folds, EVERY])
        raise RecipeError(f"no photographs are in the fold {wanted!r}: choose --fold from {there}")
    return chosen, wanted


def _score(
    scorer: Scorer, ratings: list[Rated], out: Path | None, batch_size: int, progress: bool | None
) -> list[tuple[float, float]]:
    """(score, MOS) of each image that can be scored; the others are named on stderr."""
    scores = []
    with _rows_to(out) as write, bar_of(len(ratings), progress) as bar:
        for index, found in scorer.iter_scores([r.path for r in ratings], batch_size=batch_size):
            rated = ratings[index]
            if isinstance(found, ImageError) or not math.isfinite(found):
                reason = (
                    str(found) if isinstance(found, ImageError) else f"{rated.path}: the score is {found}"
                )
                bar.clear()
                note(reason)
                write([rated.path, rated.mos, "", reason])
            else:
                scores.append((found, rated.mos))
                write([rated.path, rated.mos, f"{found:.6f}", ""])
            bar.update()
    return scores


@contextmanager
def _rows_to(out: Path | None) -> Iterator[Any]:
    """A function that writes one row of the scores' file, as soon as it is known."""
    if out is None:
        yield lambda row: None
        return
    try:
        file = out.open("w", newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise RecipeError(f"--out {out} cannot be written: {error.strerror}") from error
    with file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "mos", "score", "error"])
        yield writer.writerow


def _measure(pred: list[float], mos: list[float], resamples: int) -> dict[str, float | None]:
    """Each metric with its interval; those that cannot be had are left out, and stderr says why."""
    from qmamba.metrics import MetricError
    from qmamba.metrics import evaluate as measure

    if min(mos) < 0 or max(mos) > 1:
        note(
            f"MOS go from {min(mos):g} to {max(mos):g}, scores from 0 to 1: RMSE says nothing before the fit"
        )
    results: dict[str, float | None] = {}
    for metric in TITLES:
        try:
            found = measure(pred, mos, metrics=[metric], resamples=resamples)
        except MetricError as error:
            if not metric.endswith("_fitted"):
                raise
            note(f"without {TITLES[metric]}: {error}")
        else:
            results |= {key: None if math.isnan(value) else value for key, value in found.items()}
    return results


def _table(report: dict[str, Any]) -> str:
    results = report["results"]
    lines = [
        f"model     {report['model']}" + (f" with {report['adapter']}" if report["adapter"] else ""),
        f"data      {report['data']}, fold {report['fold']}",
        f"protocol  {report['protocol']['kind']}",
        f"images    {results['n']}",
        "",
    ]
    intervals = any(key.endswith("_low") for key in results)
    lines.append("metric           value" + "   95 % interval" * intervals)
    for metric, title in TITLES.items():
        if metric in results:
            low, high = (_number(results.get(f"{metric}_{end}")) for end in ("low", "high"))
            lines.append(f"{title:12s}  {_number(results[metric]):>8s}" + f"   {low} to {high}" * intervals)
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
