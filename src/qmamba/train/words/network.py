"""The networks of a training in words: what they start from, what is trained, and what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints import ModelConfig, default_config, save_checkpoint
from ...checkpoints.bases import base_tensors, fetcher, load_bases
from ...checkpoints.folder import read_stored
from ...checkpoints.locate import resolve
from ...errors import QMambaError, RecipeError
from ...models import create_model, get_architecture
from ...models.capabilities import LearnsWords, require
from ...models.registry import BaseWeights
from .recipe import WordsRecipe

Stored = tuple[ModelConfig, Mapping[str, Tensor]]


class Trained(nn.Module):
    """The parameters that are trained, of a network whose frozen part is neither copied nor saved.

    They are the very parameters of the network, under its names with "-" in place of ".".
    """

    def __init__(self, network: LearnsWords) -> None:
        super().__init__()
        for name, parameter in network.trained():
            self.register_parameter(name.replace(".", "-"), parameter)
        self._scales = {name.replace(".", "-"): scale for name, scale in network.lr_scales().items()}

    def no_weight_decay(self) -> set[str]:
        """Return the names of norms and biases."""
        return {name for name, p in self.named_parameters() if p.ndim <= 1}

    def lr_scales(self) -> dict[str, float]:
        """Return factors of the learning rate by name."""
        return self._scales

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by their names in the network."""
        return {name.replace("-", "."): p.detach() for name, p in self.named_parameters()}


def read_start(recipe: WordsRecipe, init: str | Path | None) -> Stored | None:
    """Return config and stored tensors of the checkpoint that a training starts from, None without one.

    Raises:
        RecipeError: stage 2 has nothing to start from, or it is of another architecture or a later stage.
        CheckpointError, HubError, UnknownModelError: it cannot be read.
    """
    if init is None:
        if recipe.stage == 2 and recipe.overrides.get("rank") != 0:
            raise RecipeError("stage 2 must start from a checkpoint of stage 1; give it as --init")
        return None
    config, state = read_stored(resolve(init))
    if config.arch != recipe.arch:
        raise RecipeError(f"{init} must be a {recipe.arch!r}, got a {config.arch!r}; start from another")
    if config.overrides.get("stage", 2) > recipe.stage:
        raise RecipeError(f"{init} is of a later stage than {recipe.stage}; start from one of stage 1")
    return config, state


def overrides_of(recipe: WordsRecipe, start: Stored | None) -> dict[str, Any]:
    """Return the keyword arguments of ``create_model``: those of the start, then the recipe's."""
    before = {} if start is None else start[0].overrides
    return {**before, **recipe.overrides, "stage": recipe.stage}


def config_of(network: nn.Module, recipe: WordsRecipe, start: Stored | None) -> ModelConfig:
    """Return the config of the checkpoint to write."""
    before = None if start is None else start[0]
    fields: dict[str, Any] = {}
    for key in ("bases", "tokenizers"):
        given = getattr(recipe, key) or (getattr(before, key) if before is not None else ())
        if given:
            fields[key] = given
    earlier = () if before is None else before.trained_on
    return default_config(
        network, recipe.name, licence=recipe.licence, limits=recipe.limits, dtype=recipe.dtype,
        trained_on=tuple(dict.fromkeys([*earlier, *recipe.trained_on])), **fields,
    )  # fmt: skip


def make_network(recipe: WordsRecipe, start: Stored | None) -> tuple[Any, ModelConfig]:
    """Build a network on the CPU: the frozen base in the precision of the training, the rest in float32.

    LoRA of an earlier stage is merged into the base. Everything random is drawn from torch's generator.

    Raises:
        RecipeError: overrides that the architecture does not have.
        HubError, CheckpointError: the base's files are missing, or their tensors do not fit the network.
    """
    dtype = torch.float32 if recipe.precision == "float32" else getattr(torch, recipe.precision)
    try:
        with torch.device("meta"):
            network = create_model(recipe.arch, **overrides_of(recipe, start))
    except ValueError as error:
        if isinstance(error, QMambaError):
            raise
        raise RecipeError(f"the recipe's overrides do not fit: {error}") from error
    able = require(network, LearnsWords, "training in words")
    able.draw()
    config, fetch = config_of(network, recipe, start), fetcher()
    bases = load_bases(network, config.bases, fetch, dtype=dtype, assign=True)
    starts = recipe.starts or get_architecture(recipe.arch).starts
    if recipe.stage == 2 and starts and (start is None or start[0].overrides.get("stage", 2) == 1):
        load_starts(network, starts)
    if start is not None:
        _take(network, start[1])
    for _, parameter in able.trained():
        parameter.data = parameter.data.float()
    if recipe.stage == 2:
        able.merge_lora()
    return network, config.replace(bases=bases)


def load_starts(network: Any, starts: Sequence[BaseWeights]) -> None:
    """Give a network what files hold of it, and leave the rest: a Q-Former, its norm and its queries."""
    names_of = get_architecture(str(network.arch)).names_of
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = base_tensors(starts, {}, fetcher(), optional=shapes, names_of=names_of)
    if not found:
        raise RecipeError(f"{starts[0].repo} holds no tensor to start from; name another file in starts")
    network.load_state_dict(found, strict=False)


def _take(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy stored tensors of an earlier training into a network."""
    own = network.state_dict()
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            raise RecipeError(f"the start has {name!r} of another shape than the network; keep its overrides")
        own[name].copy_(tensor)


def write_checkpoint(
    folder: Path, network: Any, trained: Mapping[str, Tensor], config: ModelConfig
) -> ModelConfig:
    """Write what a checkpoint stores of a network, with these values of what was trained.

    The base, which may have LoRA merged into it, is left out.
    """
    stored = get_architecture(config.arch).trained or (lambda name: True)
    state = {name: value for name, value in network.state_dict().items() if stored(name)}
    state = {name: trained.get(name, value).detach().float().cpu() for name, value in state.items()}
    with torch.device("meta"):
        skeleton = create_model(config.arch, **config.overrides)
    skeleton.load_state_dict(state, strict=False, assign=True)
    return save_checkpoint(folder, skeleton, config)
