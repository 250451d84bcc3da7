"""Metrics with pyiqa's interface: code for `pyiqa.create_metric` only needs another import.

Pyiqa itself is not needed.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ImageError
from ..images import as_list
from ..scoring import DEFAULT_MODEL, load

__all__ = ["QMambaMetric", "create_metric"]

REDUCTIONS = ("mean", "sum", "none")


class QMambaMetric(nn.Module):
    """A no-reference metric with the interface of pyiqa's metrics; see `create_metric`.

    Attributes:
        metric_name: name that the metric was created with.
        metric_mode: "NR", for no reference.
        lower_better: whether a lower score means a better photograph.
        score_range: ends of the scores as text, such as "0, 1"; `metric.net.score_range` has the numbers.
        as_loss: whether gradients flow to the images.
        loss_weight: factor of the loss, or None.
        loss_reduction: reduction of the loss, "mean", "sum" or "none".
        check_input_range: whether tensors must lie in [0, 1]; always False for a loss.
        net: the scorer.
    """

    def __init__(
        self,
        metric_name: str = DEFAULT_MODEL,
        as_loss: bool = False,
        loss_weight: float | Tensor | None = None,
        loss_reduction: Literal["mean", "sum", "none"] = "mean",
        device: str | torch.device | None = None,
        seed: int = 123,
        check_input_range: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if loss_reduction not in REDUCTIONS:
            raise ValueError(f"loss_reduction must be one of {', '.join(REDUCTIONS)}, got {loss_reduction!r}")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = load(metric_name, device=device, **kwargs)
        low, high = self.net.score_range
        self.metric_name = metric_name
        self.metric_mode = "NR"
        self.lower_better = self.net.lower_better
        self.score_range = f"{low:g}, {high:g}"
        self.as_loss = as_loss
        self.loss_weight = loss_weight
        self.loss_reduction = loss_reduction
        self.check_input_range = check_input_range and not as_loss
        self.seed = seed  # kept for compatibility: scoring is deterministic

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.net.parameters()).device

    def forward(self, target: Any, ref: Any = None, **kwargs: Any) -> Tensor:
        """Score one image or a batch.

        Args:
            target: a path, a PIL image, or a tensor (N, 3, H, W) or (N, 1, H, W) in [0, 1], or anything
                else that `qmamba.images.decode` takes; not a folder.
            ref: ignored.
            kwargs: ignored.

        Returns:
            (N, 1), float32 on the metric's device; a scalar for a loss with a reduction. The sign of a loss
            is not changed: if higher is better, minimise ``1 - metric(x)``.

        Raises:
            ImageError: an image that cannot be scored, or a tensor of another shape or range.
        """
        with torch.set_grad_enabled(self.as_loss):
            scores = self._scores(target)[:, None]
            if not self.as_loss:
                return scores
            weighted = scores if self.loss_weight is None else scores * self.loss_weight
            if self.loss_reduction == "none":
                return weighted
            return weighted.sum() if self.loss_reduction == "sum" else weighted.mean()

    def _scores(self, target: Any) -> Tensor:
        """Return scores (N,) on the metric's device."""
        if not isinstance(target, Tensor):
            images, single = as_list(target)
            if not single:
                raise ImageError("target must be one image or a tensor, got a sequence; use qmamba.score")
            return self.net.score(images).to(self.device)
        if target.ndim != 4 or target.shape[1] not in (1, 3):
            raise ImageError(f"target must be a tensor (N, 3, H, W), got shape {tuple(target.shape)}")
        if self.check_input_range:
            found: Tensor = self.net.score(target)
            return found.to(self.device)
        batch: Tensor = target.to(self.device).expand(-1, 3, -1, -1)
        scores: Tensor = self.net(batch)
        return scores


def create_metric(
    metric_name: str = DEFAULT_MODEL,
    as_loss: bool = False,
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> QMambaMetric:
    """Create a metric with the interface of `pyiqa.create_metric`.

    Args:
        metric_name: anything that `qmamba.load` takes: "lqmamba-n", a checkpoint folder, a Hub id.
        as_loss: whether gradients flow to the images and scores are reduced.
        device: device of the weights; by default the first GPU, or the CPU without one, as in pyiqa.
        kwargs: loss_weight, loss_reduction, check_input_range, seed (which has no effect), and options of
            `qmamba.load` such as adapter, protocol and checkpointing.

    Raises:
        QMambaError: as `qmamba.load`.
    """
    return QMambaMetric(metric_name, as_loss=as_loss, device=device, **kwargs)
