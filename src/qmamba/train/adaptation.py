"""Adaptation: a trained model and rated photographs of another domain in, a small adapter out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter, AdapterConfig, create, save_adapter
from ..adapters.folder import CONFIG_FILE
from ..checkpoints.locate import resolve
from ..data import Rated
from ..errors import RecipeError
from ..metrics import evaluate, plcc, srcc
from ..scoring import Scorer, load
from .bank import MOST_BYTES, Bank
from .calibrating import fit_calibration
from .engine import Report, Run, check_device, fit
from .losses import plcc_loss, smooth_l1
from .processes import Processes, random_state_kept
from .ratings import digest_of
from .recipe import Optimisation
from .sampling import permutation
from .schedule import warmup_cosine
from .task import Task

NAME = "adapted"
RESAMPLES = 1000
WARMUP = 0.05  # share of all steps


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe(Optimisation):
    """How an adapter is trained.

    Attributes:
        epochs: maximum number of epochs; the learning rate falls to zero over them.
        crops: random crops of each photograph, the same ones in every epoch.
        batch: crops per step.
        lr: peak learning rate; by default the method's own.
        patience: epochs without a better SRCC on the held-out part after which training stops.
        held_out: share of the references, or of photographs without one, that is held out where there is no
            fold "val".
        beta, plcc: of the smooth-L1 loss on MOS, and the weight of the loss on PLCC.
        dtype: floating type that the adapter is stored in.
        most_bytes: maximum size of the bank of crops in memory.
    """

    epochs: int = 30
    crops: int = 5
    batch: int = 32
    lr: float | None = None
    patience: int = 6
    held_out: float = 0.2
    clip: float = 5.0
    beta: float = 0.1
    plcc: float = 0.5
    ema: float = 0.98
    dtype: str = "float16"
    most_bytes: int = MOST_BYTES

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(epochs=1, crops=1, patience=1, batch=2)
        if self.lr is not None:
            self.above_zero("lr")
        if not 0 < self.held_out < 1:
            raise RecipeError(f"held_out must be above 0 and below 1, got {self.held_out}")


def adapt(
    base: str | Path,
    ratings: Sequence[Rated],
    out: str | Path,
    *,
    method: str = "style-prompt",
    options: Mapping[str, Any] | None = None,
    recipe: AdaptRecipe | None = None,
    device: str | torch.device = "cpu",
    resume: bool = True,
    report: Report | None = None,
) -> Path:
    """Train an adapter on rated photographs, calibrate it, and measure it before and after.

    The base is frozen: it gets no gradients, and no optimiser holds it. What precedes the adapter's first
    change is computed once for a fixed bank of crops. SRCC on the held-out part decides when to stop and
    which weights to keep, which may be those of the start; the calibration to [0, 1] is fitted on it, too.

    Args:
        base: any name that ``qmamba.load`` takes.
        ratings: MOS in [0, 1]. The fold "val" is the held-out part; without one, a part of the others is
            drawn, with all photographs of a reference together. Results are measured on the fold "test" if
            there is one, and otherwise on the held-out part, which has then chosen the weights it measures.
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and ``adapter/``.
        method: one of :func:`qmamba.adapters.list_methods`.
        options: of the method.
        recipe: how it is trained.
        device: of the network.
        resume: resume from ``out/state.pt`` if there is one; otherwise such a folder is refused. A run that
            has ended is left as it is.
        report: called with ``{"image", "images"}`` while photographs are read, then as for
            :func:`qmamba.train.train`. An exception that it raises ends the run, which can be resumed from
            that very step.

    Returns:
        The folder of the adapter. Its config's ``results`` have SRCC and PLCC, each with its 95 % bootstrap
        interval, before and after.

    Raises:
        UnknownModelError, CheckpointError, HubError: there is no such base, or it is damaged.
        AdapterError: no such method, or an option that it does not have.
        RecipeError: too few photographs, MOS outside [0, 1], ``out`` belongs to another run, accelerate is
            not installed, or the training has diverged.
        ImageError: a photograph that cannot be decoded.
        BackendError: a device that cannot be used here.
    """
    recipe = recipe or AdaptRecipe()
    folds = split_folds(ratings, recipe)
    check_device(device)
    folder = resolve(base)
    scorer = load(folder, device=device)
    task = Adaptation(
        scorer, folds, recipe, method, options,
        base_name=_name_of(base, scorer),
        revision=folder.name if folder.parent.name == "snapshots" else None,  # the Hub's cache: a commit
    )  # fmt: skip
    return fit(task, recipe, out, device=device, resume=resume, report=report)


def split_folds(ratings: Sequence[Rated], recipe: AdaptRecipe) -> dict[str, list[Rated]]:
    """Return the folds train, val and test; val is drawn, whole references at a time, where there is none."""
    if not all(0.0 <= r.mos <= 1.0 for r in ratings):
        raise RecipeError("adapting needs MOS in [0, 1], higher is better; rescale the ratings first")
    folds = {fold: [r for r in ratings if r.fold == fold] for fold in ("train", "val", "test")}
    if not folds["val"]:
        rest = folds["train"] or [r for r in ratings if not r.fold]
        keys = [r.reference or f"image {i}" for i, r in enumerate(rest)]
        names = sorted(set(keys))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        held = {names[i] for i in order[: round(recipe.held_out * len(names))]}
        folds["val"] = [r for r, key in zip(rest, keys, strict=True) if key in held]
        folds["train"] = [r for r, key in zip(rest, keys, strict=True) if key not in held]
    for fold in ("train", "val"):
        if len(folds[fold]) < 2:
            raise RecipeError(
                f"adapting needs two photographs or more in the fold {fold!r}, got {len(folds[fold])} of "
                f"{len(ratings)}"
            )
    return folds


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
        recipe, method, options: as for :func:`adapt`.
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
        base_name: str = "",
        revision: str | None = None,
    ) -> None:
        self.scorer, self.folds, self.recipe = scorer, folds, recipe
        self.base, self.method, self.options = scorer.base(), method, dict(options or {})
        self.base_name, self.revision, self.shared = base_name, revision, {}
        with random_state_kept():  # made again by `setup`; here, wrong options are found early
            self.lr = recipe.lr or create(method, self.base, **self.options).lr
        self.epoch_steps = max(1, len(folds["train"]) * recipe.crops // recipe.batch)
        self.steps = recipe.epochs * self.epoch_steps

    def setup(self, processes: Processes) -> None:
        self.network = create(self.method, self.base, **self.options).to(processes.device)
        self.heads = nn.ModuleList()
        self.best, self.best_srcc, self.best_step = _copied(self.network), -math.inf, 0
        self.waited = -1  # validations since the best one
        self.banks: dict[str, Bank] = {}

    def fingerprint(self) -> dict[str, Any]:
        values = {name: value for name, value in asdict(self.recipe).items() if name != "save_every"}
        return {
            "recipe": values, "method": self.method, "options": self.options,
            "base": self.scorer.base_sha256(), "data": digest_of(self.folds),
        }  # fmt: skip

    def lr_at(self, step: int) -> float:
        return warmup_cosine(step, self.steps, self.lr, WARMUP)

    def bank(self, fold: str, run: Run) -> Bank:
        """Return the crops of a fold, made once."""
        if fold not in self.banks:
            config, recipe = self.scorer.config, self.recipe
            self.banks[fold] = Bank(
                self.folds[fold], self.base, self.network, config.protocol,
                preprocessing=config.preprocessing, crops=recipe.crops,
                seed=2 * recipe.seed + ("train", "val").index(fold), most_bytes=recipe.most_bytes,
                report=run.report,
            )  # fmt: skip
        return self.banks[fold]

    def batches(self, run: Run) -> Iterator[AdaptBatch]:
        """Yield shuffled crops of the bank; every epoch leaves out what fills no batch."""
        train = self.bank("train", run)
        size = min(self.recipe.batch, len(train))
        for step in range(run.step, self.steps):
            epoch, position = divmod(step, self.epoch_steps)
            order = permutation(len(train), self.recipe.seed, epoch)
            chosen = order[position * size : (position + 1) * size]
            yield AdaptBatch(train.features(chosen), train.mos[chosen])

    def losses(self, batch: AdaptBatch, run: Run) -> dict[str, Tensor]:
        with run.processes.autocast():
            raw = self.network.after(self.base, batch.features)[:, 0].float()
        losses = {"smooth_l1": smooth_l1(raw, batch.mos, self.recipe.beta), "plcc": plcc_loss(raw, batch.mos)}
        return {"loss": losses["smooth_l1"] + self.recipe.plcc * losses["plcc"], **losses}

    def validate(self, run: Run) -> dict[str, Any] | None:
        """Measure the running mean on the held-out part after each epoch; keep it if it is the best."""
        if run.step % self.epoch_steps:
            return None
        adapter = run.averaged
        assert isinstance(adapter, Adapter)
        raw = self.bank("val", run).rate(adapter, self.recipe.batch)
        mos = [r.mos for r in self.folds["val"]]
        found, self.waited = srcc(raw, mos), self.waited + 1
        if found > self.best_srcc:
            self.best_srcc, self.best_step, self.waited = found, run.step, 0
            self.best = _copied(adapter)
        return {"val_srcc": round(found, 4), "val_plcc": round(plcc(raw, mos), 4)}

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
        adapter = run.out / "adapter"
        return adapter if (adapter / CONFIG_FILE).exists() else None

    def finish(self, run: Run) -> Path:
        """Calibrate the best weights as they are stored, measure them by the model's protocol, save them."""
        self.banks.clear()
        scorer, folds = self.scorer, self.folds
        about = AdapterConfig(
            self.method, self.base_name, scorer.base_sha256(), dtype=self.recipe.dtype,
            revision=self.revision,
            training={
                "recipe": asdict(self.recipe), "steps": run.step, "best_step": self.best_step,
                "images": {fold: len(rated) for fold, rated in folds.items()},
            },
        )  # fmt: skip
        where = "test" if len(folds["test"]) > 1 else "val"
        before = _measure(scorer.score([r.path for r in folds[where]]), folds[where])
        adapter = self.network.eval()
        adapter.load_state_dict(self.best)
        dtype: torch.dtype = getattr(torch, about.dtype)
        adapter.restore({name: value.to(dtype) for name, value in adapter.stored().items()})
        scorer.add_adapter(NAME, adapter, about)
        scorer.set_adapter(NAME)
        parts = {fold: [scorer.raw_parts(r.path) for r in folds[fold]] for fold in {"val", where}}
        calibration = fit_calibration([each.raw for each in parts["val"]], [r.mos for r in folds["val"]])
        if calibration is None:
            raise RecipeError(
                "raw quality does not rise with MOS on the held-out part, so it cannot be calibrated; give "
                "more photographs, more epochs or another lr, and another folder"
            )
        scores = torch.stack([(calibration(each.raw) * each.weights).sum() for each in parts[where]])
        results = {f"{where}, before": before, f"{where}, after": _measure(scores, folds[where])}
        if run.is_first:
            about = about.replace(calibration=calibration, results=results)
            save_adapter(run.out / "adapter", adapter, about)
        return run.out / "adapter"


def _copied(adapter: Adapter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapter.state_dict().items()}


def _name_of(base: str | Path, scorer: Scorer) -> str:
    """How others can load the base: a Hub id or an embedded name as given, never a path."""
    return scorer.name if Path(base).is_dir() else str(base).removeprefix("hf-hub:")


def _measure(scores: Tensor, ratings: Sequence[Rated]) -> dict[str, float | None]:
    found = evaluate(scores, [r.mos for r in ratings], metrics=["srcc", "plcc"], resamples=RESAMPLES)
    return {key: None if math.isnan(value) else round(value, 4) for key, value in found.items()}
