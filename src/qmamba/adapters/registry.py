"""Adaptation methods by name: each registers its class, and :func:`create` builds an adapter."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ..errors import AdapterError, near_names
from ..models.capabilities import TakesPrompts, require
from .base import Adapter, NoOptions


class _Kind(NamedTuple):
    adapter: Callable[[Any, Any], Adapter]
    options: type[Any]


A = TypeVar("A", bound=type[Adapter])
_KINDS: dict[str, _Kind] = {}


def register(method: str, options: type[Any] = NoOptions) -> Callable[[A], A]:
    """Register a subclass of :class:`Adapter`; :func:`create` calls it as ``cls(network, options)``."""

    def add(cls: A) -> A:
        cls.method = method
        _KINDS[method] = _Kind(cls, options)
        return cls

    return add


def _kinds() -> dict[str, _Kind]:
    """Return all methods; importing the modules beside this one registers theirs."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return _KINDS


def list_methods() -> list[str]:
    """Return the names that :func:`create` takes.

    >>> "style-prompt" in list_methods()
    True
    """
    return sorted(_kinds())


def create(method: str, model: nn.Module, **options: Any) -> Adapter:
    """Create an adapter for a network, on its device and in its type. A fresh one changes no output.

    Args:
        method: one of :func:`list_methods`.
        model: the base, from ``create_model`` or ``scorer.network``; it is not changed.
        options: options of the method, see ``docs/adapters.md``.

    Returns:
        A module whose parameters are exactly those that train.

    Raises:
        AdapterError: an unknown method or option, or an invalid value.
        CapabilityError: the network takes no adapters.

    >>> from qmamba.models import create_model
    >>> adapter = create("style-prompt", create_model("lqmamba-n"), prompts=6)
    >>> adapter.size
    Size(trained=157336, stored=83608)
    """
    with torch.device("cpu"):  # whatever the default device is
        adapter, weight = build(method, model, **options), next(model.parameters())
    return adapter.to(weight.device, weight.dtype).train(model.training)


def build(method: str, model: nn.Module, **options: Any) -> Adapter:
    """Build an adapter as :func:`create` does, on the current default device: without data on "meta"."""
    kinds = _kinds()
    if method not in kinds:
        raise AdapterError(f"no adapter method is named {method!r}; {near_names(method, list_methods())}")
    require(model, TakesPrompts, "adapters")
    kind = kinds[method]
    known = {field.name for field in dataclasses.fields(kind.options)}
    if unknown := sorted(options.keys() - known):
        raise AdapterError(
            f"{method} has no option {unknown[0]!r}; its options are {', '.join(sorted(known)) or 'none'}"
        )
    return kind.adapter(model, kind.options(**options))
