"""Text as tokens: for the language model, and for a network that reads the instruction by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qmamba.errors import ArgumentError, CheckpointError
from qmamba.models.capabilities import IMAGE, Converses
from qmamba.models.dialogue import Dialogue

UNFINISHED = "\ufffd"  # the bytes of a character that the next token completes


class Instructions(NamedTuple):
    """Instructions as tokens.

    Attributes:
        tokens: (T, I) int64; I is 0 for a network that reads none.
        mask: (T, I) int64, 1 for a token and 0 for padding.
    """

    tokens: Tensor
    mask: Tensor


class Vocabulary:
    """The tokenizers of a network with words, and the template of its conversations.

    Args:
        tokenizers: of the library tokenizers, by role: "language", and "instruction" where the network reads
            instructions.
        dialogue: the template.
        network: that reads the tokens.

    Raises:
        CheckpointError: a role is missing, or the end of an answer is no token.
    """

    def __init__(self, tokenizers: Mapping[str, Any], dialogue: Dialogue, network: Converses) -> None:
        self.dialogue = dialogue
        self.image_tokens, self.text_tokens = network.image_tokens, network.text_tokens
        self.reads_instructions = network.instruction_tokens > 0
        needed = ["language", *(["instruction"] if self.reads_instructions else [])]
        if missing := [role for role in needed if role not in tokenizers]:
            raise CheckpointError(f"config: tokenizers must have one for {missing[0]!r}; name its file")
        self.language = _copy(tokenizers["language"])
        if self.reads_instructions:
            self.instruction = _copy(tokenizers["instruction"])
            self.instruction.enable_truncation(network.instruction_tokens, direction="left")
        self.stop = self.single(dialogue.stop)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of text, without any that the tokenizer would add by itself."""
        return list(self.language.encode(text, add_special_tokens=False).ids)

    def single(self, word: str) -> int:
        """Return the token of a word, with its leading space.

        Raises:
            CheckpointError: the word is not exactly one token.
        """
        token = self.language.token_to_id(word)
        found = self.ids(word) if token is None else [token]
        unknown = getattr(self.language.model, "unk_token", None)
        if len(found) != 1 or (unknown is not None and self.language.id_to_token(found[0]) == unknown):
            raise CheckpointError(
                f"{word!r} must be one token of the language model, got {len(found)}: use the tokenizer that "
                "the model was trained with"
            )
        return found[0]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self.language.decode(list(ids), skip_special_tokens=True))

    def opening(self, question: str) -> list[int]:
        """Return the tokens of a conversation to its first answer, with places for the visual tokens."""
        before = self.ids(self.dialogue.before_image())
        return [*before, *[IMAGE] * self.image_tokens, *self.ids(self.dialogue.question(question))]

    def prompt(self, question: str, start: str = "") -> Tensor:
        """Return the tokens (1, L) int64 that an answer continues.

        Args:
            question: of the user.
            start: of the answer.

        Raises:
            ArgumentError: the question is empty, or leaves no room for an answer.
        """
        if not isinstance(question, str) or not question.strip():
            raise ArgumentError(f"question must be text, got {question!r}")
        tokens = [*self.opening(question.strip()), *(self.ids(start) if start else [])]
        if len(tokens) >= self.text_tokens:
            raise ArgumentError(
                f"question must leave room for an answer, got {len(tokens)} tokens of {self.text_tokens}; "
                "shorten it"
            )
        return torch.tensor([tokens], dtype=torch.int64, device="cpu")

    def instructions(self, texts: Sequence[str]) -> Instructions:
        """Return instructions as tokens; long ones lose their beginning."""
        if not self.reads_instructions:
            empty = torch.zeros(len(texts), 0, dtype=torch.int64, device="cpu")
            return Instructions(empty, empty)
        rows = [list(self.instruction.encode(text).ids) for text in texts]
        return Instructions(padded(rows, 0), padded([[1] * len(row) for row in rows], 0))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield text as its tokens come; a character of several tokens comes when it is complete."""
        seen: list[int] = []
        given = ""
        for token in ids:
            seen.append(token)
            text = self.text(seen).lstrip()
            if len(text) > len(given) and not text.endswith(UNFINISHED):
                yield text[len(given) :]
                given = text
        rest = self.text(seen).lstrip()[len(given) :]
        if rest:
            yield rest


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return rows of numbers as a tensor (n, longest) int64, padded at their ends.

    >>> padded([[1, 2], [3]], 0)
    tensor([[1, 2],
            [3, 0]])
    """
    longest = max(map(len, rows), default=0)
    return torch.tensor(
        [[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64, device="cpu"
    ).reshape(len(rows), longest)


def _copy(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer that neither truncates nor pads, whatever its file says."""
    own = type(tokenizer).from_str(tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    return own
