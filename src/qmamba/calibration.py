"""From a network's raw quality to a score between 0 and 1: monotone, smooth, a gradient everywhere."""

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

    A logistic curve instead of a line with a clamp: a clamp has no gradient outside its range, and a score
    used as a loss must always say which way is better.

    Attributes:
        slope: above 0, so that the order of images stays.
        offset: moves the curve.

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
                raise CheckpointError(f"calibration: {name} must be a finite number, not {value!r}")
        if self.slope <= 0:
            raise CheckpointError(f"calibration: slope must be above 0, not {self.slope!r}")

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Calibrated scores in [0, 1], of the shape of `raw`; float64 for float64 and float32 for all else.

        float32 holds no number between 1 - 6e-8 and 1, so that scores (and gradients) of raw values far
        outside those seen in training end at exactly 0 or 1.
        """
        raw = raw if raw.dtype == torch.float64 else raw.to(torch.float32)
        return torch.sigmoid(self.slope * raw + self.offset)

    def derivative(self, raw: torch.Tensor) -> torch.Tensor:
        """How fast the score rises with `raw`, of its shape and the type of the score.

        Examples:
            >>> Calibration(slope=2.0).derivative(torch.tensor([-1.0, 0.0, 1.0]))
            tensor([0.2100, 0.5000, 0.2100])
        """
        score = self(raw)
        return self.slope * score * (1 - score)

    def to_dict(self) -> dict[str, float]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`; CheckpointError when a field is missing or unknown."""
        if not isinstance(fields, Mapping) or set(fields) != {"slope", "offset"}:
            raise CheckpointError(f"calibration: expected an object with slope and offset, not {fields!r}")
        return cls(**fields)

    @classmethod
    def fit(
        cls,
        raw: torch.Tensor | np.ndarray | Sequence[float],
        mos: torch.Tensor | np.ndarray | Sequence[float],
    ) -> Calibration:
        """The curve through opinion scores that is best in the sense of least squares.

        Deterministic, in float64 on the CPU.

        Args:
            raw: (n,) raw outputs of the network, any float type and device, higher is better.
            mos: (n,) mean opinion scores, scaled to [0, 1].

        Returns:
            The calibration with the least sum of squared differences to `mos`.

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
        # On standardised values the search is well conditioned whatever the network's scale.
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


def _pairs(raw: Any, mos: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (
        values.detach().to("cpu", torch.float64).flatten()
        if isinstance(values, torch.Tensor)
        else torch.from_numpy(np.array(values, dtype=np.float64)).flatten()
        for values in (raw, mos)
    )
    if x.numel() != y.numel() or x.numel() < 2:
        raise RecipeError(
            f"calibration: needs two or more pairs, got {x.numel()} raw values and {y.numel()} MOS"
        )
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise RecipeError("calibration: raw values or MOS are not finite; has the training diverged?")
    if y.min() < 0 or y.max() > 1:
        raise RecipeError(f"calibration: MOS from {y.min():.4g} to {y.max():.4g}; scale them to [0, 1] first")
    covariance = ((x - x.mean()) * (y - y.mean())).sum()
    if float(covariance) <= 0:
        raise RecipeError(
            "calibration: raw values do not rise with MOS; train the network before calibrating it"
        )
    return x, y
