"""One training on Hugging Face accelerate: devices, processes, precision, accumulation, resumption."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...errors import RecipeError
from ...metrics import plcc, srcc
from ..loop import Report, shorten_log
from ..losses import pairwise_ranking, plcc_loss, smooth_l1
from .rater import Rater, protocol_of, rate_images
from .recipe import PaperRecipe
from .sets import Crops, RatedSet

TRACKERS = ("tensorboard", "trackio")
LOG = "log.jsonl"
VAL_IMAGES = 100  # of each set that a learning curve's SRCC is measured on, spread over its fold
_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_PART, _STATE = "state.part", "state-"


def make_accelerator(recipe: PaperRecipe, out: Path, *, cpu: bool = False, log: str | None = None) -> Any:
    """The ``Accelerator`` of a run: from ``accelerate launch``, or of this process alone.

    Args:
        recipe: its precision and accumulation.
        out: where a tracker writes, if it writes files.
        cpu: whether to leave accelerators alone.
        log: one of ``TRACKERS``, or None.

    Raises:
        RecipeError: accelerate, or the tracker's package, is not installed.
    """
    try:
        from accelerate import Accelerator, DataLoaderConfiguration
        from accelerate.state import AcceleratorState
        from accelerate.utils import is_tensorboard_available
    except ImportError as error:
        raise RecipeError("this needs accelerate: pip install 'qmamba[train]'") from error
    if log == "tensorboard" and not is_tensorboard_available():
        raise RecipeError("logging to TensorBoard needs its package: pip install 'qmamba[tensorboard]'")
    if log == "trackio" and not _has_trackio():
        raise RecipeError("logging to trackio needs its package: pip install 'qmamba[trackio]'")
    # Settings are the process's own in accelerate; another recipe may have others. Processes stay joined.
    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision=_PRECISION[recipe.precision],
            gradient_accumulation_steps=recipe.accumulate,
            log_with=log,
            project_dir=out,
            # Each process takes its part of a recipe's batch: their number does not change what is learnt.
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except ValueError as error:  # float16 on a processor, say
        reason = str(error).splitlines()[0]
        raise RecipeError(f"accelerate cannot train in {recipe.precision} here: {reason}") from error


def is_first() -> bool:
    """Whether this process is the first of those that were launched together, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _has_trackio() -> bool:
    from importlib.util import find_spec

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return find_spec("trackio") is not None and "trackio" in LOGGER_TYPE_TO_CLASS


@contextmanager
def tracked(accelerator: Any, name: str, title: str, out: Path) -> Iterator[None]:
    """A run under this name for the accelerator's tracker, if it has one; goes on where ``out`` has a state.

    What trackio prints belongs to those who watch, and stdout to those who read results.
    """
    resume = "allow" if _states(out) else "never"
    with redirect_stdout(sys.stderr):
        accelerator.init_trackers(
            "qmamba", config={"run": title}, init_kwargs={"trackio": {"name": name, "resume": resume}}
        )
    try:
        yield
    finally:
        with redirect_stdout(sys.stderr):
            for tracker in accelerator.trackers:
                tracker.finish()
                if tracker.name == "trackio" and accelerator.is_main_process:
                    import trackio

                    trackio.finish()  # otherwise it does so, and prints, when the process ends


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random state of Python, numpy and torch as it was: accelerate restores states of its own."""
    ours, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


def fit(
    rater: Rater,
    sets: list[RatedSet],
    recipe: PaperRecipe,
    seed: int,
    lr: float,
    accelerator: Any,
    out: Path,
    *,
    workers: int = 0,
    most_steps: int | None = None,
    report: Report | None = None,
) -> int:
    """Train on the sets' training folds, from the last state in ``out`` if there is one.

    Every step's crops and drop-path depend on the seed and the step alone, and a state is moved into its
    place as a whole, so a run that was ended at any moment ends with the numbers it would have had.

    Args:
        rater: what is trained; it is moved to the accelerator's device.
        lr: peak learning rate.
        out: folder for states and ``log.jsonl``.
        workers: processes that make crops, for each training process.
        most_steps: end after so many.
        report: called by the first process with ``{"step", "steps", "lr", "loss", …}`` after each step, and
            ``{"step", "val_srcc", "val_plcc"}`` after epochs where there are images of the fold "val". What
            it raises ends the run; with one process its state is saved first.

    Returns:
        The number of steps of the training.

    Raises:
        RecipeError: it has diverged, the batch cannot be shared, or a state is damaged.
        ImageError: an image cannot be decoded.
    """
    crops = Crops(sets, recipe, seed)
    _check_shares(crops, recipe, accelerator.num_processes)
    steps = crops.steps if most_steps is None else min(most_steps, crops.steps)
    optimiser = torch.optim.AdamW(rater.groups(recipe.weight_decay), lr=lr)
    wrapped, optimiser = accelerator.prepare(rater, optimiser)
    first = _restore(accelerator, out)
    if accelerator.is_main_process:
        shorten_log(out, first)
    tell = partial(_tell, accelerator, out, report)
    wrapped.train()
    micro = _micro_batches(crops, recipe, accelerator, first, steps, workers)
    for step in range(first, steps):
        rate = recipe.lr_at(step, crops.epoch_steps, lr)
        losses = _step(wrapped, optimiser, micro, recipe, seed, step, rate, accelerator)
        tell({"step": step + 1, "steps": steps, "lr": rate, **losses})
        if (step + 1) % recipe.save_every == 0 or step + 1 == crops.steps:  # testing takes its time, too
            _save(accelerator, out, step + 1)
        if (step + 1) % crops.epoch_steps == 0 and (found := _validate(rater, sets, recipe, accelerator)):
            tell({"step": step + 1, **found})
    return steps


def _tell(accelerator: Any, out: Path, report: Report | None, event: dict[str, Any]) -> None:
    """Write an event into the logs and tell whoever watches; the first process does."""
    if not accelerator.is_main_process:
        return
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
    accelerator.log({k: v for k, v in event.items() if k not in ("step", "steps")}, step=event["step"])
    if report is not None:
        try:
            report(event)
        except BaseException:  # whoever watches may stop the run, with Ctrl-C say: then no step is lost
            if accelerator.num_processes == 1:
                _save(accelerator, out, event["step"])
            raise


def _check_shares(crops: Crops, recipe: PaperRecipe, processes: int) -> None:
    if crops.batch // recipe.accumulate % processes:
        raise RecipeError(
            f"a batch of {crops.batch} crops in {recipe.accumulate} parts cannot be shared by {processes} "
            "processes: choose another batch in the recipe, or another number of processes"
        )


def _micro_batches(
    crops: Crops, recipe: PaperRecipe, accelerator: Any, first: int, steps: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's part of each part of each batch, from a step on."""
    loader = DataLoader(
        crops,
        batch_size=crops.batch // recipe.accumulate,
        sampler=range(first * crops.batch, steps * crops.batch),
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # none of the process's own
    )
    return iter(accelerator.prepare_data_loader(loader))


def _step(
    wrapped: Any,
    optimiser: Any,
    micro: Iterator[tuple[Tensor, Tensor]],
    recipe: PaperRecipe,
    seed: int,
    step: int,
    lr: float,
    accelerator: Any,
) -> dict[str, float]:
    """One step of the optimiser; the losses of this process, as means over the batch's parts."""
    told: dict[str, float] = {}
    for group in optimiser.param_groups:
        group["lr"] = lr
    for part in range(recipe.accumulate):
        pixels, mos = next(micro)
        with accelerator.accumulate(wrapped):
            place = step * recipe.accumulate + part
            torch.manual_seed((seed * 1_000_003 + place) * 64 + accelerator.process_index)  # drop-path
            losses = losses_of(wrapped(pixels).float(), mos.float(), recipe)
            if not torch.isfinite(losses["loss"]):
                raise RecipeError(f"training has diverged at step {step + 1}: lower lr or clip in the recipe")
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(
                    [p for g in optimiser.param_groups for p in g["params"]], recipe.clip
                )
            optimiser.step()
            optimiser.zero_grad()
        for name, loss in losses.items():
            told[name] = told.get(name, 0.0) + loss.item() / recipe.accumulate
    return {name: round(loss, 6) for name, loss in told.items()}


def losses_of(raw: Tensor, mos: Tensor, recipe: PaperRecipe) -> dict[str, Tensor]:
    """The recipe's losses of raw quality (n,) by name, and their weighted sum as ``loss``."""
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "smooth-l1": lambda p, m: smooth_l1(p, m, recipe.beta),
        "plcc": plcc_loss,
        "ranking": pairwise_ranking,
    }
    parts = {name: kinds[name](raw, mos) for name in recipe.losses}
    total = torch.stack([recipe.losses[name] * loss for name, loss in parts.items()]).sum()
    return {"loss": total, **parts}


def _validate(
    rater: Rater, sets: list[RatedSet], recipe: PaperRecipe, accelerator: Any
) -> dict[str, float] | None:
    """Mean SRCC and PLCC on some images of the sets' folds "val"; None where there are none."""
    found = []
    for each in sets:
        images = list(each.folds.get("val", ()))
        images = images[:: -(-len(images) // VAL_IMAGES) or 1]
        if len(images) > 1:
            raw = rate_images(rater, images, each, protocol_of(recipe), accelerator).mean(dim=1)
            mos = [r.mos for r in images]
            found.append((srcc(raw, mos), plcc(raw, mos)))
    if not found:
        return None
    means = [round(sum(column) / len(found), 4) for column in zip(*found, strict=True)]
    return {"val_srcc": means[0], "val_plcc": means[1]}


def _save(accelerator: Any, out: Path, step: int) -> None:
    """Write a state beside its place, move it there, and only then delete the one before."""
    part, place = out / _PART, out / f"{_STATE}{step:09d}"
    if accelerator.is_main_process and part.exists():
        shutil.rmtree(part)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not place.exists():
        part.rename(place)
        for older in _states(out):
            if older != place:
                shutil.rmtree(older)
    accelerator.wait_for_everyone()


def _restore(accelerator: Any, out: Path) -> int:
    """Go on from the last state in the folder; its step, or 0 where there is none."""
    states = _states(out)
    if not states:
        return 0
    try:
        accelerator.load_state(str(states[-1]))
    except Exception as error:  # of safetensors, pickle, the file system
        raise RecipeError(f"{states[-1]} is damaged, or of another run: delete it") from error
    return int(states[-1].name.removeprefix(_STATE))


def _states(out: Path) -> list[Path]:
    """Folders of states, the last one last."""
    return sorted(out.glob(f"{_STATE}*"))


def forget_states(out: Path) -> None:
    """Delete what a run would have gone on from."""
    for folder in (*_states(out), out / _PART):
        shutil.rmtree(folder, ignore_errors=True)
