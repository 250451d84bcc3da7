"""Linear recurrences over thousands of steps in a few dozen wide operations.

A route of L positions is laid out as S segments of T steps, in "slots" (T, S): slot (t, s) holds position
s·T + t of the route. One step advances all segments at once, so that L sequential steps become about 2·√L
wide ones:

    1. every segment scans from a zero state, and keeps the running product of its decays;
    2. the states at the segments' ends are themselves a scan, S positions long (solved the same way);
    3. each segment adds the state it should have started from, times its running products.

Products of decays exp(Δ A), A < 0, lie in [0, 1] and can only underflow to the right answer, 0; nothing is
divided by one, and no positive sum is exponentiated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..routes import Route


@dataclass(frozen=True)
class Slots:
    """How the L positions of a route lie in T·S slots; the last segment holds ``last`` of its T steps."""

    steps: int
    segments: int
    last: int

    def active(self, t: int) -> int:
        """Return how many segments have a step t."""
        return self.segments if t < self.last else self.segments - 1


def slots_of(length: int) -> Slots:
    """Return the layout of a route: about √L steps, fewer for long routes, whose ends are a scan."""
    steps = round(math.sqrt(length) / 1.4) if length > 64 else math.isqrt(length)
    segments = -(-length // steps)
    return Slots(steps, segments, length - (segments - 1) * steps)


def slot_index(route: Route, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return slot → position (T·S,) and position → slot (L,) of a forward route, on the device of ``like``.

    Spare slots repeat the last position.
    """
    if like.device.type == "cpu" or type(like) is not Tensor:  # fake tensors of a tracer must not be kept
        return _on_device(route, height, width, like.device)
    return _resident(route, height, width, like.device)


def _on_device(route: Route, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    to_position, to_slot = _slot_arrays(route, height, width)
    return torch.as_tensor(to_position, device=device), torch.as_tensor(to_slot, device=device)


_resident = lru_cache(maxsize=256)(_on_device)


@lru_cache(maxsize=256)
def _slot_arrays(route: Route, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as NumPy arrays, for the reason given in `Route.visits`."""
    length = height * width
    slots = slots_of(length)
    position = np.arange(slots.segments * slots.steps).reshape(slots.segments, slots.steps).T  # (T, S)
    order = route.visits(height, width)
    to_position = order[position.reshape(-1).clip(max=length - 1)]
    visited = np.empty(length, dtype=np.int64)
    visited[order] = np.arange(length)  # when each position is visited
    to_slot = visited % slots.steps * slots.segments + visited // slots.steps
    return to_position, to_slot


def recur_(a: Tensor, h: Tensor, slots: Slots, reverse: bool) -> None:
    """Compute in place h_t ← a_t h_{t-1} + h_t along the slots; a and h are (G, T, S, D), a is overwritten.

    With ``reverse``, h_t ← a_t h_{t+1} + h_t. Spare slots are left as they are.
    """
    T, S = slots.steps, slots.segments
    hs, as_ = h.unbind(1), a.unbind(1)
    for t in range(T - 2, -1, -1) if reverse else range(1, T):
        before = t + 1 if reverse else t - 1
        n = slots.active(max(t, before))
        if n == S:
            hs[t].addcmul_(as_[t], hs[before])
            as_[t].mul_(as_[before])
        elif n:
            hs[t][:, :n].addcmul_(as_[t][:, :n], hs[before][:, :n])
            as_[t][:, :n].mul_(as_[before][:, :n])
    if S == 1:
        return
    if reverse:
        ends, products, carry, rest = hs[0], as_[0], slice(1, S), slice(0, S - 1)
    else:  # only full segments hand a state on, and they end at step T - 1
        ends, products, carry, rest = hs[T - 1], as_[T - 1], slice(0, S - 1), slice(1, S)
    state = _recur_flat(products[:, carry], ends[:, carry], reverse)  # (G, S-1, D)
    if slots.last == T or reverse:
        # reversed, spare slots of the last segment are never in `rest`
        h[:, :, rest].addcmul_(a[:, :, rest], state[:, None])
        return
    h[:, : slots.last, rest].addcmul_(a[:, : slots.last, rest], state[:, None])
    h[:, slots.last :, 1 : S - 1].addcmul_(a[:, slots.last :, 1 : S - 1], state[:, None, : S - 2])


def _recur_flat(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """Return h_t = a_t h_{t∓1} + b_t over dimension 1 of (G, L, D); the arguments are not changed."""
    length = b.shape[1]
    if length <= 24:
        a_t, h = a.unbind(1), list(b.unbind(1))
        for t in range(length - 2, -1, -1) if reverse else range(1, length):
            h[t] = torch.addcmul(h[t], a_t[t], h[t + 1 if reverse else t - 1])
        return torch.stack(h, dim=1)
    slots = slots_of(length)
    spare = slots.steps * slots.segments - length

    def lay(v: Tensor) -> Tensor:  # (G, L, D) → (G, T, S, D)
        v = F.pad(v, (0, 0, 0, spare))  # after the last: nothing reads it
        return rearrange(v, "g (s t) d -> g t s d", s=slots.segments).contiguous()

    a_laid, h_laid = lay(a), lay(b)
    recur_(a_laid, h_laid, slots, reverse)
    return rearrange(h_laid, "g t s d -> g (s t) d")[:, :length]
