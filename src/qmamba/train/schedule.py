"""Learning rates as functions of the step, counted from 0."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, peak: float, warmup: float, cooldown: float | None = None) -> float:
    """Return the rate of a linear warm-up, a plateau, and a cosine to zero.

    Args:
        step: zero-based.
        steps: of the whole training.
        peak: highest rate.
        warmup: share of all steps in which the rate rises.
        cooldown: share of all steps, at the end, in which it falls; by default all that follow the warm-up.
    """
    progress = (step + 1) / steps
    if progress <= warmup:
        return peak * progress / warmup
    cooldown = 1 - warmup if cooldown is None else cooldown
    if progress <= 1 - cooldown:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - (1 - cooldown)) / cooldown))


def cosine(step: int, steps: int, peak: float) -> float:
    """Return the rate that falls from the peak, at step 0, to zero after the last step, along a cosine.

    >>> [round(cosine(step, 4, 1.0), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return peak * 0.5 * (1 + math.cos(math.pi * step / steps))


def step_decay(step: int, peak: float, warmup_steps: float, decay_steps: int) -> float:
    """Return the rate that rises linearly over ``warmup_steps``, and is divided by ten every ``decay_steps``.

    Decays are counted from step 0: after a warm-up of ``decay_steps`` the rate is a tenth of the peak.
    """
    if step < warmup_steps:
        return peak * min(1.0, (step + 1) / warmup_steps)
    return peak * 0.1 ** (step // decay_steps)
