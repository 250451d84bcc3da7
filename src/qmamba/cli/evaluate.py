"""`qmamba evaluate`: how well a model's scores agree with people's ratings."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.checkpoints.card import METRIC_TITLES
from qmamba.cli._command import with_groups
from qmamba.cli._options import (
    Force,
    OutputFormat,
    Progress,
    ReadingOptions,
    ReportFormat,
    ScorerOptions,
)
from qmamba.cli._progress import bar_of
from qmamba.cli._ratings import Data, read_ratings
from qmamba.cli._shared import USAGE, check_target, note
from qmamba.errors import ImageError, RecipeError

if TYPE_CHECKING:
    from qmamba.data import Rated
    from qmamba.scoring import Scorer

EPILOG = """\
\b
Examples:
  qmamba evaluate --data biq2021=BIQ2021
  qmamba evaluate --model runs/mine/checkpoint --data ratings.csv --fold val
  qmamba evaluate --data ratings.csv --out scores.csv --format json

\b
Exit code:
  0  every image was scored
  1  some images could not be scored; stderr names them, and the numbers leave them out
  2  nothing was measured: no ratings, an unknown model, a wrong option
"""

TITLES = {name: title for name, title in METRIC_TITLES.items() if name != "n"}
ALL_FOLDS = "all"


@with_groups
def evaluate(
    data: Data,
    scorer: ScorerOptions,
    reading: ReadingOptions,
    fold: Annotated[
        str | None, typer.Option(help="Fold to score, or `all`. Default: test; all if there are no folds.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Bootstrap resamples for 95 % intervals; 0 for no intervals.")
    ] = 1000,
    form: OutputFormat = ReportFormat.table,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="CSV file to write: image, mos, score and error of each image."),
    ] = None,
    force: Force = False,
    progress: Progress = None,
) -> None:
    """Score rated photographs and measure how well the scores agree with the ratings.

    Rank correlations (SRCC, KRCC), linear correlation (PLCC) and error (RMSE), raw and after a
    four-parameter logistic fit (which needs scipy), each with its 95 % bootstrap interval. Scores of a model
    whose lower scores are better are turned around first, as ratings are.
    """
    if out is not None:
        check_target(out, force)
    ratings, chosen = _fold_of(read_ratings(data), fold)
    if repeated := _repeated(ratings):
        note(
            f"{repeated} of {len(ratings)} rows name an image that a row before them has; each row counts, "
            "and the intervals are narrower than they should be"
        )
    loaded = scorer.load()
    scores = _score(loaded, ratings, out, progress, **reading.to_dict())
    failed = len(ratings) - len(scores)
    if len(scores) < 2:
        note(f"{len(scores)} of {len(ratings)} images could be scored; a correlation needs at least two")
        raise typer.Exit(USAGE)
    report = {
        "model": loaded.name,
        "adapter": scorer.adapter,
        "data": data,
        "fold": chosen,
        "protocol": loaded.protocol.to_dict(),
        "failed": failed,
        "repeated": repeated,
        "lower_better": loaded.lower_better,
        "results": _measure(scores, loaded, resamples),
    }
    typer.echo(_table(report) if form is ReportFormat.table else json.dumps(report, indent=2))
    if failed:
        note(f"{failed} of {len(ratings)} images could not be scored, and the numbers leave them out")
        raise typer.Exit(1)


def _fold_of(ratings: list[Rated], fold: str | None) -> tuple[list[Rated], str]:
    """Return the photographs of a fold, and its name."""
    folds = sorted({r.fold for r in ratings} - {""})
    wanted = fold or ("test" if folds else ALL_FOLDS)
    chosen = [r for r in ratings if wanted in (r.fold, ALL_FOLDS)]
    if not chosen:
        names = ", ".join([*folds, ALL_FOLDS])
        raise RecipeError(f"--fold must be one of {names}, got {wanted!r}, which has no photographs")
    return chosen, wanted


def _repeated(ratings: list[Rated]) -> int:
    """Return how many rows name an image that another row before them has."""
    return len(ratings) - len({rated.path.resolve() for rated in ratings})


def _score(
    scorer: Scorer, ratings: list[Rated], out: Path | None, progress: bool | None, **options: Any
) -> list[tuple[float, float]]:
    """Return (score, MOS) of each image that can be scored; the others are named on stderr."""
    scores = []
    with _rows_to(out) as write, bar_of(len(ratings), progress) as bar:
        for index, found in scorer.iter_scores([r.path for r in ratings], **options):
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
    """Yield a function that writes one row to the CSV file as soon as it is known."""
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


def _measure(rated: list[tuple[float, float]], scorer: Scorer, resamples: int) -> dict[str, float | None]:
    """Return each metric with its interval for pairs (score, MOS); stderr says which cannot be computed."""
    from qmamba.metrics import MetricError
    from qmamba.metrics import evaluate as measure

    low, high = scorer.score_range
    scores = [low + high - score if scorer.lower_better else score for score, _ in rated]
    mos = [rating for _, rating in rated]
    if min(mos) < low or max(mos) > high:
        note(
            f"MOS range from {min(mos):g} to {max(mos):g}, scores from {low:g} to {high:g}: "
            "RMSE is meaningful only after the fit"
        )
    results: dict[str, float | None] = {}
    for metric in TITLES:
        try:
            found = measure(scores, mos, metrics=[metric], resamples=resamples)
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
        *(["scores    lower is better; turned around here"] if report["lower_better"] else []),
        "",
    ]
    has_intervals = any(key.endswith("_low") for key in results)
    lines.append("metric           value" + "   95 % interval" * has_intervals)
    for metric, title in TITLES.items():
        if metric in results:
            low, high = (_number(results.get(f"{metric}_{end}")) for end in ("low", "high"))
            interval = f"   {low} to {high}" * has_intervals
            lines.append(f"{title:12s}  {_number(results[metric]):>8s}{interval}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
