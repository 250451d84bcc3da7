"""Quantization-aware training: a float model teaches its quantized copy, on photographs without labels."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import CONFIG_FILE
from ..checkpoints.locate import resolve
from ..data import Rated
from ..errors import ArgumentError, RecipeError
from ..images import decode
from ..metrics import plcc, srcc
from ..models.capabilities import StageFeatures
from ..quantization import Quantization, calibrate, freeze, plan, round_weights
from ..quantization.calibration import weights_sqnr
from ..quantization.network import grids_of
from ..scoring import Scorer, load
from ..scoring.quantizing import (
    CROPS,
    QuantizationReport,
    agreement,
    calibration_batches,
    evenly,
    prepared,
    quantized_config,
)
from .batches import random_crop
from .engine import Report, Run, check_device, fit
from .losses import plcc_loss
from .networks import Interface
from .prefetch import batch_workers, made_ahead
from .processes import Processes
from .recipe import Optimisation
from .sampling import epoch_indices
from .schedule import warmup_cosine
from .task import Task

REPORT_FILE = "quantization.json"
HELD_OUT = 10  # every tenth photograph shows what was lost, and is not learnt from
MOST_HELD_OUT = 64
LEAST = 4  # photographs
WARMUP = 0.05  # share of all steps


@dataclass(frozen=True, kw_only=True)
class QuantizeRecipe(Optimisation):
    """How a quantized network is trained.

    Attributes:
        steps: of the optimiser.
        batch: crops per step.
        crop: side of a crop in pixels, at least 32.
        lr: peak learning rate; by default 1e-4 with 8-bit activations or weights only, and 2e-4 below.
        scores, features, labels: weights of the losses: squared error of scores in [0, 1]; squared error of
            the stages' features over their variance; (1 - PLCC) / 2 with opinion scores, if there are any.
        calibration_crops: crops that the quantizers start from.
        validate_every: steps between two comparisons with the float model.
    """

    steps: int = 500
    batch: int = 16
    crop: int = 224
    lr: float | None = None
    scores: float = 50.0
    features: float = 1.0
    labels: float = 0.5
    weight_decay: float = 0.01
    calibration_crops: int = CROPS
    validate_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(
            steps=1, batch=2, crop=32, scores=0, features=0, labels=0, calibration_crops=1, validate_every=1
        )
        if self.lr is not None:
            self.above_zero("lr")
        if not self.scores + self.features > 0:
            raise RecipeError("scores and features must not both be 0: the float model teaches through them")


def quantize(
    base: str | Path,
    photographs: Sequence[Rated | str | Path],
    out: str | Path,
    config: Quantization,
    *,
    recipe: QuantizeRecipe | None = None,
    device: str | torch.device = "cpu",
    resume: bool = True,
    report: Report | None = None,
) -> Path:
    """Train a quantized copy of a model to give the scores and features of the model itself.

    The quantizers are calibrated on crops of the photographs; then they and the weights are trained. Every
    tenth photograph is held out, and shows in the end how well the two agree.

    Args:
        base: any name that `qmamba.load` takes, of a model in float.
        photographs: images, with opinion scores (`Rated`) or without.
        out: folder for ``state.pt`` (to resume from), ``log.jsonl`` and ``checkpoint/``.
        config: bits, and one of the methods that train: "lsq", "rfa" or "rfa+dls".
        recipe: how it is trained.
        device: of the network.
        resume: resume from ``out/state.pt`` if there is one; otherwise such a folder is refused. A run that
            has ended is left as it is.
        report: as for :func:`qmamba.train.train`.

    Returns:
        The folder of the checkpoint. Beside its files is ``quantization.json``: what was quantized, what
        stays in float and why, and signal-to-noise ratios.

    Raises:
        ArgumentError: the method does not train.
        UnknownModelError, CheckpointError, HubError: there is no such base, or it is damaged.
        CapabilityError: the base is quantized already.
        RecipeError: too few photographs, ``out`` belongs to another run, accelerate is not installed, or the
            training has diverged.
        ImageError: a photograph that cannot be decoded.
        BackendError: a device that cannot be used here.
    """
    if not config.is_trained:
        raise ArgumentError(f"method {config.method!r} does not train; use qmamba.quantize")
    check_device(device)
    scorer = load(resolve(base), device=device)
    task = Quantizing(scorer, photographs, config, recipe or QuantizeRecipe())
    return fit(task, recipe or QuantizeRecipe(), out, device=device, resume=resume, report=report)


class QuantizeBatch(NamedTuple):
    """Crops (n, 3, S, S) uint8, and their opinion scores (n,) float32, NaN where there is none."""

    crops: Tensor
    mos: Tensor


class Quantizing(Task[QuantizeBatch]):
    """A network with quantizers, taught by the same network in float.

    Args:
        scorer: the float model, on the device that trains.
        photographs, config, recipe: as for :func:`quantize`.

    Raises:
        RecipeError: too few photographs.
        CapabilityError: the model is quantized already.
    """

    def __init__(
        self,
        scorer: Scorer,
        photographs: Sequence[Rated | str | Path],
        config: Quantization,
        recipe: QuantizeRecipe,
    ) -> None:
        if len(photographs) < LEAST:
            raise RecipeError(f"photographs must be at least {LEAST}, got {len(photographs)}; add some")
        self.scorer, self.config, self.recipe = scorer, config, recipe
        rated = [p if isinstance(p, Rated) else Rated(Path(p), float("nan")) for p in photographs]
        self.held_out = evenly(rated[::HELD_OUT], MOST_HELD_OUT)
        held = {id(each) for each in self.held_out}
        self.train = [each for each in rated if id(each) not in held]
        self.steps, self.shared = recipe.steps, {"batch": recipe.batch}
        self.interface = Interface(scorer.config.preprocessing, scorer.config.output)
        self.lr = recipe.lr or (1e-4 if config.activations in (None, 8) else 2e-4)
        prepared(scorer, config)  # refuse early what cannot be quantized

    def setup(self, processes: Processes) -> None:
        """Put quantizers into a copy of the network, and calibrate them."""
        self.teacher = self.scorer.network
        self.network, self.found = prepared(self.scorer, self.config, training=True)
        self.heads = nn.ModuleList()
        self.network.requires_grad_(True)
        made = plan(self.teacher, self.config)
        round_weights(self.network, self.config, made)
        for name in grids_of(self.network):  # stored in few bits and computed in float: these stay
            self.network.get_parameter(name).requires_grad_(False)
        if self.config.activations is not None:
            paths = [each.path for each in self.train]
            crops = self.recipe.calibration_crops
            batches = calibration_batches(self.scorer, paths, crops, self.found)
            self.found.sqnr = calibrate(self.network, batches, public=self.config.public)

    def fingerprint(self) -> dict[str, Any]:
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "save_every"}
        return {
            "recipe": recipe, "quantization": self.config.to_dict(), "base": self.scorer.base_sha256(),
            "data": [each.path.name for each in (*self.train, *self.held_out)],
        }  # fmt: skip

    def lr_at(self, step: int) -> float:
        return warmup_cosine(step, self.steps, self.lr, WARMUP)

    def batches(self, run: Run) -> Iterator[QuantizeBatch]:
        """Yield crops; a batch is a function of seed, step and rank."""

        def make(step: int) -> QuantizeBatch:
            return self._make_batch(step, run.processes.rank, run.processes.size)

        parts = self.recipe.accumulate
        workers = batch_workers(run.processes.device)
        return made_ahead(make, run.step * parts, self.steps * parts, workers)

    def _make_batch(self, step: int, rank: int, ranks: int) -> QuantizeBatch:
        recipe, protocol = self.recipe, self.scorer.protocol
        g = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * 64 + rank)
        chosen = epoch_indices(len(self.train), recipe.seed, step * recipe.batch, recipe.batch)[rank::ranks]
        rated = [self.train[i] for i in chosen]
        sides = protocol.sides if protocol.kind == "scales" else ()
        crops = [random_crop(decode(each.path), recipe.crop, sides, g) for each in rated]
        return QuantizeBatch(torch.stack(crops), torch.tensor([each.mos for each in rated]))

    def losses(self, batch: QuantizeBatch, run: Run) -> dict[str, Tensor]:
        """Return losses against the float model, and on ratings where there are any."""
        self.network.eval()  # no stochastic depth: the teacher has none
        with_features = self.recipe.features > 0 and isinstance(self.teacher, StageFeatures)
        with run.processes.autocast():
            with torch.no_grad():
                taught = self.interface.see(self.teacher, batch.crops, features=with_features)
            seen = self.interface.see(self.network, batch.crops, features=with_features)
        curve = self.scorer.config.calibration
        losses = {"scores": F.mse_loss(curve(seen.raw), curve(taught.raw))}
        total = self.recipe.scores * losses["scores"]
        if with_features:
            stages = zip(seen.features, taught.features, strict=True)
            losses["features"] = torch.stack([_relative_error(s, t) for s, t in stages]).mean()
            total = total + self.recipe.features * losses["features"]
        known = ~batch.mos.isnan()
        if self.recipe.labels > 0 and int(known.sum()) > 2:
            mos = batch.mos[known].to(seen.raw.device)
            sign = -1 if self.scorer.lower_better else 1
            losses["labels"] = plcc_loss(sign * seen.raw[known.to(seen.raw.device)], mos)
            total = total + self.recipe.labels * losses["labels"]
        return {"loss": total, **losses}

    def validate(self, run: Run) -> dict[str, Any] | None:
        """Compare with the float model on one crop of each held-out photograph."""
        if run.step == 0 or (run.step % self.recipe.validate_every and run.step != self.steps):
            return None
        if len(self.held_out) < 3:
            return None
        found = QuantizationReport("", "", {}, {})
        pairs = []
        paths = [each.path for each in self.held_out]
        with torch.no_grad():
            for images in calibration_batches(self.scorer, paths, len(paths), found):
                pairs.append([float(net(images).mean()) for net in (self.teacher, run.averaged)])
        old, new = zip(*pairs, strict=True)
        return {"val_srcc": round(srcc(new, old), 4), "val_plcc": round(plcc(new, old), 4)}

    def finished(self, run: Run) -> Path | None:
        folder = run.out / "checkpoint"
        return folder if (folder / CONFIG_FILE).exists() else None

    def finish(self, run: Run) -> Path:
        """Keep codes of the weights, compare the scores with the float model's, and write the checkpoint."""
        network = copy.deepcopy(run.averaged).eval()
        freeze(network)
        facts = {"recipe": asdict(self.recipe), "steps": run.step, "images": len(self.train)}
        scorer = Scorer(network, quantized_config(self.scorer.config, self.config, **facts))
        results = agreement(self.scorer, scorer, [each.path for each in self.held_out])
        of_weights = weights_sqnr(self.teacher.get_parameter, network, grids_of(network))
        self.found.sqnr = {**of_weights, **self.found.sqnr}
        folder = run.out / "checkpoint"
        if run.is_first:
            Scorer(network, scorer.config.replace(results=results)).save_pretrained(folder)
            write_report(folder, self.found)
        return folder


def write_report(folder: Path, report: QuantizationReport) -> None:
    """Write ``quantization.json`` into a checkpoint folder."""
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")


def _relative_error(seen: Tensor, taught: Tensor) -> Tensor:
    """Return the squared error over the variance of what is taught; (B, C, H, W) both."""
    variance = taught.var(dim=(0, 2, 3), unbiased=False).mean()
    return F.mse_loss(seen, taught) / (variance + 1e-6)
