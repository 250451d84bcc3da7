"""Adaptation: a trained model and rated photographs of another domain in, a small adapter out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, AdapterConfig, create, load_adapter, read_adapter_config, save_adapter
from ..adapters.folder import CONFIG_FILE
from ..checkpoints.hub import HUB_PREFIX
from ..checkpoints.locate import resolve
from ..data import Rated, rescaled
from ..metrics import evaluate, plcc
from ..scoring import Scorer, load
from .bank import Bank
from .calibrating import fit_calibration
from .engine import Report, Run, check_device, fit
from .estimate import in_words, seconds_left
from .folds import digest_of, split_folds
from .held_out import HeldOut, agreement, calibrated
from .losses import plcc_loss, smooth_l1
from .processes import Processes, random_state_kept
from .recipe import AdaptRecipe
from .sampling import permutation
from .schedule import warmup_cosine
from .task import Task

NAME = "adapted"
RESAMPLES = 1000
WARMUP = 0.05  # share of all steps
AGAINST = -0.3  # SRCC of the base below which ratings probably run the other way


def adapt(
    base: str | Path,
    ratings: Sequence[Rated],
    out: str | Path,
    *,
    method: str = "style-prompt",
    options: Mapping[str, Any] | None = None,
    recipe: AdaptRecipe | None = None,
    scale: tuple[float, float] | None = None,
    licence: str = "unknown",
    trained_on: Sequence[str] = (),
    device: str | torch.device = "cpu",
    resume: bool = True,
    report: Report | None = None,
) -> Path:
    """Train an adapter on rated photographs, calibrate it, and measure it before and after.

    The base is frozen: it gets no gradients, and no optimiser holds it. What precedes the adapter's first
    change is computed once for a fixed bank of crops. SRCC of the scores on the held-out part, by the
    base's own protocol, decides when to stop and which weights to keep; the calibration to [0, 1] is fitted
    on it, too. Where nothing is better than the base there, the base is kept: the adapter that is written
    changes no score, and ``training["best_step"]`` in its config is 0.

    Args:
        base: any name that ``qmamba.load`` takes.
        ratings: on any scale. The fold "val" is the held-out part; without one, a part of the others is
            drawn, with all photographs of a reference together. Results are measured on the fold "test" if
            there is one, and otherwise on the held-out part, which has then selected the weights, too.
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and ``adapter/``.
        method: one of :func:`qmamba.adapters.list_methods`.
        options: of the method.
        recipe: how it is trained; :data:`QUICK` takes fewer steps.
        scale: worst and best end of the scale of the ratings, such as (1, 5), or (100, 0) where lower is
            better; by default as :func:`qmamba.data.rescaled` finds it.
        licence, trained_on: licence of the weights, and names of the data, for the config and the card.
        device: of the network.
        resume: resume from ``out/state.pt`` if there is one; otherwise such a folder is refused. A run that
            has ended is left as it is.
        report: called with ``{"note"}``, a line that says how long it will take, and with ``{"image",
            "images"}`` while photographs are read; then as for :func:`qmamba.train.train`. An
            exception that it raises ends the run, which can be resumed from that very step.

    Returns:
        The folder of the adapter. Its config's ``results`` have SRCC and PLCC, each with its 95 % bootstrap
        interval, before and after.

    Raises:
        UnknownModelError, CheckpointError, HubError: there is no such base, or it is damaged.
        AdapterError: no such method, or an option that it does not have.
        RecipeError: too few photographs, ratings outside the scale, ``out`` belongs to another run,
            accelerate is not installed, or the training has diverged.
        ImageError: a photograph that cannot be decoded.
        BackendError: a device that cannot be used here.
    """
    recipe = recipe or AdaptRecipe()
    folds = split_folds(rescaled(ratings, scale), recipe.held_out, recipe.seed)
    check_device(device)
    folder = resolve(base)
    scorer = load(folder, device=device)
    task = Adaptation(
        scorer, folds, recipe, method, options, licence=licence, trained_on=trained_on,
        base_name=_name_of(base, scorer),
        revision=folder.name if folder.parent.name == "snapshots" else None,  # the Hub's cache: a commit
    )  # fmt: skip
    return fit(task, recipe, out, device=device, resume=resume, report=report)


@dataclass(frozen=True)
class AdaptBatch:
    """What precedes the adapter for some crops, and their MOS (n,)."""

    features: tuple[Tensor, ...]
    mos: Tensor


class Adaptation(Task[AdaptBatch]):
    """An adapter that is trained beside a frozen network; keeps the best weights on the held-out part.

    Args:
        scorer: the base, on the device that trains; the adapter is added to it in the end.
        folds: what :func:`split_folds` returned.
        recipe, method, options, licence, trained_on: as for :func:`adapt`.
        base_name, revision: how others load the base.

    Raises:
        AdapterError: no such method, or an option that it does not have.
    """

    network: Adapter

    def __init__(
        self,
        scorer: Scorer,
        folds: dict[str, list[Rated]],
        recipe: AdaptRecipe,
        method: str,
        options: Mapping[str, Any] | None = None,
        *,
        licence: str = "unknown",
        trained_on: Sequence[str] = (),
        base_name: str = "",
        revision: str | None = None,
    ) -> None:
        self.scorer, self.folds, self.recipe = scorer, folds, recipe
        self.base, self.method, self.options = scorer.base(), method, dict(options or {})
        self.base_name, self.revision, self.shared = base_name, revision, {}
        self.licence, self.trained_on = licence, tuple(trained_on)
        with random_state_kept():  # made again by `setup`; here, wrong options are found early
            self.lr = recipe.lr or create(method, self.base, **self.options).lr
        self.epoch_steps = max(1, len(folds["train"]) * recipe.crops // recipe.batch)
        self.steps = recipe.epochs * self.epoch_steps

    def setup(self, processes: Processes) -> None:
        self.network = create(self.method, self.base, **self.options).to(processes.device)
        self.heads = nn.ModuleList()
        self.best, self.best_srcc, self.best_step = _copied(self.network), -math.inf, 0
        self.waited = -1  # validations since the best one
        self.bank: Bank | None = None
        self.held_out: HeldOut | None = None
        self.is_announced = False

    def fingerprint(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.identity(), "method": self.method, "options": self.options,
            "base": self.scorer.base_sha256(), "data": digest_of(self.folds),
        }  # fmt: skip

    def lr_at(self, step: int) -> float:
        return warmup_cosine(step, self.steps, self.lr, WARMUP)

    def batches(self, run: Run) -> Iterator[AdaptBatch]:
        """Yield shuffled crops of the bank; every epoch leaves out what fills no batch."""
        self._announce(run)
        recipe = self.recipe
        train = self.bank = Bank(
            self.folds["train"], self.scorer, self.network,
            crops=recipe.crops, seed=2 * recipe.seed, most_bytes=recipe.most_bytes, report=run.report,
        )  # fmt: skip
        size = min(recipe.batch, len(train))
        for step in range(run.step, self.steps):
            epoch, position = divmod(step, self.epoch_steps)
            order = permutation(len(train), recipe.seed, epoch)
            chosen = order[position * size : (position + 1) * size]
            yield AdaptBatch(train.features(chosen), train.mos[chosen])

    def _announce(self, run: Run) -> None:
        """Report how long the run will take at most, once, before its photographs are read."""
        if self.is_announced or run.report is None or not run.is_first:
            return
        self.is_announced = True
        seconds = seconds_left(self, run)
        note = f"up to {self.steps - run.step} steps, about {in_words(seconds)} at the rate measured now"
        run.report({"note": note, "seconds": seconds})

    def try_step(self, bank: Bank, run: Run) -> None:
        """Compute the gradients of a step, on crops that are repeated to a batch; no weight changes."""
        chosen = torch.arange(self.recipe.batch) % len(bank)
        batch = AdaptBatch(bank.features(chosen), bank.mos[chosen])
        self.losses(batch, run)["loss"].backward()  # type: ignore[no-untyped-call]
        self.network.zero_grad()

    @property
    def reported(self) -> str:
        """The fold that results are measured on."""
        return "test" if len(self.folds["test"]) > 1 else "val"

    def losses(self, batch: AdaptBatch, run: Run) -> dict[str, Tensor]:
        with run.processes.autocast():
            raw = self.network.after(self.base, batch.features)[:, 0].float()
        losses = {"smooth_l1": smooth_l1(raw, batch.mos, self.recipe.beta), "plcc": plcc_loss(raw, batch.mos)}
        return {"loss": losses["smooth_l1"] + self.recipe.plcc * losses["plcc"], **losses}

    def validate(self, run: Run) -> dict[str, Any] | None:
        """Score the held-out part after each epoch with the running mean; keep it if it is the best.

        At the start this is the base with its own calibration, which every adapter has to beat. Weights that
        cannot be calibrated have no scores.
        """
        if run.step % self.epoch_steps:
            return None
        self._announce(run)
        if self.held_out is None:
            self.held_out = HeldOut(
                self.scorer, self.folds["val"], self.network, most_bytes=self.recipe.most_bytes,
                report=run.report,
            )  # fmt: skip
        adapter, held_out = run.averaged, self.held_out
        assert isinstance(adapter, Adapter)
        curve = self.scorer.calibration if run.step == 0 else None
        scores = held_out.scores(adapter, curve)
        found, self.waited = agreement(scores, held_out.mos), self.waited + 1
        if found > self.best_srcc:
            self.best_srcc, self.best_step, self.waited = found, run.step, 0
            self.best = _copied(adapter)
        if scores is None or found == -math.inf:
            return None
        if run.step == 0 and found < AGAINST and run.report is not None:
            run.report({"note": _against(found)})
        return {"val_srcc": round(found, 4), "val_plcc": round(plcc(scores, held_out.mos), 4)}

    def ended(self, run: Run) -> bool:
        """Return whether all steps are taken, or no better SRCC was found for long enough."""
        return run.step >= self.steps or self.waited >= self.recipe.patience

    def state(self) -> dict[str, Any]:
        return {
            "best": self.best, "best_srcc": self.best_srcc, "best_step": self.best_step,
            "waited": self.waited,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
        self.best_srcc, self.best_step = state["best_srcc"], state["best_step"]

    def finished(self, run: Run) -> Path | None:
        """Return the adapter that is there, with the licence and the names of data that are given now."""
        folder = run.out / "adapter"
        if not (folder / CONFIG_FILE).exists():
            return None
        about = read_adapter_config(folder)
        if (about.licence, about.trained_on) != (self.licence, self.trained_on):
            adapter, about = load_adapter(folder, self.base, self.scorer.base_sha256())
            save_adapter(folder, adapter, about.replace(licence=self.licence, trained_on=self.trained_on))
        return folder

    def finish(self, run: Run) -> Path:
        """Calibrate the best weights as they are stored, measure them, and save them, or else the base."""
        self.bank = self.held_out = None
        where = self.reported
        before = {fold: self._scores(fold) for fold in {"val", where}}
        about, after = self._adapted(run, before) if self.best_step else (None, {})
        mos = {fold: [r.mos for r in self.folds[fold]] for fold in before}
        if about is None or agreement(after["val"], mos["val"]) <= agreement(before["val"], mos["val"]):
            about, after = self._kept_base(run), before
        results = {
            f"{where}, before": _measure(before[where], mos[where]),
            f"{where}, after": _measure(after[where], mos[where]),
        }
        if run.is_first:
            save_adapter(run.out / "adapter", self.network, about.replace(results=results))
        return run.out / "adapter"

    def _scores(self, fold: str) -> Tensor:
        return self.scorer.score([r.path for r in self.folds[fold]])

    def _adapted(self, run: Run, folds: Iterable[str]) -> tuple[AdapterConfig | None, dict[str, Tensor]]:
        """Load the best weights as they are stored; return their config and scores, None if uncalibrated."""
        scorer, adapter = self.scorer, self.network.eval()
        about = self._about(run, self.recipe.dtype)
        adapter.load_state_dict(self.best)
        dtype: torch.dtype = getattr(torch, about.dtype)
        adapter.restore({name: value.to(dtype) for name, value in adapter.stored().items()})
        scorer.add_adapter(NAME, adapter, about)
        scorer.set_adapter(NAME)
        parts = {fold: [scorer.raw_parts(r.path) for r in self.folds[fold]] for fold in folds}
        scorer.delete_adapter(NAME)
        curve = fit_calibration([each.raw for each in parts["val"]], [r.mos for r in self.folds["val"]])
        if curve is None:
            return None, {}
        scores = {
            fold: calibrated(((part.raw, part.weights) for part in rated), curve)
            for fold, rated in parts.items()
        }
        return about.replace(calibration=curve), scores

    def _kept_base(self, run: Run) -> AdapterConfig:
        """Make the network a fresh adapter; return its config. It scores as the base does, bit for bit."""
        torch.manual_seed(self.recipe.seed)
        device = next(self.network.parameters()).device
        self.network = create(self.method, self.base, **self.options).to(device).eval()
        self.best_step = 0
        return self._about(run, "float32").replace(calibration=self.scorer.calibration)

    def _about(self, run: Run, dtype: str) -> AdapterConfig:
        return AdapterConfig(
            self.method, self.base_name, self.scorer.base_sha256(), dtype=dtype, revision=self.revision,
            licence=self.licence, trained_on=self.trained_on,
            training={
                "recipe": asdict(self.recipe), "steps": run.step, "best_step": self.best_step,
                "images": {fold: len(rated) for fold, rated in self.folds.items()},
            },
        )  # fmt: skip


def _copied(adapter: Adapter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapter.state_dict().items()}


def _name_of(base: str | Path, scorer: Scorer) -> str:
    """Return how others can load the base: a Hub id or an embedded name as given, never a path."""
    return scorer.name if Path(base).is_dir() else str(base).removeprefix(HUB_PREFIX)


def _against(found: float) -> str:
    return (
        f"the base's scores fall as the ratings rise (SRCC {found:.3f}); if lower ratings are better, give "
        "the scale from its worst end to its best, such as 100:0"
    )


def _measure(scores: Tensor, mos: Sequence[float]) -> dict[str, float | None]:
    found = evaluate(scores, mos, metrics=["srcc", "plcc"], resamples=RESAMPLES)
    return {key: None if math.isnan(value) else round(value, 4) for key, value in found.items()}
