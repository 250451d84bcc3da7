"""The shape of pyiqa's metrics: code that was written for `pyiqa.create_metric` changes its import.

Nothing of pyiqa is needed here.
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
    """A no-reference metric as pyiqa has them, from `create_metric`.

    Attributes:
        metric_name: the name that it was made with.
        metric_mode: "NR": there is no reference image.
        lower_better: False: a higher score means a better photograph.
        score_range: "0, 1", a text as in pyiqa. `metric.net.score_range` has the numbers.
        as_loss: whether gradients flow to the images.
        loss_weight: None, or what a loss is multiplied by.
        loss_reduction: "mean", "sum" or "none", of a loss.
        check_input_range: whether tensors must lie in [0, 1]; never for a loss.
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
            raise ValueError(f"loss_reduction must be one of {', '.join(REDUCTIONS)}, not {loss_reduction!r}")
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
        self.seed = seed  # scores have nothing random

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def forward(self, target: Any, ref: Any = None, **kwargs: Any) -> Tensor:
        """Scores of one image or of a batch.

        Args:
            target: a path, a PIL image, or a tensor (N, 3, H, W) or (N, 1, H, W) in [0, 1]. Whatever else
                `qmamba.images.decode` takes will do as well; a folder will not.
            ref: not looked at.
            kwargs: not looked at.

        Returns:
            (N, 1), float32 on the metric's device; of a loss with a reduction a scalar. A loss is not turned
            around: higher is better, so use ``1 - metric(x)``.

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
        """(N,), on the metric's device."""
        if not isinstance(target, Tensor):
            images, single = as_list(target)
            if not single:
                raise ImageError("target: pass one image, or a batch as a tensor; qmamba.score takes lists")
            return self.net.score(images).to(self.device)
        if target.ndim != 4 or target.shape[1] not in (1, 3):
            raise ImageError(f"target: expected a tensor (N, 3, H, W), not shape {tuple(target.shape)}")
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
    """A metric that is used as those of `pyiqa.create_metric` are.

    Args:
        metric_name: what `qmamba.load` takes: "lqmamba-n", a checkpoint folder, a Hub id.
        as_loss: let gradients flow to the images, and reduce.
        device: by default the first GPU, and the CPU where there is none, as in pyiqa.
        kwargs: loss_weight, loss_reduction, check_input_range; seed, which nothing here depends on; and
            what else `qmamba.load` takes, such as adapter, protocol and checkpointing.

    Raises:
        QMambaError: as `qmamba.load`.
    """
    return QMambaMetric(metric_name, as_loss=as_loss, device=device, **kwargs)
