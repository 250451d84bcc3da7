"""Questions of several choices about the quality of photographs, as LLVisionQA of Q-Bench has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataSetError

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
    file = Path(file)
    root = file.parent if images is None else Path(images)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataSetError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataSetError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataSetError(f"{file} must hold a list of questions, got {type(entries).__name__}")
    questions = [_question(entry, f"{file}: entry {i}", root) for i, entry in enumerate(entries)]
    missing = [each.path for each in questions if not each.path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataSetError(f"{missing[0]}{more} of {file} do not exist; give the folder of the images")
    return questions


def _question(entry: Any, where: str, root: Path) -> Question:
    if not isinstance(entry, Mapping):
        raise DataSetError(f"{where} must be an object with img_path and question, got {entry!r:.60}")
    for key in ("img_path", "question", "correct_ans"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise DataSetError(f"{where}: {key} must be text, got {entry.get(key)!r:.60}")
    image, candidates = entry["img_path"], entry.get("candidates")
    if PurePosixPath(image).is_absolute() or ".." in Path(image).parts:
        raise DataSetError(f"{where}: img_path must be below the folder of images, got {image!r:.60}")
    if not isinstance(candidates, list) or not 2 <= len(candidates) <= MAX_CHOICES:
        raise DataSetError(
            f"{where}: candidates must list 2 to {MAX_CHOICES} answers, got {candidates!r:.60}"
        )
    if any(not isinstance(each, str) or not each.strip() for each in candidates):
        raise DataSetError(f"{where}: candidates must be text, got {candidates!r:.60}")
    if candidates.count(entry["correct_ans"]) != 1:
        raise DataSetError(f"{where}: correct_ans must be one candidate, got {entry['correct_ans']!r:.60}")
    return Question(
        root / image, entry["question"].strip(), tuple(candidates), candidates.index(entry["correct_ans"])
    )
