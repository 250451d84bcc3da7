"""The `LanguageScorer`: a network that answers in words, as a scorer and as somebody to ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from qmamba.adapters.host import Loaded
from qmamba.checkpoints import ModelConfig
from qmamba.checkpoints.bases import Fetch, pin_cached
from qmamba.checkpoints.tokenizers import load_tokenizers
from qmamba.errors import ArgumentError, ImageError
from qmamba.images import Decoded, iterate
from qmamba.models.capabilities import Converses, require
from qmamba.models.dialogue import MAX_CHOICES, chosen
from qmamba.ops.precision import without_autocast
from qmamba.scoring.pickling import reduce_to_one_buffer
from qmamba.scoring.pipeline import pixel_limit
from qmamba.scoring.scorer import Scorer
from qmamba.scoring.stream import as_tensor, is_out_of_memory, located
from qmamba.scoring.vocabulary import Vocabulary

Reading: TypeAlias = Literal["pair", "levels"]
Step: TypeAlias = Callable[[Tensor | None], Tensor]
MAX_TOKENS = 256


class LanguageScorer(Scorer):
    """A scorer whose network reads and writes text.

    Its score is the share of "good" against "poor" among the next words, after it was asked to rate the image
    and has begun to answer (Q-Bench, ICLR 2024); or, with ``reading = "levels"``, the mean of five levels.
    Beside that it answers questions: greedily, so that the same image and question have the same answer.

    Get one from `load`. Each image is read by itself: an answer does not depend on the others of a batch.

    Args:
        network: with words, as `create_model` builds it. It is frozen in place.
        config: as for `Scorer`.
        vocabulary: its tokenizers.

    Attributes:
        reading: how a score is read: "pair" for good and poor, "levels" for excellent, good, fair, poor, bad.

    Raises:
        CapabilityError: the network knows no words.
        CheckpointError: a word of the scale is not one token.
    """

    one_at_a_time = True  # a large network's activations are large, too

    def __init__(self, network: nn.Module, config: ModelConfig, vocabulary: Vocabulary) -> None:
        require(network, Converses, "answers")
        super().__init__(network, config)
        self.vocabulary = vocabulary
        self.reading: Reading = "pair"
        dialogue = vocabulary.dialogue
        self._words: dict[Reading, tuple[str, ...]] = {
            "pair": (dialogue.good, dialogue.poor),
            "levels": dialogue.levels,
        }
        self._tokens = {
            reading: [vocabulary.single(word) for word in words] for reading, words in self._words.items()
        }

    @classmethod
    def of(cls, network: nn.Module, config: ModelConfig, fetch: Fetch) -> LanguageScorer:
        """Return a scorer with the tokenizers that a config names.

        Raises:
            BackendError, CheckpointError, HubError: as `qmamba.checkpoints.tokenizers.load_tokenizers`.
        """
        able = require(network, Converses, "answers")
        tokenizers = load_tokenizers(config.tokenizers, fetch)
        config = config.replace(tokenizers=pin_cached(config.tokenizers, fetch))
        return cls(network, config, Vocabulary(tokenizers, able.dialogue, able))

    # Scores

    def _rater(self, chosen: Loaded | None) -> Callable[[Tensor], Tensor]:
        if self.reading not in self._words:
            known = ", ".join(map(repr, self._words))
            raise ArgumentError(f"reading must be one of {known}, got {self.reading!r}")
        return lambda images: _raw(self._logits(images, self.reading))

    def _logits(self, images: Tensor, reading: Reading) -> Tensor:
        """Return the logits (N, words) float32 of the words of a scale, for normalised images."""
        dialogue = self.vocabulary.dialogue
        step = self._reader(images, dialogue.score_question, dialogue.score_start)
        return step(None)[:, self._tokens[reading]].to(torch.float32)

    def _reader(self, images: Tensor, question: str, start: str = "") -> Step:
        """Return a function that continues a text, the same for each of N images."""
        count = len(images)
        tokens = self.vocabulary.prompt(question, start).expand(count, -1)  # (N, L)
        ids, mask = self.vocabulary.instructions([question.strip()] * count)
        able = require(self.network, Converses, "answers")
        place = images.device
        return able.continued(
            images, tokens.to(place), instructions=ids.to(place), instruction_mask=mask.to(place),
            owners=torch.arange(count, device=place),
        )  # fmt: skip

    def level_shares(self, image: Any, *, max_pixels: int | None = None) -> Mapping[str, float]:
        """Return the shares of excellent, good, fair, poor and bad among these five words, which sum to 1.

        Raises:
            ImageError: the image cannot be read.
        """
        logits = self._whole(image, lambda images: self._logits(images, "levels"), max_pixels)
        names = [word.strip() for word in self._words["levels"]]
        return dict(zip(names, logits[0].softmax(dim=0).tolist(), strict=True))

    # Words

    def answer(
        self,
        images: Any,
        question: str,
        *,
        max_tokens: int = MAX_TOKENS,
        seconds: float | None = None,
        on_error: str = "raise",
        max_pixels: int | None = None,
    ) -> Any:
        """Answer a question about one image, or about each of a sequence.

        Args:
            images: as for `Scorer.score`.
            question: of any length that leaves room for an answer.
            max_tokens: maximum length of an answer; it is cut there.
            seconds: maximum time for an answer, from when its image is decoded; it is cut there.
            on_error: "raise", or "none" to answer what can be answered and give None for the rest.
            max_pixels: as for `Scorer.score`.

        Returns:
            Text for a single image, a list for a sequence.

        Raises:
            ImageError: with on_error="raise", at the first image that cannot be read, with its index.
            ArgumentError: an option of a wrong type or out of range, or a protocol other than "whole".
        """
        if on_error not in ("raise", "none"):
            raise ArgumentError(f'on_error must be "raise" or "none", got {on_error!r}')
        limit = self._check(question, max_tokens, seconds, max_pixels)
        single = iterate(images)[1]

        def work(image: Decoded) -> str:
            return "".join(self._pieces(image, question, max_tokens, seconds, limit))

        found: list[str | None] = []
        for index, result in enumerate(self.each(images, work, max_pixels=max_pixels)):
            if isinstance(result, ImageError):
                if on_error == "raise":
                    raise result if single else located(result, index, as_tensor([]))
                found.append(None)
            else:
                found.append(result)
        return found[0] if single else found

    def stream(
        self,
        image: Any,
        question: str,
        *,
        max_tokens: int = MAX_TOKENS,
        seconds: float | None = None,
        max_pixels: int | None = None,
    ) -> Iterator[str]:
        """Yield the answer to a question about an image piece by piece; arguments as for `answer`."""
        limit = self._check(question, max_tokens, seconds, max_pixels)
        return self._pieces(self.decoded(image, limit), question, max_tokens, seconds, limit)

    def describe(self, images: Any, **options: Any) -> Any:
        """Describe the quality of one image, or of each of a sequence; options as for `answer`."""
        return self.answer(images, self.vocabulary.dialogue.description, **options)

    def choose(self, image: Any, question: str, candidates: Sequence[str], **options: Any) -> str | None:
        """Return which of 2 to 26 candidates answers a question; None where the answer names none.

        Args:
            image: one image.
            question: about it.
            candidates: possible answers. The network is asked for a letter, and only an answer that begins
                with one counts.
            options: as for `answer`.

        Raises:
            ArgumentError: fewer or more candidates, or one that is no text.
        """
        if isinstance(candidates, str) or not 2 <= len(candidates) <= MAX_CHOICES:
            raise ArgumentError(f"candidates must list 2 to {MAX_CHOICES} answers, got {candidates!r}")
        if any(not isinstance(each, str) or not each.strip() for each in candidates):
            raise ArgumentError(f"candidates must be text, got {list(candidates)!r}")
        asked = self.vocabulary.dialogue.choices(question, candidates)
        index = chosen(self.answer(image, asked, **{"max_tokens": 8, **options}), len(candidates))
        return None if index is None else candidates[index]

    def _check(self, question: str, max_tokens: int, seconds: float | None, max_pixels: int | None) -> int:
        if type(max_tokens) is not int or max_tokens < 1:
            raise ArgumentError(f"max_tokens must be an integer of at least 1, got {max_tokens!r}")
        if seconds is not None and not seconds > 0:
            raise ArgumentError(f"seconds must be above 0, got {seconds!r}")
        if self.protocol.kind != "whole":
            raise ArgumentError(
                f'questions are about whole images, got protocol {self.protocol.kind!r}; load with "whole"'
            )
        self.vocabulary.prompt(question)
        return pixel_limit(1, max_pixels)

    def _whole(self, image: Any, work: Callable[[Tensor], Any], max_pixels: int | None) -> Any:
        """Return what a function returns for a whole image, normalised (1, 3, S, S)."""
        limit = pixel_limit(1, max_pixels)
        found = image if isinstance(image, Decoded) else self.decoded(image, limit)
        size = (found.height, found.width)
        with closing(self.look(work, found.pixels, found.name, size=size, max_pixels=limit)) as looked:  # type: ignore[type-var]
            return next(looked)[1]

    def _pieces(
        self, image: Decoded, question: str, max_tokens: int, seconds: float | None, limit: int
    ) -> Iterator[str]:
        end = None if seconds is None else time.monotonic() + seconds
        step: Step = self._whole(image, lambda images: self._reader(images, question), limit)
        room = self.vocabulary.text_tokens - self.vocabulary.prompt(question).shape[1]
        return self.vocabulary.pieces(self._written(step, image.name, min(max_tokens, room), end))

    def _written(self, step: Step, name: str, max_tokens: int, end: float | None) -> Iterator[int]:
        """Yield the likeliest tokens, one after the other, until the answer ends or a limit is reached."""
        device = self._weight().device
        token: Tensor | None = None
        for _ in range(max_tokens):
            try:
                with torch.inference_mode(), without_autocast(device):
                    token = step(token).argmax(dim=-1, keepdim=True)  # (1, 1)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise ImageError(f"{name}: not enough memory on {device} to answer; ask on the CPU") from None
            found = int(token)
            if found == self.vocabulary.stop:
                return
            yield found
            if end is not None and time.monotonic() > end:
                return


def _raw(logits: Tensor) -> Tensor:
    """Return raw quality (N,) of logits of words (N, W) from the best to the worst.

    It is the log-odds of the mean level, with the levels at even distances from 1 to 0. So the sigmoid of a
    calibration that is not fitted gives the mean level itself; of two words it is the share of the first.
    """
    if logits.shape[1] == 2:
        return logits[:, 0] - logits[:, 1]
    levels = torch.linspace(1, 0, logits.shape[1], device=logits.device, dtype=logits.dtype)
    mean = logits.softmax(dim=1) @ levels
    return torch.logit(mean, eps=1e-6)


ForkingPickler.register(LanguageScorer, reduce_to_one_buffer)
