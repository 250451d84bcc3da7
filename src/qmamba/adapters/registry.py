"""The methods of adaptation by name: each registers its class, and :func:`create` makes an adapter of it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ..errors import AdapterError
from ..models.qmamba import QMamba
from .base import Adapter, NoOptions


class _Kind(NamedTuple):
    adapter: Callable[[QMamba, Any], Adapter]
    options: type[Any]


A = TypeVar("A", bound=type[Adapter])
_KINDS: dict[str, _Kind] = {}


def register(method: str, options: type[Any] = NoOptions) -> Callable[[A], A]:
    """Register a subclass of :class:`Adapter`, which :func:`create` calls as ``cls(network, options)``."""

    def add(cls: A) -> A:
        cls.method = method
        _KINDS[method] = _Kind(cls, options)
        return cls

    return add


def _kinds() -> dict[str, _Kind]:
    """All that are registered; the modules beside this one register theirs when they are imported."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return _KINDS


def list_methods() -> list[str]:
    """Names that :func:`create` takes.

    >>> "style-prompt" in list_methods()
    True
    """
    return sorted(_kinds())


def create(method: str, model: QMamba, **options: Any) -> Adapter:
    """A fresh adapter for a network, on its device and in its floating type. It changes no output yet.

    Args:
        method: one of :func:`list_methods`.
        model: the base, from ``create_model`` or ``scorer.network``. It is left as it is.
        options: those of the method, see ``docs/adapters.md``.

    Returns:
        A module whose parameters are exactly those that train.

    Raises:
        AdapterError: no such method, an option that it does not have, or a value that it cannot have.

    >>> from qmamba.models import create_model
    >>> adapter = create("style-prompt", create_model("lqmamba-n"), prompts=6)
    >>> adapter.size
    Size(trained=157336, stored=83608)
    """
    adapter, weight = build(method, model, **options), next(model.parameters())
    return adapter.to(weight.device, weight.dtype).train(model.training)


def build(method: str, model: QMamba, **options: Any) -> Adapter:
    """:func:`create`, wherever torch puts new tensors at the moment: on the device "meta" it has no data."""
    kinds = _kinds()
    if method not in kinds:
        near = difflib.get_close_matches(str(method), kinds, n=2, cutoff=0.4) or list_methods()
        raise AdapterError(f"no adapter is called {method!r}; near names: {', '.join(near)}")
    if not isinstance(model, QMamba):
        raise AdapterError(f"adapters are for networks of create_model, not for a {type(model).__name__}")
    kind = kinds[method]
    known = {field.name for field in dataclasses.fields(kind.options)}
    if unknown := sorted(options.keys() - known):
        raise AdapterError(
            f"{method} has no option {unknown[0]!r}; its options are {', '.join(sorted(known)) or 'none'}"
        )
    return kind.adapter(model, kind.options(**options))
