"""A torchmetrics `Metric` and its functional form: ``pip install "qmamba[integrations]"``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import ImageError
from ..scoring import DEFAULT_MODEL, Scorer, load
from ._scorers import Model, missing, shared

try:
    from torchmetrics import Metric
except ImportError as error:
    raise missing("torchmetrics") from error

__all__ = ["QMambaScore", "qmamba_score"]

Reduction: TypeAlias = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")
OVERSHOOT = 1e-3  # tolerated excess over [0, 1] from float rounding; scorers clip it silently


class QMambaScore(Metric):
    """No-reference image quality by QMamba: the mean, the sum, or all scores over all updates.

    `forward` and `update` take ``images``, a tensor (N, 3, H, W): floats in [0, 1], or uint8. `forward` and
    `compute` return a scalar in [0, 1] for "mean", a scalar for "sum", and scores (N,) in the order of the
    updates for "none"; all float32, higher is better. In distributed runs "none" concatenates the scores of
    the ranks. Without images the mean is NaN, the sum 0, and the scores have shape (0,).

    The scores are those of `Scorer.score`. The network is loaded once, moves with ``.to(device)``, and is
    neither in the metric's state nor among the parameters of a module that owns the metric.

    Args:
        model: a scorer, or anything that `qmamba.load` takes.
        reduction: "mean", "sum" or "none".
        kwargs: options of `torchmetrics.Metric`.

    Raises:
        ValueError: an unknown reduction.
        ImageError: images of the wrong shape, dtype or range.
        QMambaError: as `qmamba.load`.
    """

    is_differentiable: bool = True
    higher_is_better: bool = True
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    scorer: Scorer
    scores: list[Tensor]
    total: Tensor
    images: Tensor

    def __init__(self, model: Model = DEFAULT_MODEL, reduction: Reduction = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check_reduction(reduction)
        self.reduction = reduction
        # Not a submodule: checkpoints of models that own a metric must not include the network.
        self.__dict__["scorer"] = model if isinstance(model, Scorer) else load(model)
        if reduction == "none":
            self.add_state("scores", default=[], dist_reduce_fx="cat")
        else:
            self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
            self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Score images (N, 3, H, W)."""
        scores = _scores(images, self.scorer).to(self.device)
        if self.reduction == "none":
            self.scores.append(scores)
        else:
            self.total = self.total + scores.sum()
            self.images = self.images + len(scores)

    def compute(self) -> Tensor:
        """Return the mean, the sum, or the scores of all images since the last `reset`."""
        if self.reduction == "none":
            # Synchronisation turns the list into one tensor.
            scores = [self.scores] if isinstance(self.scores, Tensor) else self.scores
            return torch.cat(scores) if scores else torch.zeros(0, device=self.device)
        return self.total if self.reduction == "sum" else self.total / self.images

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot values of `forward` or `compute`, by default the current one, between the bounds of a score.

        Args:
            val: one value, or several in chronological order.
            ax: matplotlib axes to draw on.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> QMambaScore:
        self.scorer._apply(fn)
        super()._apply(fn, exclude_state)
        return self


def qmamba_score(images: Tensor, reduction: Reduction = "mean", model: Model = DEFAULT_MODEL) -> Tensor:
    """Compute no-reference image quality by QMamba: the functional form of `QMambaScore`.

    Args:
        images: (N, 3, H, W), floats in [0, 1] or uint8. Gradients flow to floats that require them.
        reduction: "mean", "sum" or "none".
        model: a scorer, or anything that `qmamba.load` takes. A name is loaded once per process, on the CPU.

    Returns:
        A scalar, or (N,) for "none", float32 on the device of the images; higher is better.

    Raises:
        ValueError: an unknown reduction.
        ImageError: images of the wrong shape, dtype or range.
        QMambaError: as `qmamba.load`.
    """
    _check_reduction(reduction)
    scores = _scores(images, shared(model)).to(images.device)
    if reduction == "none":
        return scores
    return scores.sum() if reduction == "sum" else scores.mean()


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def _scores(images: Tensor, scorer: Scorer) -> Tensor:
    """Return scores (N,) of images (N, 3, H, W).

    Without gradients images are scored one by one, so that the bits do not depend on the batch; with
    gradients they are scored together.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        given = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ImageError(f"images must be a tensor (N, 3, H, W), got {given}")
    if not (images.requires_grad and torch.is_grad_enabled()):
        scores: Tensor = scorer.score(images)
        return scores
    if images.numel() and (images.min() < -OVERSHOOT or images.max() > 1 + OVERSHOOT):
        raise ImageError("images must lie in [0, 1]; rescale or clamp them, and do not normalise them")
    scores = scorer(images.to(next(scorer.parameters()).device))
    return scores
