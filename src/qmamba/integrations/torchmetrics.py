"""A torchmetrics `Metric` and its functional twin: ``pip install "qmamba[integrations]"``."""

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
OVERSHOOT = 1e-3  # what float arithmetic leaves outside [0, 1]; scorers clip it without a word


class QMambaScore(Metric):
    """No-reference quality of images by QMamba: the mean, the sum, or every score, over all updates.

    As input `forward` and `update` take ``images``, a tensor (N, 3, H, W): floats in [0, 1], or uint8. As
    output `forward` and `compute` give a scalar in [0, 1] for "mean", a scalar for "sum", and (N,) scores in
    the order of the updates for "none"; all float32, higher is better. Between processes "none" puts one
    process's scores after the other's. Without images the mean is NaN, the sum 0, and of scores there are 0.

    The scores are those of `Scorer.score`. The network is loaded once, moves with ``.to(device)``, and is
    neither in the metric's state nor among the parameters of a module that has the metric.

    Args:
        model: a scorer, or what `qmamba.load` takes.
        reduction: "mean", "sum" or "none".
        kwargs: those of every `torchmetrics.Metric`.

    Raises:
        ValueError: another reduction, or (ImageError) images of another shape, type or range.
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
        # Not a submodule: metrics are parts of models, whose checkpoints should not have the network.
        self.__dict__["scorer"] = model if isinstance(model, Scorer) else load(model)
        if reduction == "none":
            self.add_state("scores", default=[], dist_reduce_fx="cat")
        else:
            self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
            self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Score some images (N, 3, H, W)."""
        scores = _scores(images, self.scorer).to(self.device)
        if self.reduction == "none":
            self.scores.append(scores)
        else:
            self.total = self.total + scores.sum()
            self.images = self.images + len(scores)

    def compute(self) -> Tensor:
        """The mean, the sum, or the scores of all images since the last `reset`."""
        if self.reduction == "none":
            # After a synchronisation it is one tensor.
            scores = [self.scores] if isinstance(self.scores, Tensor) else self.scores
            return torch.cat(scores) if scores else torch.zeros(0, device=self.device)
        return self.total if self.reduction == "sum" else self.total / self.images

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot values of `forward` or `compute`, by default the present one, between the score's bounds.

        Args:
            val: one value or several, in the order of time.
            ax: matplotlib axes to draw on.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> QMambaScore:
        self.scorer._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, exclude_state)
        return self


def qmamba_score(images: Tensor, reduction: Reduction = "mean", model: Model = DEFAULT_MODEL) -> Tensor:
    """No-reference quality of images by QMamba; `QMambaScore` for one call.

    Args:
        images: (N, 3, H, W), floats in [0, 1] or uint8. Gradients flow to floats that want them.
        reduction: "mean", "sum" or "none".
        model: a scorer, or what `qmamba.load` takes; of a name the scorer is loaded once in a process, on the
            CPU.

    Returns:
        A scalar, or (N,) for "none", float32 on the device of the images; higher is better.

    Raises:
        ValueError: another reduction, or (ImageError) images of another shape, type or range.
        QMambaError: as `qmamba.load`.
    """
    _check_reduction(reduction)
    scores = _scores(images, shared(model)).to(images.device)
    if reduction == "none":
        return scores
    return scores.sum() if reduction == "sum" else scores.mean()


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")


def _scores(images: Tensor, scorer: Scorer) -> Tensor:
    """(N, 3, H, W) → (N,): image by image, and so the same bits whatever else is in the batch; together, and
    differentiable, where a gradient is wanted."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        given = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ImageError(f"images: expected a tensor (N, 3, H, W), not {given}")
    if not (images.requires_grad and torch.is_grad_enabled()):
        scores: Tensor = scorer.score(images)
        return scores
    if images.numel() and (images.min() < -OVERSHOOT or images.max() > 1 + OVERSHOOT):
        raise ImageError("images: values outside [0, 1]; rescale or clamp them, and do not normalise them")
    scores = scorer(images.to(next(scorer.parameters()).device))
    return scores
