"""`qmamba qbench`: the benchmarks of models that answer in words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._options import OutputFormat, Progress, ReportFormat
from qmamba.cli._progress import bar_of
from qmamba.cli._shared import columns, hushed
from qmamba.cli._words import WordsOptions
from qmamba.errors import ArgumentError

if TYPE_CHECKING:
    from qmamba.scoring import LanguageScorer

EPILOG = """\
\b
Examples:
  qmamba qbench --questions llvisionqa_dev.json --images IMAGES --model path/to/checkpoint
  qmamba qbench --data-root SETS --model path/to/checkpoint --format json

\b
Exit code:
  0  the numbers are on stdout; data sets that are absent are marked
  2  nothing was measured: no such file, a model without words, a wrong option
"""


@with_groups
def qbench(
    words: WordsOptions,
    questions: Annotated[
        Path | None, typer.Option(help="JSON file of LLVisionQA, questions of several choices.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of their images. Default: the folder of the JSON file.")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder with a folder for each data set, under its name in `qmamba data list`."),
    ] = None,
    form: OutputFormat = ReportFormat.table,
    progress: Progress = None,
) -> None:
    """Measure a model that knows words as Q-Bench does: by its answers, and by its scores.

    An answer must begin with the letter of the right choice. A score is the share of "good" against "poor",
    and is compared with the opinion scores of every data set that is there.
    """
    if questions is None and data_root is None:
        raise ArgumentError("give --questions, --data-root, or both")
    with hushed():
        from qmamba.data.questions import read_llvisionqa

        asked = None if questions is None else read_llvisionqa(questions, images)
        scorer = words.load()
        report: dict[str, Any] = {"model": scorer.name}
        if asked is not None:
            from qmamba.analysis.qbench import answer_questions

            with bar_of(len(asked), progress, unit=" questions") as bar:
                found = answer_questions(scorer, asked, bar.update)
            report["llvisionqa"] = {**asdict(found), "accuracy": found.accuracy}
        if data_root is not None:
            report["score"] = _agreements(scorer, data_root, progress)
    typer.echo(_table(report) if form is ReportFormat.table else json.dumps(report, indent=2))


def _agreements(scorer: LanguageScorer, root: Path, progress: bool | None) -> list[dict[str, Any]]:
    from qmamba.analysis.qbench import score_sets

    with bar_of(None, progress) as bar:

        def show(title: str, done: int, total: int) -> None:
            bar.set_description(f"{title} {done}/{total}")
            bar.update()

        return [asdict(each) for each in score_sets(scorer, root, report=show)]


def _table(report: dict[str, Any]) -> str:
    lines = [f"model  {report['model']}"]
    if (found := report.get("llvisionqa")) is not None:
        lines += [
            "",
            f"LLVisionQA  {100 * found['accuracy']:.2f} % right of {found['questions']} questions "
            f"({found['unparsed']} answers name no choice, {found['failed']} images cannot be read)",
        ]
    if "score" in report:
        rows = [("data set", "images", "SRCC", "PLCC")]
        for each in report["score"]:
            absent = each["images"] == 0 and each["failed"] == 0
            numbers = ["-" if each[key] is None else f"{each[key]:.4f}" for key in ("srcc", "plcc")]
            rows.append((each["title"], "absent" if absent else str(each["images"]), *numbers))
        lines += ["", columns(rows)]
    return "\n".join(lines)
