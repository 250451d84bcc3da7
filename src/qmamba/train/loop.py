"""What every training has in common: steps, learning rate, running mean of the weights, state on disk."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..checkpoints import load_checkpoint
from ..checkpoints.locate import resolve
from ..errors import BackendError, QMambaError, RecipeError
from ..images import Preprocessing
from ..models import create_model
from ..models.qmamba import QMamba
from .parallel import Team
from .recipe import Plan
from .teacher import ARCH as TEACHER
from .teacher import Lesson, Trainee

Report = Callable[[dict[str, Any]], None]
MAX_PROCESSES = 64  # seeds of batches leave room for so many
SAVE_EVERY = 100  # steps between two states that a run can go on from
B = TypeVar("B")


class Looks(NamedTuple):
    """Raw quality (B,), features per stage (B, C, H, W), and the teacher's features and scores, if any."""

    raw: Tensor
    features: list[Tensor]
    targets: list[Tensor]
    scores: Tensor | None


class Learner(ABC, Generic[B]):
    """What changes while training: weights, their running mean, the optimiser, the step.

    Args:
        plan: the recipe.
        device: of the network.
        init: weights to start from; random ones without.
    """

    def __init__(self, plan: Plan, device: torch.device, init: Mapping[str, Tensor] | None = None) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.device, self.step = plan, device, 0
        self.network = self.make_network().to(device).train()
        if init is not None:
            self.network.load_state_dict(init)
        elif isinstance(self.network, QMamba):
            fresh_start(self.network)
        self.mean_network = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.heads = self.make_heads().to(device)
        self.optimisers = _optimisers(self.network, self.heads, plan)
        self._mean, self._std = (255 * t for t in Preprocessing().tensors(device))

    def make_network(self) -> QMamba | Trainee | Adapter:
        """What is trained."""
        return _create(self.plan)

    def make_heads(self) -> nn.Module:
        """Modules that train along with the network and are not kept."""
        return nn.ModuleList()

    @abstractmethod
    def losses(self, batch: B) -> dict[str, Tensor]:
        """All losses of a batch by name, and their weighted sum as ``loss``."""

    def look_at(self, pixels: Tensor, teacher: nn.Module | None = None) -> Looks:
        """What the network, and a teacher if there is one, make of pixels (B, 3, S, S) in 0…255.

        In the recipe's precision; float32 comes out.
        """
        pixels = pixels.to(self.device).float()
        with self.precision():
            assert not isinstance(self.network, Adapter)
            raw, features = self.network.forward_with_features((pixels - self._mean) / self._std)
            lesson = Lesson([], None) if teacher is None else teacher(pixels / 255)
        scores = None if lesson.scores is None else lesson.scores.float()
        return Looks(
            raw[:, 0].float(), [f.float() for f in features], [t.float() for t in lesson.features], scores
        )

    def precision(self) -> torch.autocast:
        """A context in which products are made in the recipe's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16")

    def lr(self) -> float:
        """Linear warm-up, a plateau, and a cosine to zero over the last part."""
        p, progress = self.plan, (self.step + 1) / self.plan.steps
        if progress <= p.warmup:
            return p.lr * progress / p.warmup
        cooldown = 1 - p.warmup if p.cooldown is None else p.cooldown
        if progress <= 1 - cooldown:
            return p.lr
        return p.lr * 0.5 * (1 + math.cos(math.pi * (progress - (1 - cooldown)) / cooldown))

    def learn(self, batch: B, team: Team) -> dict[str, float]:
        """One step of the optimiser; returns the losses of this process."""
        torch.manual_seed((self.plan.seed * 1_000_003 + self.step) * 64 + team.rank)  # drop-path
        losses = self.losses(batch)
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        trained = [p for group in groups for p in group["params"] if p.requires_grad]
        for p in trained:
            p.grad = None
        if not torch.isfinite(losses["loss"]):
            raise RecipeError(
                f"training has diverged at step {self.step + 1}: lower lr or clip in the recipe"
            )
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        for p in trained:
            if p.grad is None:  # a loss that this process's part of the batch did not have
                p.grad = torch.zeros_like(p)
        team.average_([p.grad for p in trained if p.grad is not None])
        nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
        for group in groups:
            group["lr"] = self.lr()
        for optimiser in self.optimisers:
            optimiser.step()
        self._follow()
        self.step += 1
        return {name: round(loss.item(), 5) for name, loss in losses.items()}

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        means, weights = self.mean_network.parameters(), self.network.parameters()
        torch._foreach_lerp_(list(means), list(weights), 1 - decay)

    def state(self) -> dict[str, Any]:
        """All that changes, as tensors and plain values."""
        return {
            "recipe": self._fingerprint(), "step": self.step,
            "network": self.network.state_dict(), "mean": self.mean_network.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers], "heads": self.heads.state_dict(),
        }  # fmt: skip

    def take(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.mean_network.load_state_dict(state["mean"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.heads.load_state_dict(state["heads"])

    def save(self, out: Path) -> None:
        """Write what :meth:`restore` reads."""
        torch.save(self.state(), out / "state.tmp")
        (out / "state.tmp").replace(out / "state.pt")  # never a half-written state

    def restore(self, out: Path) -> None:
        """Go on from the state in ``out``, if there is one."""
        if not (out / "state.pt").exists():
            return
        try:
            state = torch.load(out / "state.pt", map_location=self.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise RecipeError(f"{out / 'state.pt'} is damaged: choose another folder") from error
        if state["recipe"] != self._fingerprint():
            raise RecipeError(f"{out} holds a run of another recipe: choose another folder")
        self.take(state)

    def _fingerprint(self) -> str:
        return json.dumps(asdict(self.plan), sort_keys=True)


def run_steps(
    learner: Learner[B],
    batches: Iterable[B],
    out: Path,
    team: Team,
    report: Report | None,
    look: Callable[[], dict[str, Any] | None],
) -> None:
    """Learn from every batch, with a log, reports, and states on disk now and then.

    ``look`` is called after each step, by all processes; what it finds is told as well.
    """
    if team.rank == 0:
        shorten_log(out, learner.step)
    for batch in batches:
        began, lr = time.monotonic(), learner.lr()
        losses = learner.learn(batch, team)
        if team.rank == 0:
            losses["seconds"] = round(time.monotonic() - began, 3)
            event = {"step": learner.step, "steps": learner.plan.steps, "lr": lr, **losses}
            _tell(learner, out, report, event)
        found = look()
        if team.rank == 0:
            if found:
                _tell(learner, out, report, {"step": learner.step, **found})
            if learner.step % SAVE_EVERY == 0 or learner.step == learner.plan.steps:
                learner.save(out)


def made_ahead(make: Callable[[int], B], first: int, steps: int, workers: int = 1) -> Iterator[B]:
    """``make(step)`` for the steps from ``first`` to ``steps`` - 1, in order, made in threads beforehand."""
    with ThreadPoolExecutor(workers, thread_name_prefix="qmamba-batches") as pool:
        ahead: deque[Future[B]] = deque()
        for step in range(first, steps):
            ahead.append(pool.submit(make, step))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def batch_workers(device: torch.device) -> int:
    """Threads that make batches: one beside a processor that is busy anyway, most of them for a GPU."""
    return 1 if device.type == "cpu" else max(1, (os.cpu_count() or 2) - 2)


def start_from(name: str | Path, plan: Plan) -> dict[str, Tensor]:
    """The weights of a checkpoint, by any name that ``qmamba.load`` takes, for a recipe of its architecture.

    Raises:
        UnknownModelError, CheckpointError, HubError: there is no good checkpoint.
        RecipeError: it is of another architecture.
    """
    network, config = load_checkpoint(resolve(name))
    weights, wanted = dict(network.float().state_dict()), _create(plan).state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
        raise RecipeError(
            f"{name} holds a {config.arch} with {config.overrides or 'no overrides'}, "
            f"and the recipe is for {plan.arch} with {plan.overrides or 'none'}"
        )
    return weights


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder with an unfinished run that should not go on; make the folder."""
    if (out / "state.pt").exists() and not resume:
        raise RecipeError(f"{out} holds an unfinished run: resume it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)


def check_processes(processes: int, recipe: Plan, *shared: str) -> None:
    """Refuse a number of processes that the numbers of the recipe with these names cannot be shared by."""
    if not 1 <= processes <= MAX_PROCESSES:
        raise RecipeError(f"processes is 1 to {MAX_PROCESSES}, not {processes}")
    numbers = {name: getattr(recipe, name) for name in shared}
    if any(number % processes for number in numbers.values()):
        named = " and ".join(f"{name} ({number})" for name, number in numbers.items())
        raise RecipeError(f"{named} must divide by processes ({processes})")


def check_teacher(wanted: bool, teacher: str | Path | None) -> None:
    """Refuse a recipe that learns a teacher's scores without a teacher that rates."""
    if wanted and teacher is None:
        raise RecipeError("this recipe learns a teacher's scores: give the weights of one that rates")


def check_device(device: str | torch.device) -> None:
    """Raise BackendError for a device that cannot be used here."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'") from error


def _create(plan: Plan) -> QMamba | Trainee:
    if plan.arch == TEACHER:
        return Trainee()
    try:
        return cast(QMamba, create_model(plan.arch, **plan.overrides))
    except ValueError as error:
        if isinstance(error, QMambaError):
            raise
        raise RecipeError(f"the recipe's overrides do not fit: {error}") from error


def fresh_start(network: QMamba) -> None:
    """A start for short trainings from nothing.

    Linears are drawn with a deviation of fan_in^-½: 0.02 leaves the branches of a narrow network almost
    silent. The head gives one answer for all: random differences are best lowered by features that do not
    differ, and the network collapses into that.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    nn.init.zeros_(network.head.fc.weight)
    nn.init.constant_(network.head.fc.bias, 0.5)  # the middle of the MOS scale


def _optimisers(
    network: QMamba | Trainee | Adapter, heads: nn.Module, plan: Plan
) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices within the network and AdamW for the rest."""
    still = network.no_weight_decay()
    matrices: set[str] = set()
    if plan.optimiser == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise RecipeError(f"optimiser 'muon' needs torch 2.9 or later, and this is {torch.__version__}")
        linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        matrices = {f"{name}.weight" for name in linears if not name.startswith("head.")}
    decays: list[nn.Parameter] = []
    rests: list[nn.Parameter] = []
    turned: list[nn.Parameter] = []
    for name, p in network.named_parameters():
        (turned if name in matrices else rests if name in still else decays).append(p)
    groups = [
        {"params": decays, "weight_decay": plan.weight_decay},
        {"params": rests, "weight_decay": 0.0},
        {"params": list(heads.parameters()), "weight_decay": 0.0},
    ]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=plan.lr)]
    if turned:
        optimisers.append(
            torch.optim.Muon(
                turned, lr=plan.lr, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimisers


def _tell(learner: Learner[B], out: Path, report: Report | None, event: dict[str, Any]) -> None:
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(event) + "\n")
    if report is not None:
        try:
            report(event)
        except BaseException:  # whoever watches may stop the run, with Ctrl-C say: then no step is lost
            learner.save(out)
            raise


def shorten_log(out: Path, steps: int) -> None:
    """Take the steps out of the log that will be done again."""
    log = out / "log.jsonl"
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            kept += [line] * (json.loads(line)["step"] <= steps)
        except ValueError:  # the last line, half-written
            break
    log.write_text("".join(kept), encoding="utf-8")
