"""Questions of several choices about the quality of photographs, as LLVisionQA of Q-Bench has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataSetError
from .image_entries import path_below, read_entries, shown

MAX_CHOICES = 26  # a letter each


@dataclass(frozen=True)
class Question:
    """A photograph, a question about it, and which of the candidates is right.

    Attributes:
        path: of the photograph.
        text: the question.
        candidates: 2 to 26 answers.
        correct: zero-based index of the right one.
    """

    path: Path
    text: str
    candidates: tuple[str, ...]
    correct: int


def read_llvisionqa(file: str | Path, images: str | Path | None = None) -> list[Question]:
    """Read ``[{"img_path", "question", "candidates", "correct_ans"}, …]``; other keys are ignored.

    Args:
        file: JSON.
        images: folder that the paths of images are relative to; by default that of the file.

    Raises:
        DataSetError: the file cannot be read, an entry has another form, or images are missing; the first
            entry at fault is named.
    """
    return read_entries(file, images, "questions", _question)


def _question(entry: Any, where: str, root: Path) -> Question:
    if not isinstance(entry, Mapping):
        raise DataSetError(f"{where} must be an object with img_path and question, got {shown(entry)}")
    for key in ("img_path", "question", "correct_ans"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise DataSetError(f"{where}: {key} must be text, got {shown(entry.get(key))}")
    path, candidates = path_below(root, entry["img_path"], f"{where}: img_path"), entry.get("candidates")
    if not isinstance(candidates, list) or not 2 <= len(candidates) <= MAX_CHOICES:
        raise DataSetError(
            f"{where}: candidates must list 2 to {MAX_CHOICES} answers, got {shown(candidates)}"
        )
    if any(not isinstance(each, str) or not each.strip() for each in candidates):
        raise DataSetError(f"{where}: candidates must be text, got {shown(candidates)}")
    if candidates.count(entry["correct_ans"]) != 1:
        raise DataSetError(f"{where}: correct_ans must be one candidate, got {shown(entry['correct_ans'])}")
    return Question(
        path, entry["question"].strip(), tuple(candidates), candidates.index(entry["correct_ans"])
    )
