"""`qmamba score --format parquet`: rows in a folder of parquet files, which a later run resumes."""

from __future__ import annotations

import logging
import os
from contextlib import redirect_stdout, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qmamba.cli._progress import bar_of
from qmamba.cli._shared import note, note_failed
from qmamba.scoring.parquet_log import Place, ScoreParts, absolute, settings_of
from qmamba.scoring.pipeline import outcome

if TYPE_CHECKING:
    from qmamba.scoring import Scorer

OUT = Path("scores.parquet")


class Engine(str, Enum):
    """What scores images for parquet files."""

    local = "local"
    ray = "ray"


def score_here(
    scorer: Scorer,
    files: list[Path],
    out: Path,
    *,
    resume: bool,
    progress: bool | None,
    max_pixels: int | None,
    **options: Any,
) -> int:
    """Score files in this process, except those that have rows; return how many rows are failures."""
    with ScoreParts(out, settings_of(scorer, max_pixels), resume=resume) as parts:
        left = [path for path in map(absolute, files) if Place(os.fsencode(path)) not in parts]
        if parts.rows:
            note(f"resuming after {parts.rows} rows in {out}")
        with bar_of(len(files), progress, initial=len(files) - len(left)) as bar:
            for index, result in scorer.iter_scores(left, max_pixels=max_pixels, **options):
                parts.add(Place(os.fsencode(left[index])), *outcome(result))
                bar.update()
    return _end(parts.rows, parts.failed, out)


def score_by_ray(files: list[Path], out: Path, *, progress: bool | None, **options: Any) -> int:
    """Score files, and the images in shards, by actors of Ray; return how many rows are failures."""
    from qmamba.integrations.ray import score_to_parquet

    with suppress(ImportError):  # a missing Ray is reported below; the import sets up its loggers
        import ray.data  # noqa: F401
    for name in ("ray", "ray.data"):  # only status messages: failures have rows
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ray prints to stdout which processes died: their images have rows that say so.
    with bar_of(None, progress) as bar, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        summary = score_to_parquet(files, out, done=bar.update, **options)
    return _end(summary.rows, summary.failed, out)


def _end(rows: int, failed: int, out: Path) -> int:
    typer.echo(str(out))
    note_failed(failed, rows)
    return failed
