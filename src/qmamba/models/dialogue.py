"""How questions and answers are written as text for networks that read words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

MAX_CHOICES = len(ascii_uppercase)


@dataclass(frozen=True)
class Dialogue:
    """The template of a conversation about an image, and the questions that qmamba asks itself.

    A conversation is ``system USER: <image>\\nquestion ASSISTANT: answer<stop>``, then ``USER: question
    ASSISTANT: answer<stop>`` and so on; visual tokens take the place of ``<image>``.

    Attributes:
        system: the first sentence.
        stop: the token that ends an answer.
        score_question, score_start: question of a score, and the beginning of its answer (Q-Bench).
        good, poor: words that may follow; a score is the share of the first.
        levels: five words that may follow, from the best to the worst.
        description: the question of a description (Q-Bench).
        choice: what a question of several choices ends in (Q-Bench).
    """

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions."
    )
    stop: str = "<|endoftext|>"
    score_question: str = "Rate the quality of the image."
    score_start: str = " The quality of the image is"
    good: str = " good"
    poor: str = " poor"
    levels: tuple[str, ...] = (" excellent", " good", " fair", " poor", " bad")
    description: str = (
        "Describe the quality, aesthetics and other low-level appearance of the image in details."
    )
    choice: str = "Answer with the option's letter from the given choices directly."

    def before_image(self) -> str:
        """Return the text before the visual tokens."""
        return f"{self.system} USER: "

    def question(self, text: str, *, first: bool = True) -> str:
        """Return the text from behind the visual tokens, or from an earlier answer, to the answer.

        >>> Dialogue().question("Is it sharp?")
        '\\nIs it sharp? ASSISTANT:'
        """
        return f"\n{text} ASSISTANT:" if first else f"USER: {text} ASSISTANT:"

    def choices(self, question: str, candidates: Sequence[str]) -> str:
        """Return a question whose answer is the letter of one of the candidates.

        >>> print(Dialogue(choice="Choose.").choices("Is it sharp?", ["Yes", "No"]))
        Is it sharp?
        Choose.
        A. Yes
        B. No
        """
        lines = [f"{letter}. {each}" for letter, each in zip(ascii_uppercase, candidates, strict=False)]
        return "\n".join([question, self.choice, *lines])


def chosen(answer: str, count: int) -> int | None:
    """Return the zero-based index of the choice that an answer names, None where it names none.

    The answer must begin with a letter of a choice, alone or before a full stop, colon or bracket: a word
    that begins with this letter does not count, and no letter is searched for in a sentence.

    Args:
        answer: text.
        count: number of choices.

    >>> chosen("B. No", 2), chosen(" A", 2), chosen("Both", 2), chosen("C", 2), chosen("It is A.", 2)
    (1, 0, None, None, None)
    """
    text = answer.strip()
    if not text or (len(text) > 1 and text[1] not in ".:) \n"):
        return None
    index = ascii_uppercase.find(text[0])
    return index if 0 <= index < count else None
