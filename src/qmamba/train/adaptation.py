"""Adaptation: a trained model and rated photographs of another domain in, a small adapter out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, AdapterConfig, create, save_adapter
from ..adapters.folder import CONFIG_FILE
from ..calibration import Calibration
from ..checkpoints.locate import resolve
from ..data import Rated
from ..errors import RecipeError
from ..metrics import evaluate, plcc, srcc
from ..scoring import Scorer, load
from .bank import MOST_BYTES, Bank
from .loop import Learner, Report, check_device, check_folder, run_steps
from .losses import plcc_loss, smooth_l1
from .parallel import Team
from .recipe import Phase, Plan
from .trainer import raw_parts

NAME = "adapted"
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe:
    """How an adapter is trained.

    Attributes:
        epochs: at most; the learning rate falls to zero over them.
        crops: of each photograph, the same ones in every epoch.
        batch: crops a step.
        lr: peak learning rate; by default the method's own.
        patience: epochs without a better SRCC on the held-out part after which it ends.
        held_out: share of the references, or of photographs without, that is held out where there is no fold
            "val".
        weight_decay: none on biases.
        beta, plcc: of the smooth-L1 loss on MOS, and the weight of the loss on PLCC.
        ema: decay of the running mean of the weights, which is what is evaluated and saved.
        precision: "float32", or "bfloat16" for the products while training.
        dtype: that the adapter is stored in.
        seed: of everything random.
        most_bytes: that the bank of crops may take.
    """

    epochs: int = 30
    crops: int = 5
    batch: int = 32
    lr: float | None = None
    patience: int = 6
    held_out: float = 0.2
    weight_decay: float = 0.05
    beta: float = 0.1
    plcc: float = 0.5
    ema: float = 0.98
    precision: str = "float32"
    dtype: str = "float16"
    seed: int = 0
    most_bytes: int = MOST_BYTES

    def __post_init__(self) -> None:
        for key in ("epochs", "crops", "patience"):
            if getattr(self, key) < 1:
                raise RecipeError(f"{key} is at least 1, not {getattr(self, key)}")
        if self.batch < 2:
            raise RecipeError(f"batch is at least 2, not {self.batch}")
        if not 0 < self.held_out < 1:
            raise RecipeError(f"held_out is a share between 0 and 1, not {self.held_out}")


@dataclass(frozen=True, kw_only=True)
class _Plan(Plan):
    """All that a run depends on: one that is resumed must have the same."""

    recipe: AdaptRecipe
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    base_sha256: str = ""
    data_sha256: str = ""
    epoch_steps: int = 1


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

    The base is frozen: it gets no gradients, and no optimiser knows it. What comes before the adapter's first
    change is computed once for a fixed bank of crops. The SRCC of the held-out part tells when to stop and
    which weights to keep; these may be those of the start. The calibration to [0, 1] is fitted on it, too.

    Args:
        base: any name that ``qmamba.load`` takes.
        ratings: MOS in [0, 1]. The fold "val" is the held-out part; where there is none, a part of the others
            is drawn, all photographs of a reference together. The fold "test", if there is one, is what the
            results are measured on, and otherwise the held-out part, which then has chosen the weights it
            measures.
        out: folder for ``state.pt`` (to go on from), ``log.jsonl`` and ``adapter/``.
        method: one of :func:`qmamba.adapters.list_methods`.
        options: of the method.
        recipe: how it is trained.
        device: of the network.
        resume: go on from ``out/state.pt`` if it is there; otherwise such a folder is refused. A run that has
            ended already is left as it is.
        report: called with ``{"image", "images"}`` while photographs are read, then as for
            :func:`qmamba.train.train`. What it raises ends the run, which can go on from that very step.

    Returns:
        The folder of the adapter. Its config's ``results`` have SRCC and PLCC, each with its 95 % bootstrap
        interval, before and after.

    Raises:
        UnknownModelError, CheckpointError, HubError: there is no good base.
        AdapterError: no such method, or an option that it does not have.
        RecipeError: too few photographs, MOS outside [0, 1], ``out`` belongs to another run, or the training
            has diverged.
        ImageError: a photograph that cannot be decoded.
        BackendError: a device that cannot be used here.
    """
    recipe, out = recipe or AdaptRecipe(), Path(out)
    folds = _folds(ratings, recipe)
    check_device(device)
    folder = resolve(base)
    scorer = load(folder, device=device)
    with torch.random.fork_rng():
        plan = _plan(scorer, folds, method, dict(options or {}), recipe)
        learner = _Adapter(plan, scorer)
        check_folder(out, resume)
        learner.restore(out)
        if learner.ended and (out / "adapter" / CONFIG_FILE).exists():
            return out / "adapter"
        if not learner.ended:
            _learn(learner, folds, out, report)
    about = AdapterConfig(
        method, _name_of(base, scorer), scorer.base_sha256(), dtype=recipe.dtype,
        revision=folder.name if folder.parent.name == "snapshots" else None,  # the Hub's cache: a commit
        training={
            "recipe": asdict(recipe), "steps": learner.step, "best_step": learner.best_step,
            "images": {fold: len(rated) for fold, rated in folds.items()},
        },
    )  # fmt: skip
    return _finish(learner.best(), about, scorer, folds, out / "adapter")


def _folds(ratings: Sequence[Rated], recipe: AdaptRecipe) -> dict[str, list[Rated]]:
    """The folds train, val and test; val is drawn where no photograph has it, whole references at a time."""
    if not all(0.0 <= r.mos <= 1.0 for r in ratings):
        raise RecipeError("adapting needs MOS in [0, 1], higher is better: rescale the ratings first")
    folds = {fold: [r for r in ratings if r.fold == fold] for fold in ("train", "val", "test")}
    if not folds["val"]:
        rest = folds["train"] or [r for r in ratings if not r.fold]
        keys = [r.reference or f"image {i}" for i, r in enumerate(rest)]
        names = sorted(set(keys))
        g = torch.Generator().manual_seed(recipe.seed)
        order = torch.randperm(len(names), generator=g).tolist()
        held = {names[i] for i in order[: round(recipe.held_out * len(names))]}
        folds["val"] = [r for r, key in zip(rest, keys, strict=True) if key in held]
        folds["train"] = [r for r, key in zip(rest, keys, strict=True) if key not in held]
    for fold in ("train", "val"):
        if len(folds[fold]) < 2:
            raise RecipeError(
                f"adapting needs two photographs or more in the fold {fold!r}, and there are "
                f"{len(folds[fold])} of {len(ratings)}"
            )
    return folds


def _plan(
    scorer: Scorer,
    folds: Mapping[str, list[Rated]],
    method: str,
    options: dict[str, Any],
    recipe: AdaptRecipe,
) -> _Plan:
    adapter = create(method, scorer.base(), **options)  # so that a wrong option is known now
    epoch_steps = max(1, len(folds["train"]) * recipe.crops // recipe.batch)
    rows = "\n".join(f"{fold},{r.path.name},{r.mos}" for fold, rated in folds.items() for r in rated)
    phase = Phase(scorer.protocol.crop, recipe.epochs * epoch_steps)
    return _Plan(
        name=scorer.name, arch=scorer.config.arch, phases=(phase,), lr=recipe.lr or adapter.lr, warmup=0.05,
        weight_decay=recipe.weight_decay, clip=5.0, ema=recipe.ema, seed=recipe.seed, recipe=recipe,
        precision=recipe.precision,
        method=method, options=options, base_sha256=scorer.base_sha256(),
        data_sha256=hashlib.sha256(rows.encode()).hexdigest(), epoch_steps=epoch_steps,
    )  # fmt: skip


@dataclass(frozen=True)
class _Batch:
    """What comes before the adapter for some crops, and their MOS (n,)."""

    features: Tensor
    mos: Tensor


class _Adapter(Learner[_Batch]):
    """An adapter that learns beside a frozen network; keeps the best weights seen on the held-out part."""

    plan: _Plan
    network: Adapter
    mean_network: Adapter

    def __init__(self, plan: _Plan, scorer: Scorer) -> None:
        self.base, self.about = scorer.base(), scorer.config
        super().__init__(plan, next(self.base.parameters()).device)
        self.best_srcc, self.best_step, self.waited, self.looked = -math.inf, 0, -1, -1
        self._best = _copied(self.mean_network)

    def make_network(self) -> Adapter:
        return create(self.plan.method, self.base, **self.plan.options)

    @property
    def ended(self) -> bool:
        """Whether it has had all its steps, or has waited for a better SRCC long enough."""
        return self.step >= self.plan.steps or self.waited >= self.plan.recipe.patience

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        with self.precision():
            raw = self.network.after(self.base, batch.features)[:, 0].float()
        losses = {"smooth_l1": smooth_l1(raw, batch.mos, self.plan.recipe.beta)}
        losses["plcc"] = plcc_loss(raw, batch.mos)
        return {"loss": losses["smooth_l1"] + self.plan.recipe.plcc * losses["plcc"], **losses}

    def validate(self, bank: Bank, ratings: Sequence[Rated]) -> dict[str, Any]:
        """SRCC and PLCC of the running mean on the held-out part; keeps it if it is the best so far."""
        raw, mos = bank.rate(self.mean_network, self.plan.recipe.batch), [r.mos for r in ratings]
        found = srcc(raw, mos)
        self.waited, self.looked = self.waited + 1, self.step
        if found > self.best_srcc:
            self.best_srcc, self.best_step, self.waited = found, self.step, 0
            self._best = _copied(self.mean_network)
        return {"val_srcc": round(found, 4), "val_plcc": round(plcc(raw, mos), 4)}

    def best(self) -> Adapter:
        """The adapter with the best weights."""
        self.mean_network.load_state_dict(self._best)
        return self.mean_network

    def state(self) -> dict[str, Any]:
        numbers = (self.best_srcc, self.best_step, self.waited, self.looked)
        return {**super().state(), "best": self._best, "watched": numbers}

    def take(self, state: dict[str, Any]) -> None:
        super().take(state)
        self._best = state["best"]
        self.best_srcc, self.best_step, self.waited, self.looked = state["watched"]


def _copied(adapter: Adapter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapter.state_dict().items()}


def _learn(learner: _Adapter, folds: Mapping[str, list[Rated]], out: Path, report: Report | None) -> None:
    recipe, base = learner.plan.recipe, learner.about
    train, val = (
        Bank(
            folds[fold], learner.base, learner.network, base.protocol, preprocessing=base.preprocessing,
            crops=recipe.crops, seed=2 * recipe.seed + half, most_bytes=recipe.most_bytes, report=report,
        )
        for half, fold in enumerate(("train", "val"))
    )  # fmt: skip

    def batches() -> Iterator[_Batch]:
        while not learner.ended:
            chosen = _chosen(len(train), learner)
            yield _Batch(train.features(chosen), train.mos[chosen])

    def look() -> dict[str, Any] | None:
        if learner.step % learner.plan.epoch_steps:
            return None
        return learner.validate(val, folds["val"])

    # A fresh adapter is the base, and none that is worse is kept. A run may have been ended between a step
    # and the look after it.
    if learner.looked != learner.step:
        look()
    run_steps(learner, batches(), out, Team(), report, look)
    learner.save(out)


def _chosen(total: int, learner: _Adapter) -> Tensor:
    """Places of a step's crops in the bank: every epoch is a shuffled whole, less what fills no batch."""
    batch, steps = min(learner.plan.recipe.batch, total), learner.plan.epoch_steps
    epoch, step = divmod(learner.step, steps)
    g = torch.Generator().manual_seed(learner.plan.seed * 1_000_003 + epoch)
    return torch.randperm(total, generator=g)[step * batch : (step + 1) * batch]


def _name_of(base: str | Path, scorer: Scorer) -> str:
    """What others can load the base by: a Hub id or an embedded name as it was given, and no path."""
    return scorer.name if Path(base).is_dir() else str(base).removeprefix("hf-hub:")


def _finish(
    adapter: Adapter, about: AdapterConfig, scorer: Scorer, folds: Mapping[str, list[Rated]], folder: Path
) -> Path:
    """Calibrate the adapter as it will be stored, measure it by the model's own protocol, and write it."""
    where = "test" if len(folds["test"]) > 1 else "val"
    results = {f"{where}, before": _measure(scorer.score([r.path for r in folds[where]]), folds[where])}
    dtype: torch.dtype = getattr(torch, about.dtype)
    adapter.restore({name: value.to(dtype) for name, value in adapter.stored().items()})  # as it will be read
    scorer.add_adapter(NAME, adapter, about)
    scorer.set_adapter(NAME)
    held_out = [(*raw_parts(scorer, r.path), r.mos) for r in folds["val"]]
    raw = torch.cat([parts for parts, _, _ in held_out])
    mos = torch.tensor([mos for parts, _, mos in held_out for _ in parts])
    if not plcc(raw, mos) > 0:
        raise RecipeError(
            "what was learnt does not rise with MOS on the held-out part, so it cannot be calibrated: give "
            "more photographs, more epochs or another lr, and another folder"
        )
    about = about.replace(calibration=Calibration.fit(raw, mos))
    parts = [(raw, w) for raw, w, _ in held_out]
    if where == "test":
        parts = [raw_parts(scorer, r.path) for r in folds["test"]]
    scores = torch.stack([(about.calibration(raw) * weights).sum() for raw, weights in parts])
    results[f"{where}, after"] = _measure(scores, folds[where])
    save_adapter(folder, adapter, about.replace(results=results))
    return folder


def _measure(scores: Tensor, ratings: Sequence[Rated]) -> dict[str, float | None]:
    found = evaluate(scores, [r.mos for r in ratings], metrics=["srcc", "plcc"], resamples=RESAMPLES)
    return {key: None if math.isnan(value) else round(value, 4) for key, value in found.items()}
