"""Calibration of a trained network: from its raw quality of crops to MOS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calibration import Calibration
from ..metrics import plcc


def fit_calibration(raw: Sequence[Tensor], mos: Sequence[float]) -> Calibration | None:
    """Return the curve from raw quality to MOS, None where raw quality does not rise with MOS.

    Args:
        raw: (n,) raw quality of the crops of each photograph.
        mos: of each photograph, in [0, 1].

    Raises:
        RecipeError: too few photographs, or values that are not finite.
    """
    pairs = [(value, score) for parts, score in zip(raw, mos, strict=True) for value in parts.tolist()]
    values, scores = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T
    if len(pairs) > 1 and not plcc(values, scores) > 0 and bool(torch.isfinite(values).all()):
        return None
    return Calibration.fit(values, scores)
