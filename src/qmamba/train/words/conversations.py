"""Conversations about photographs, in the JSON layout of Q-Instruct (CVPR 2024) and LLaVA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...data.image_entries import path_below, read_entries, shown
from ...errors import DataSetError
from ...models.capabilities import IMAGE
from ...scoring.vocabulary import Instructions, Vocabulary, padded

PLACE = "<image>"
IGNORED = -100  # a label that no loss is computed for


class Turn(NamedTuple):
    """A question of a person, without the place of the image, and the answer to learn."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """A photograph, and one or more questions and answers about it."""

    path: Path
    turns: tuple[Turn, ...]


def read_conversations(file: str | Path, images: str | Path | None = None) -> list[Conversation]:
    """Read a list of ``{"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", …}]}``.

    The first question of each has ``<image>`` in it, at its beginning or end.

    Args:
        file: JSON.
        images: folder that the paths of images are relative to; by default that of the file.

    Raises:
        DataSetError: the file cannot be read, an entry has another form, or images are missing; the first
            entry at fault is named.
    """
    return read_entries(file, images, "conversations", _conversation)


def _conversation(entry: Any, where: str, root: Path) -> Conversation:
    if not isinstance(entry, Mapping):
        raise DataSetError(f"{where} must be an object with image and conversations, got {shown(entry)}")
    if "id" in entry:
        where = f"{where} (id {shown(entry['id'])})"
    path = path_below(root, entry.get("image"), f"{where}: image")
    parts = entry.get("conversations")
    if not isinstance(parts, list) or len(parts) < 2 or len(parts) % 2:
        raise DataSetError(
            f"{where}: conversations must be a list of questions and answers, got {shown(parts)}"
        )
    texts = [_text(part, ("human", "gpt")[i % 2], f"{where}: part {i}") for i, part in enumerate(parts)]
    questions, answers = texts[::2], texts[1::2]
    if [question.count(PLACE) for question in questions] != [1] + [0] * (len(questions) - 1):
        raise DataSetError(f"{where}: {PLACE} must be in the first question, once, and in no other")
    turns = tuple(
        Turn(question.replace(PLACE, "").strip(), answer.strip())
        for question, answer in zip(questions, answers, strict=True)
    )
    if not all(part for turn in turns for part in turn):
        raise DataSetError(f"{where}: questions and answers must not be empty; leave the entry out")
    return Conversation(path, turns)


def _text(part: Any, speaker: str, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("from") != speaker or not isinstance(part.get("value"), str):
        raise DataSetError(f"{where} must be from {speaker!r} with text as its value, got {shown(part)}")
    return str(part["value"])


@dataclass(frozen=True)
class WordBatch:
    """The part of a step that one process computes.

    Attributes:
        images: (B, 3, S, S) float32, normalised.
        tokens: (B, L) int64, conversations with places for the visual tokens, padded at their ends.
        mask: (B, L) int64, 1 for a token and 0 for padding.
        labels: (B, L) int64, the tokens of answers and their ends; :data:`IGNORED` elsewhere.
        instructions: of all turns.
        owners: (T,) int64, which image each instruction is for.
    """

    images: Tensor
    tokens: Tensor
    mask: Tensor
    labels: Tensor
    instructions: Instructions
    owners: Tensor


def as_tokens(turns: Sequence[Turn], vocabulary: Vocabulary, length: int) -> tuple[list[int], list[int]]:
    """Return a conversation's tokens and labels, cut at a length; only answers and their ends are learned."""
    tokens: list[int] = []
    labels: list[int] = []
    for i, turn in enumerate(turns):
        question = (
            vocabulary.opening(turn.question)
            if i == 0
            else vocabulary.ids(vocabulary.dialogue.question(turn.question, first=False))
        )
        answer = [*vocabulary.ids(f" {turn.answer}"), vocabulary.stop]
        tokens += [*question, *answer]
        labels += [*[IGNORED] * len(question), *answer]
    return tokens[:length], labels[:length]


def collated(
    images: Sequence[Tensor], conversations: Sequence[Conversation], vocabulary: Vocabulary, length: int
) -> WordBatch:
    """Return a batch of normalised images (3, S, S) and the conversations about them.

    Raises:
        DataSetError: a conversation's image does not fit into the length, or leaves no room for an answer.
    """
    rows = [as_tokens(each.turns, vocabulary, length) for each in conversations]
    for each, (tokens, labels) in zip(conversations, rows, strict=True):
        if tokens.count(IMAGE) != vocabulary.image_tokens or all(label == IGNORED for label in labels):
            raise DataSetError(
                f"the conversation about {each.path} leaves no room for an answer in {length} tokens; make "
                "length larger, or leave it out"
            )
    questions = [turn.question for each in conversations for turn in each.turns]
    owners = [i for i, each in enumerate(conversations) for _ in each.turns]
    return WordBatch(
        torch.stack(list(images)),
        padded([tokens for tokens, _ in rows], 0),
        padded([[1] * len(tokens) for tokens, _ in rows], 0),
        padded([labels for _, labels in rows], IGNORED),
        vocabulary.instructions(questions),
        torch.tensor(owners, dtype=torch.int64),
    )
