"""The training loop: `fit` trains any `Task`, on one or several processes, and resumes it."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import BackendError, RecipeError
from .optimisers import LR_SCALE, make_optimisers
from .processes import MAX_PROCESSES, Processes, accelerated, joined, launched, random_state_kept
from .recipe import Optimisation
from .state import LOG, check_folder, load_state, save_state, shorten_log
from .task import Task
from .tracking import Tracker, tracked

Report = Callable[[dict[str, Any]], None]
B = TypeVar("B")


def fit(
    task: Task[Any],
    recipe: Optimisation,
    out: str | Path,
    *,
    processes: int = 1,
    device: str | torch.device | None = "cpu",
    resume: bool = True,
    tracker: Tracker | None = None,
    report: Report | None = None,
) -> Path:
    """Train a task to its end, or resume it, and return the path of what it wrote.

    Every batch and every random number of a step depends on the seed, the step and the rank alone, and the
    state is replaced as a whole: a run that was interrupted anywhere ends with the bits it would have had.

    Args:
        task: modules, batches, losses and validation. It stays as it is: every process works on a copy.
        recipe: optimiser, weight decay, clipping, running mean, precision, accumulation, seed.
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and the task's results.
        processes: CPU processes that share every batch; they are started here. Under `accelerate launch`
            the processes are the launched ones.
        device: of the network; None for accelerate's choice.
        resume: resume from ``out/state.pt`` if there is one; otherwise such a folder is refused.
        tracker: where losses are logged to as well.
        report: called by the first process with ``{"step", "steps", "lr", "loss", …}`` after every step, and
            with ``{"step", …}`` and what validation found. An exception that it raises ends the run; the
            state of that very step is saved first.

    Raises:
        RecipeError: accelerate is not installed, ``out`` holds another run, the recipe's numbers cannot be
            shared by the processes, or the training has diverged.
        BackendError: the device cannot be used here, or a process could not be started.
    """
    out = Path(out)
    place = None if device is None else torch.device(check_device(device))
    _check_processes(processes, task.shared, place)
    check_folder(out, resume)
    arguments = (task, recipe, out, place)
    with random_state_kept(), joined(processes, _work, arguments):
        return _work(*arguments, tracker=tracker, report=report)


def _work(
    task: Task[Any],
    recipe: Optimisation,
    out: Path,
    device: torch.device | None,
    tracker: Tracker | None = None,
    report: Report | None = None,
) -> Path:
    kind = None if tracker is None else tracker.kind
    with accelerated(device, recipe.precision, tracker=kind, folder=out) as processes:
        run = Run(copy.copy(task), recipe, out, processes, report)
        run.restore()
        ended = run.validated == run.step and run.task.ended(run)
        if ended and (result := run.task.finished(run)) is not None:
            return result
        if not ended and run.task.steps:
            with nullcontext() if tracker is None else tracked(processes, tracker, resumed=run.step > 0):
                _loop(run)
        return run.task.finish(run)


def _loop(run: Run) -> None:
    """Take steps until the task has ended; log, report and save on the way."""
    task = run.task
    if run.is_first:
        shorten_log(run.out, run.step)
    if run.validated != run.step:  # at the start, and after an interruption between a step and its validation
        run.validate()
        if task.ended(run):
            run.save()
    batches = iter(task.batches(run))
    while not task.ended(run):
        began, lr = time.monotonic(), task.lr_at(run.step)
        losses = run.learn(batches, lr)
        seconds = round(time.monotonic() - began, 3)
        run.tell({"step": run.step, "steps": task.steps, "lr": lr, **losses, "seconds": seconds})
        run.validate()
        if run.step % run.recipe.save_every == 0 or task.ended(run):
            run.save()


class Run:
    """A training in this process: what changes from step to step.

    Attributes:
        task: what is trained, set up.
        recipe: how.
        out: folder of the run.
        processes: those that train together.
        step: number of steps taken.
        validated: step of the last validation; -1 before the first.
    """

    def __init__(
        self,
        task: Task[Any],
        recipe: Optimisation,
        out: Path,
        processes: Processes,
        report: Report | None = None,
    ) -> None:
        self.task, self.recipe, self.out, self.processes, self.report = task, recipe, out, processes, report
        self.step, self.validated = 0, -1
        torch.manual_seed(recipe.seed)
        task.setup(processes)
        task.network.train()
        self._mean = copy.deepcopy(task.network).eval().requires_grad_(False)
        self.optimisers = [
            processes.accelerator.prepare_optimizer(optimiser, device_placement=False)
            for optimiser in make_optimisers(task.network, task.heads, recipe)
        ]

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.processes.is_first

    @property
    def averaged(self) -> nn.Module:
        """The network with the weights to keep, frozen and in evaluation mode: their running mean."""
        if self.recipe.ema == 0:
            self._mean.load_state_dict(self.task.network.state_dict())
        return self._mean

    def learn(self, batches: Iterator[B], lr: float) -> dict[str, float]:
        """Take one step of the optimiser; return the losses of this process, means over accumulated parts."""
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        trained: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        for group in groups:
            group["lr"] = lr * group.get(LR_SCALE, 1.0)
        for p in trained:
            p.grad = None
        means: dict[str, float] = {}
        parts = self.recipe.accumulate
        for part, batch in enumerate(islice(batches, parts)):
            place = self.step * parts + part
            torch.manual_seed((self.recipe.seed * 1_000_003 + place) * 64 + self.processes.rank)  # drop-path
            losses = self.task.losses(batch, self)
            if not torch.isfinite(losses["loss"]):
                raise RecipeError(
                    f"training has diverged at step {self.step + 1}; lower lr or clip in the recipe"
                )
            self.processes.accelerator.backward(losses["loss"] / parts)
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + loss.item() / parts
        self._update(trained)
        return {name: round(loss, 6) for name, loss in means.items()}

    def _update(self, trained: list[nn.Parameter]) -> None:
        """Average gradients over the processes, clip them, and change the weights and their mean."""
        for p in trained:
            if p.grad is None:  # this process's part of the batch lacked the loss that reaches it
                p.grad = torch.zeros_like(p)
        self.processes.average_([p.grad for p in trained if p.grad is not None])
        self.processes.average_(_batch_statistics(self.task.network))
        if self.recipe.precision == "float16":
            self.processes.accelerator.unscale_gradients()
        if self.recipe.clip > 0:
            nn.utils.clip_grad_norm_(self.task.network.parameters(), self.recipe.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self._follow()
        self.step += 1

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the running mean towards the weights; early on, faster than the recipe's decay says."""
        if self.recipe.ema == 0:
            return
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        means: list[Tensor] = list(self._mean.parameters())
        weights: list[Tensor] = list(self.task.network.parameters())
        torch._foreach_lerp_(means, weights, 1 - decay)
        for mean, buffer in zip(self._mean.buffers(), self.task.network.buffers(), strict=True):
            mean.copy_(buffer)

    def validate(self) -> None:
        """Validate, and log and report what was found."""
        found = self.task.validate(self)
        self.validated = self.step
        if found and self.step:
            self.tell({"step": self.step, **found})

    def tell(self, event: dict[str, Any]) -> None:
        """Log an event and report it, in the first process."""
        if not self.is_first:
            return
        with (self.out / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(event) + "\n")
        values = {name: value for name, value in event.items() if name not in ("step", "steps", "seconds")}
        self.processes.accelerator.log(values, step=event["step"])
        if self.report is not None:
            try:
                self.report(event)
            except BaseException:  # the caller may stop the run, for example by Ctrl-C: no step is lost
                self.save()
                raise

    def save(self) -> None:
        """Write the state, in the first process."""
        if not self.is_first or not self.task.resumable:
            return
        scaler = self.processes.accelerator.scaler
        save_state(
            self.out,
            {
                "fingerprint": self._fingerprint(), "step": self.step, "validated": self.validated,
                "network": self.task.network.state_dict(), "heads": self.task.heads.state_dict(),
                "mean": {} if self.recipe.ema == 0 else self._mean.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "scaler": {} if scaler is None else scaler.state_dict(), "task": self.task.state(),
            },
        )  # fmt: skip

    def restore(self) -> None:
        """Resume from the state in the folder, if there is one."""
        state = load_state(self.out, self._fingerprint(), self.processes.device)
        if state is None:
            return
        self.step, self.validated = state["step"], state["validated"]
        self.task.network.load_state_dict(state["network"])
        self.task.heads.load_state_dict(state["heads"])
        if self.recipe.ema > 0:
            self._mean.load_state_dict(state["mean"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        if self.processes.accelerator.scaler is not None:
            self.processes.accelerator.scaler.load_state_dict(state["scaler"])
        self.task.restore(state["task"])

    def _fingerprint(self) -> str:
        return json.dumps(self.task.fingerprint(), sort_keys=True)


def _batch_statistics(network: nn.Module) -> list[Tensor]:
    """Return the running means and variances that this step has changed."""
    return [
        statistic
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]


def check_device(device: str | torch.device) -> str | torch.device:
    """Return the device.

    Raises:
        BackendError: it cannot be used here.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'") from error
    return device


def _check_processes(processes: int, shared: dict[str, int], device: torch.device | None) -> None:
    if not 1 <= processes <= MAX_PROCESSES:
        raise RecipeError(f"processes must be 1 to {MAX_PROCESSES}, got {processes}")
    if processes > 1 and (launched() > 1 or device is None or device.type != "cpu"):
        raise RecipeError(
            "processes are for training on the CPU; start several for GPUs by `accelerate launch`, and leave "
            "processes at 1"
        )
    total = processes * launched()
    if any(number % total for number in shared.values()):
        named = " and ".join(f"{name} ({number})" for name, number in shared.items())
        raise RecipeError(f"{named} must divide by the number of processes ({total})")
