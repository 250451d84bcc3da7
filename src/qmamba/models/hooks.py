"""Whether a module is as its family made it: a shortcut past ``module(x)`` is allowed only then."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

PLAIN = (Tensor, nn.Parameter)


def hooked(*modules: nn.Module) -> bool:
    """Return whether one of these very modules has hooks or a ``forward`` of its own.

    Hooks of all modules count, too.
    """
    return _global_hooks() or any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        for module in modules
    )


def any_hooked(*parts: object) -> bool:
    """Return whether a module among these, or within them, has hooks; others than modules are passed over."""
    return hooked(*(m for part in parts if isinstance(part, nn.Module) for m in part.modules()))


def untouched(module: nn.Module, kinds: Collection[type]) -> bool:
    """Return whether nobody has changed a module or one within it.

    Hooks, a replaced ``forward``, parametrizations (which change a module's class), submodules of classes
    that are not in ``kinds``, and parameters that are tensors of another class are all changes.
    """
    return all(
        type(m) in kinds
        and not hooked(m)
        and all(type(p) in PLAIN or p is None for p in m._parameters.values())
        for m in module.modules()
    )


def _global_hooks() -> bool:
    """Return whether hooks of all modules are registered; a compiler that traces cares for them itself."""
    compiling = torch.compiler.is_compiling()
    return not compiling and bool(torch_module._has_any_global_hook())  # type: ignore[no-untyped-call]
