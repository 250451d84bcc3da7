"""Q-Bench (ICLR 2024): questions answered by a network with words, and its scores against opinion scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.datasets import DATASETS
from ..data.questions import Question
from ..errors import ImageError
from ..metrics import evaluate
from ..scoring import LanguageScorer, Scorer


@dataclass(frozen=True)
class Answered:
    """Outcome of questions of several choices.

    Attributes:
        questions: their number.
        right: questions whose right choice was named.
        unparsed: answers that name no choice; they count as wrong.
        failed: photographs that could not be read; they count as wrong.
    """

    questions: int
    right: int
    unparsed: int
    failed: int

    @property
    def accuracy(self) -> float:
        """Share of right answers among all questions."""
        return self.right / self.questions


def answer_questions(
    scorer: LanguageScorer, questions: Sequence[Question], report: Callable[[], None] | None = None
) -> Answered:
    """Ask each question, greedily, and read the answer's first letter strictly.

    Args:
        scorer: to ask.
        questions: of :func:`qmamba.data.questions.read_llvisionqa`.
        report: called after each question.
    """
    right = unparsed = failed = 0
    for each in questions:
        try:
            found = scorer.choose(each.path, each.text, each.candidates)
            right += found == each.candidates[each.correct]
            unparsed += found is None
        except ImageError:
            failed += 1
        if report is not None:
            report()
    return Answered(len(questions), right, unparsed, failed)


@dataclass(frozen=True)
class Agreement:
    """How well scores agree with opinion scores on a data set.

    Attributes:
        name, title: of the data set.
        images: scored images; 0 where the data set is absent.
        failed: images that could not be scored, and are left out.
        srcc, plcc: rank and linear correlation; None where the data set is absent.
    """

    name: str
    title: str
    images: int = 0
    failed: int = 0
    srcc: float | None = None
    plcc: float | None = None


def score_sets(
    scorer: Scorer,
    root: str | Path,
    names: Iterable[str] = tuple(DATASETS),
    report: Callable[[str, int, int], None] | None = None,
) -> list[Agreement]:
    """Score all images of each data set whose folder is there: nothing was trained on them.

    Args:
        scorer: any; one with words by its share of "good" against "poor".
        root: folder that holds a folder for each data set, under its name here.
        names: keys of :data:`qmamba.data.DATASETS`.
        report: called with the data set, the images scored and their number after each image.

    Raises:
        DataSetError: the folder of a data set is there, and not laid out as expected.
    """
    found = []
    for name in names:
        entry = DATASETS[name]
        if not (Path(root) / name).is_dir():
            found.append(Agreement(name, entry.title))
            continue
        ratings = entry.read(Path(root) / name)
        pairs: list[tuple[float, float]] = []
        for index, score in scorer.iter_scores([rated.path for rated in ratings]):
            if not isinstance(score, ImageError):
                pairs.append((-score if scorer.lower_better else score, ratings[index].mos))
            if report is not None:
                report(entry.title, index + 1, len(ratings))
        found.append(_agreement(name, entry.title, pairs, len(ratings)))
    return found


def _agreement(name: str, title: str, pairs: list[tuple[float, float]], count: int) -> Agreement:
    failed = count - len(pairs)
    if len(pairs) < 2:
        return Agreement(name, title, len(pairs), failed)
    scores, mos = zip(*pairs, strict=True)
    results = evaluate(scores, mos, metrics=["srcc", "plcc"], resamples=0)
    return Agreement(name, title, len(pairs), failed, results["srcc"], results["plcc"])
