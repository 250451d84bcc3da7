"""Train a network that answers in words; the loop is the one of every training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...checkpoints.bases import fetcher
from ...checkpoints.tokenizers import load_tokenizers
from ...errors import RecipeError
from ...images import decode
from ...images.resizing import unit
from ...scoring.vocabulary import Vocabulary
from ..engine import Run, fit
from ..prefetch import batch_workers, made_ahead
from ..processes import Processes
from ..sampling import epoch_indices
from ..task import Task
from .conversations import Conversation, WordBatch, collated
from .network import Trained, make_network, read_start, write_checkpoint
from .recipe import WordsRecipe


def train_words(
    recipe: WordsRecipe,
    conversations: Sequence[Conversation],
    out: str | Path,
    *,
    init: str | Path | None = None,
    **options: Any,
) -> Path:
    """Train, and return the folder of the checkpoint, ``out/checkpoint``.

    Args:
        recipe: the stage and how it is trained.
        conversations: of :func:`read_conversations`.
        out: folder for the checkpoint, the log and the state to resume from.
        init: checkpoint of stage 1 for stage 2; for stage 1 one to continue from, by default none.
        options: ``processes``, ``device``, ``resume``, ``tracker`` and ``report`` of
            :func:`qmamba.train.fit`.

    Raises:
        RecipeError: see :func:`qmamba.train.fit`; stage 2 without a checkpoint of stage 1.
        BackendError: transformers or peft is not installed.
        HubError, CheckpointError: the base or a tokenizer is missing, or its digest differs.
        ImageError: a photograph cannot be decoded; the message names it.
    """
    return fit(WordsTask(recipe, conversations, init), recipe, out, **options)


class WordsTask(Task[WordBatch]):
    """Next-token loss on the answers of conversations.

    Args:
        recipe, conversations, init: see :func:`train_words`.
    """

    def __init__(
        self, recipe: WordsRecipe, conversations: Sequence[Conversation], init: str | Path | None = None
    ) -> None:
        if not conversations:
            raise RecipeError("there must be at least one conversation to learn from; got none")
        self.plan, self.conversations, self.init = recipe, list(conversations), init
        self.steps = recipe.steps_for(len(conversations))
        self.shared = {"batch / accumulate": recipe.batch // recipe.accumulate}

    def setup(self, processes: Processes) -> None:
        start = read_start(self.plan, self.init)
        self.began = "" if start is None else start[0].weights_sha256
        self.model, self.config = make_network(self.plan, start)
        self.vocabulary = Vocabulary(
            load_tokenizers(self.config.tokenizers, fetcher()), self.model.dialogue, self.model
        )
        self.model.to(processes.device)
        self.model.checkpointing = self.plan.checkpointing
        self.network, self.heads = Trained(self.model), nn.ModuleList()

    def fingerprint(self) -> dict[str, Any]:
        data = hashlib.sha256(repr([each.turns for each in self.conversations]).encode())
        names = hashlib.sha256(repr([each.path.name for each in self.conversations]).encode())
        recipe = {key: value for key, value in asdict(self.plan).items() if key != "save_every"}
        return {"recipe": recipe, "data": data.hexdigest(), "images": names.hexdigest(), "init": self.began}

    def lr_at(self, step: int) -> float:
        return self.plan.lr_at(step, self.steps)

    def batches(self, run: Run) -> Iterator[WordBatch]:
        parts, rank, ranks = self.plan.accumulate, run.processes.rank, run.processes.size

        def make(part: int) -> WordBatch:
            return self.make_batch(part, rank, ranks)

        return made_ahead(make, run.step * parts, self.steps * parts, batch_workers(run.processes.device))

    def make_batch(self, part: int, rank: int, ranks: int) -> WordBatch:
        """Return what one of the processes computes of a part of a step, counted over all steps."""
        number = self.plan.batch // self.plan.accumulate
        indices = epoch_indices(len(self.conversations), self.plan.seed, part * number, number)
        mine = [self.conversations[i] for i in indices[rank::ranks]]
        images = [self.config.preprocessing(unit(decode(each.path))[None])[0] for each in mine]
        return collated(images, mine, self.vocabulary, self.plan.length)

    def losses(self, batch: WordBatch, run: Run) -> dict[str, Tensor]:
        self.model.train()
        place = run.processes.device
        with run.processes.autocast():
            loss = self.model.loss(
                batch.images.to(place), batch.tokens.to(place), batch.mask.to(place), batch.labels.to(place),
                instructions=batch.instructions.tokens.to(place),
                instruction_mask=batch.instructions.mask.to(place), owners=batch.owners.to(place),
            )  # fmt: skip
        return {"loss": loss}

    def finished(self, run: Run) -> Path | None:
        checkpoint = run.out / "checkpoint"
        return checkpoint if (checkpoint / "config.json").exists() else None

    def finish(self, run: Run) -> Path:
        folder = run.out / "checkpoint"
        if run.is_first:
            averaged = run.averaged
            assert isinstance(averaged, Trained)
            training = {"recipe": asdict(self.plan), "steps": run.step}
            write_checkpoint(folder, self.model, averaged.tensors(), self.config.replace(training=training))
        return folder
