"""The architectures by name: records that a family of networks registers when it is imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import nn

from ..errors import UnknownModelError
from ..images import Preprocessing
from ..protocol import Protocol

Output: TypeAlias = Literal["number", "levels", "words"]
"""What a network returns: one number, a distribution over rating levels, or text."""


@dataclass(frozen=True)
class Architecture:
    """What the library needs to know about an architecture.

    Args:
        name: as :func:`create_model` takes it.
        build: returns an untrained network, from keyword arguments of its own.
        preprocessing: default of a checkpoint of this architecture.
        protocol: default of a checkpoint of this architecture.
        convert: loads a published state dict into a network and returns a report; None where no weights are
            published in another format.
        output: what the network returns.
    """

    name: str
    build: Callable[..., nn.Module]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    protocol: Protocol = field(default_factory=Protocol)
    convert: Callable[[Any, Mapping[str, Any]], Any] | None = None
    output: Output = "number"


_ARCHITECTURES: dict[str, Architecture] = {}


def register(architecture: Architecture) -> Architecture:
    """Register an architecture for :func:`create_model`, and return it.

    Raises:
        ValueError: the name is taken.
    """
    if architecture.name in _ARCHITECTURES:
        raise ValueError(f"architecture {architecture.name!r} is registered already; choose another name")
    _ARCHITECTURES[architecture.name] = architecture
    return architecture


def list_archs() -> list[str]:
    """Names that :func:`create_model` builds.

    >>> list_archs()
    ['lqmamba-b', 'lqmamba-n', 'lqmamba-s', 'lqmamba-t', 'qmamba-b', 'qmamba-s', 'qmamba-t']
    """
    return sorted(_ARCHITECTURES)


def get_architecture(name: str) -> Architecture:
    """Return the record of an architecture.

    Raises:
        UnknownModelError: no architecture has this name; near names are listed.
    """
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        near = difflib.get_close_matches(str(name).lower(), _ARCHITECTURES, n=3, cutoff=0.4) or list_archs()
        raise UnknownModelError(f"no architecture is called {name!r}; near names: {', '.join(near)}")
    return _ARCHITECTURES[name]


def create_model(arch: str, **overrides: Any) -> nn.Module:
    """Build an untrained network.

    Args:
        arch: one of :func:`list_archs`.
        overrides: keyword arguments of the architecture in place of its own. QMamba's are ``widths``,
            ``depths``, ``windows``, ``drop_path`` and ``mlp_ratio``.

    Returns:
        The network, with ``arch`` and ``overrides`` as attributes.

    Raises:
        UnknownModelError: no architecture has this name.
        ValueError: an override that does not exist or makes no network.

    >>> net = create_model("qmamba-t", widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))
    >>> sum(p.numel() for p in net.parameters())
    456977
    """
    architecture = get_architecture(arch)
    overrides = {name: _plain(value) for name, value in overrides.items()}
    try:
        model = architecture.build(**overrides)
    except TypeError as error:
        raise ValueError(f"{arch} cannot be built with {sorted(overrides)}: {error}") from error
    for name, value in (("arch", arch), ("overrides", overrides)):
        setattr(model, name, value)
    return model


def _plain(value: Any) -> Any:
    """Numbers of numpy's, and tuples or arrays of them, as the Python numbers and lists that JSON holds."""
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, (Sequence, np.ndarray)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
