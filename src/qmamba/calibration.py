"""Map a network's raw quality to a score: monotone and smooth, with a gradient everywhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from qmamba.errors import CheckpointError, RecipeError


@dataclasses.dataclass(frozen=True)
class Calibration:
    """score = 1 / (1 + exp(-(slope · raw + offset))).

    A logistic curve rather than a clamped line: a clamp has no gradient outside its range, and a score
    used as a loss needs one everywhere.

    Attributes:
        slope: above 0, which keeps the order of images.
        offset: shifts the curve.

    Raises:
        CheckpointError: for numbers that are not finite, or a slope that is not above 0.

    Examples:
        >>> Calibration(slope=2.0)(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.1192, 0.5000, 0.8808])
    """

    slope: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name in ("slope", "offset"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise CheckpointError(f"calibration: {name} must be a finite number, got {value!r}")
        if self.slope <= 0:
            raise CheckpointError(f"calibration: slope must be above 0, got {self.slope!r}")

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Return calibrated scores in [0, 1], in the shape of `raw`; float64 for float64, else float32.

        float32 has no number between 1 - 6e-8 and 1: scores of raw values far outside the training range are
        exactly 0 or 1, and their gradients are 0.
        """
        raw = raw if raw.dtype == torch.float64 else raw.to(torch.float32)
        return torch.sigmoid(self.slope * raw + self.offset)

    def derivative(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the derivative of the score with respect to `raw`, in its shape and the type of the score.

        Examples:
            >>> Calibration(slope=2.0).derivative(torch.tensor([-1.0, 0.0, 1.0]))
            tensor([0.2100, 0.5000, 0.2100])
        """
        score = self(raw)
        return self.slope * score * (1 - score)

    def to_dict(self) -> dict[str, float]:
        """Return all fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Calibration:
        """Return the inverse of `to_dict`; CheckpointError when a field is missing or unknown."""
        if not isinstance(fields, Mapping) or set(fields) != {"slope", "offset"}:
            raise CheckpointError(f"calibration: expected an object with slope and offset, got {fields!r}")
        return cls(**fields)

    @classmethod
    def fit(
        cls,
        raw: torch.Tensor | np.ndarray | Sequence[float],
        mos: torch.Tensor | np.ndarray | Sequence[float],
    ) -> Calibration:
        """Fit the curve to opinion scores by least squares; deterministic, in float64 on the CPU.

        Args:
            raw: (n,) raw outputs of the network, any float type and device, higher is better.
            mos: (n,) mean opinion scores, scaled to [0, 1].

        Returns:
            The calibration with the smallest sum of squared differences to `mos`.

        Raises:
            RecipeError: for fewer than two pairs, unequal lengths, values that are not finite, `mos` outside
                [0, 1], or `raw` that is constant or falls as `mos` rises.

        Examples:
            >>> raw = torch.linspace(-2, 2, 50)
            >>> fitted = Calibration.fit(raw, torch.sigmoid(1.5 * raw + 0.25))
            >>> round(fitted.slope, 4), round(fitted.offset, 4)
            (1.5, 0.25)
        """
        x, y = _pairs(raw, mos)
        # Standardised values keep the search well conditioned at any scale of the network.
        centre, spread = x.mean(), x.std()
        x = (x - centre) / spread
        start = torch.logit(y.clamp(0.02, 0.98))
        slope = (x * (start - start.mean())).mean()
        parameters = torch.stack([slope.clamp_min(1e-2).log(), start.mean()]).requires_grad_()
        search = torch.optim.LBFGS(
            [parameters],
            max_iter=200,
            tolerance_grad=1e-12,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )

        def loss() -> torch.Tensor:
            search.zero_grad()
            error = torch.sigmoid(parameters[0].exp() * x + parameters[1]) - y
            value = error.square().mean()
            torch.autograd.backward(value)
            return value

        with torch.enable_grad():
            search.step(loss)  # type: ignore[no-untyped-call]
        found = float(parameters[0].detach().exp() / spread)
        return cls(slope=found, offset=float(parameters[1].detach()) - found * float(centre))


@dataclasses.dataclass(frozen=True)
class Scale:
    """A model's scores: calibrated quality in the model's own range and direction.

    Attributes:
        calibration: from raw quality to [0, 1], higher is better.
        low, high: lowest and highest score.
        lower_better: whether the best quality has the score `low`.

    Examples:
        >>> raw = torch.tensor([-1.0, 0.0, 1.0])
        >>> Scale(Calibration(), 0, 100)(raw)
        tensor([26.8941, 50.0000, 73.1059])
        >>> Scale(Calibration(), 0, 100, lower_better=True)(raw)
        tensor([73.1059, 50.0000, 26.8941])
    """

    calibration: Calibration
    low: float = 0.0
    high: float = 1.0
    lower_better: bool = False

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Return scores in [low, high], in the shape of `raw`; float64 for float64, else float32."""
        scores = self.calibration(raw)
        if self._is_plain:
            return scores
        span = self.high - self.low
        return self.high - span * scores if self.lower_better else self.low + span * scores

    def derivative(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the derivative of the score with respect to `raw`, in its shape and the score's type."""
        slopes = self.calibration.derivative(raw)
        if self._is_plain:
            return slopes
        return slopes * ((self.low - self.high) if self.lower_better else (self.high - self.low))

    @property
    def _is_plain(self) -> bool:
        return (self.low, self.high, self.lower_better) == (0, 1, False)


def _pairs(raw: Any, mos: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (
        values.detach().to("cpu", torch.float64).flatten()
        if isinstance(values, torch.Tensor)
        else torch.from_numpy(np.array(values, dtype=np.float64)).flatten()
        for values in (raw, mos)
    )
    if x.numel() != y.numel() or x.numel() < 2:
        raise RecipeError(
            f"calibration: needs at least two pairs, got {x.numel()} raw values and {y.numel()} MOS"
        )
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise RecipeError("calibration: raw values and MOS must be finite; has the training diverged?")
    if y.min() < 0 or y.max() > 1:
        raise RecipeError(f"calibration: MOS must be in [0, 1], got {y.min():.4g} to {y.max():.4g}; scale it")
    covariance = ((x - x.mean()) * (y - y.mean())).sum()
    if float(covariance) <= 0:
        raise RecipeError(
            "calibration: raw values must rise with MOS; train the network before calibrating it"
        )
    return x, y
