"""Recipes of networks that answer in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ...errors import RecipeError
from ...models.registry import BaseWeights, TokenizerFile
from ..recipe import Optimisation
from ..schedule import warmup_cosine


@dataclass(frozen=True, kw_only=True)
class WordsRecipe(Optimisation):
    """Training on conversations about photographs.

    Attributes:
        name: of the model that comes out.
        stage: 1 for LoRA, 2 for the visual prompt that follows the instruction.
        arch, overrides: of ``create_model``; stage 2 takes them from the checkpoint of stage 1, and then
            these.
        epochs: how often each conversation is learned; the last steps may lack some.
        batch: conversations per step.
        lr: peak learning rate, reached by a linear warm-up over ``warmup`` of all steps, then a cosine to
            zero. The projector's is a tenth.
        length: maximum number of tokens of a conversation, with those of the image; longer ones are cut.
        checkpointing: whether activations are computed again in the backward pass, for less memory.
        bases, starts, tokenizers: files on the Hub, in place of the architecture's.
        trained_on: names of the data, for the checkpoint.
        dtype: floating type that the checkpoint is stored in.
        licence, limits: for the model card.
    """

    name: str
    stage: int
    arch: str = "q-adapt"
    overrides: dict[str, Any] = field(default_factory=dict)
    epochs: int = 1
    batch: int = 32
    lr: float = 2e-4
    warmup: float = 0.03
    weight_decay: float = 0.0
    precision: str = "bfloat16"
    length: int = 2048
    checkpointing: bool = True
    bases: tuple[BaseWeights, ...] = ()
    starts: tuple[BaseWeights, ...] = ()
    tokenizers: tuple[TokenizerFile, ...] = ()
    trained_on: tuple[str, ...] = ("q-instruct",)
    dtype: str = "float16"
    licence: str = "unknown"
    limits: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in (1, 2):
            raise RecipeError(f"stage must be 1 or 2, got {self.stage}")
        self.at_least(epochs=1, batch=1, length=2)
        self.above_zero("lr")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"warmup must be at least 0 and below 1, got {self.warmup}")
        if self.batch % self.accumulate:
            raise RecipeError(
                f"batch must divide by accumulate, got {self.batch} and {self.accumulate}; change one of them"
            )
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise RecipeError(f"dtype must be float32, float16 or bfloat16, got {self.dtype!r}")
        if self.optimiser != "adamw":
            raise RecipeError(f"optimiser must be 'adamw' in this kind of recipe, got {self.optimiser!r}")

    def steps_for(self, conversations: int) -> int:
        """Return the number of optimiser steps."""
        return math.ceil(conversations * self.epochs / self.batch)

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a zero-based step."""
        return warmup_cosine(step, steps, self.lr, self.warmup)
