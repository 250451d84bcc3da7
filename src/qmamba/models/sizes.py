"""The architectures by name: registered functions with plain keyword arguments.

Widths and depths are the paper's; its "depth 4" and "depth 15" are the depths of the third stage.
Windows and drop-path rates are choices of this project, as the paper does not give them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import UnknownModelError
from .backbone import QMamba

WINDOWS = (2, 4, 7, 7)  # they divide the grids of a 224-pixel input: 56, 28, 14, 7


class Builder(Protocol):
    def __call__(self, **overrides: Any) -> QMamba: ...


_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Register a function that builds a network under a name for :func:`create_model`."""

    def add(builder: Builder) -> Builder:
        _BUILDERS[name] = builder
        return builder

    return add


def list_archs() -> list[str]:
    """Names that :func:`create_model` builds.

    >>> list_archs()
    ['lqmamba-b', 'lqmamba-n', 'lqmamba-s', 'lqmamba-t', 'qmamba-b', 'qmamba-s', 'qmamba-t']
    """
    return sorted(_BUILDERS)


def create_model(arch: str, **overrides: Any) -> QMamba:
    """Build an untrained network.

    Args:
        arch: one of :func:`list_archs`.
        overrides: ``widths``, ``depths``, ``windows``, ``drop_path``, ``mlp_ratio`` in place of the
            architecture's own.

    Raises:
        UnknownModelError: no architecture has this name.
        ValueError: an override that does not exist or makes no network.

    >>> net = create_model("qmamba-t", widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))
    >>> sum(p.numel() for p in net.parameters())
    456977
    """
    if not isinstance(arch, str) or arch not in _BUILDERS:
        near = difflib.get_close_matches(str(arch).lower(), _BUILDERS, n=3, cutoff=0.4) or list_archs()
        raise UnknownModelError(f"no architecture is called {arch!r}; near names: {', '.join(near)}")
    overrides = {name: _plain(value) for name, value in overrides.items()}
    try:
        model = _BUILDERS[arch](**overrides)
    except TypeError as error:
        raise ValueError(f"{arch} cannot be built with {sorted(overrides)}: {error}") from error
    model.arch = arch
    model.overrides = overrides
    return model


def _plain(value: Any) -> Any:
    """Numbers of numpy's, and tuples or arrays of them, as the Python numbers and lists that JSON holds."""
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, (Sequence, np.ndarray)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def doubling(width: int) -> tuple[int, int, int, int]:
    """Widths of four stages, each twice the one before."""
    return width, 2 * width, 4 * width, 8 * width


def _plan(width: int, third: int, drop_path: float, overrides: dict[str, Any]) -> dict[str, Any]:
    return {"widths": doubling(width), "depths": (2, 2, third, 2), "drop_path": drop_path, **overrides}


@register("qmamba-t")
def qmamba_t(**overrides: Any) -> QMamba:
    """QMamba-T: 27,993,409 parameters."""
    return QMamba(**_plan(96, 4, 0.2, overrides))


@register("qmamba-s")
def qmamba_s(**overrides: Any) -> QMamba:
    """QMamba-S: 49,379,521 parameters."""
    return QMamba(**_plan(96, 15, 0.3, overrides))


@register("qmamba-b")
def qmamba_b(**overrides: Any) -> QMamba:
    """QMamba-B: 87,533,825 parameters."""
    return QMamba(**_plan(128, 15, 0.6, overrides))


@register("lqmamba-t")
def lqmamba_t(**overrides: Any) -> QMamba:
    """LQMamba-T: 29,877,841 parameters."""
    return QMamba(**_plan(96, 4, 0.2, {"windows": WINDOWS, **overrides}))


@register("lqmamba-s")
def lqmamba_s(**overrides: Any) -> QMamba:
    """LQMamba-S: 52,912,369 parameters."""
    return QMamba(**_plan(96, 15, 0.3, {"windows": WINDOWS, **overrides}))


@register("lqmamba-b")
def lqmamba_b(**overrides: Any) -> QMamba:
    """LQMamba-B: 93,792,577 parameters."""
    return QMamba(**_plan(128, 15, 0.6, {"windows": WINDOWS, **overrides}))


@register("lqmamba-n")
def lqmamba_n(**overrides: Any) -> QMamba:
    """LQMamba-N, this project's small one: 3,384,177 parameters."""
    return QMamba(**_plan(32, 4, 0.1, {"windows": WINDOWS, **overrides}))
