"""Whether a module is unmodified: a shortcut past ``module(x)`` is allowed only then."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

PLAIN = (Tensor, nn.Parameter, type(None))


def hooked(*modules: nn.Module) -> bool:
    """Return whether one of these very modules has hooks or a ``forward`` of its own.

    Hooks of all modules count, too.
    """
    return _global_hooks() or any([hooked_itself(m) for m in modules])  # noqa: C419  # torch.compile traces it


def any_hooked(*parts: object) -> bool:
    """Return whether a module among these, or within them, has hooks; anything but modules is ignored."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return _global_hooks() or any(hooked_itself(module) for part in modules for module in _within(part))


def untouched(module: nn.Module, kinds: Collection[type]) -> bool:
    """Return whether a module and all modules within it are unchanged.

    Hooks, a replaced ``forward``, parametrizations (which change a module's class), submodules of classes
    that are not in ``kinds``, and parameters that are tensors of another class are all changes.
    """
    return not _global_hooks() and all(
        type(m) in kinds and not hooked_itself(m) and all(type(p) in PLAIN for p in m._parameters.values())
        for m in _within(module)
    )


def hooked_itself(module: nn.Module) -> bool:
    """Return whether this very module has hooks or a ``forward`` of its own, hooks of all modules aside."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _within(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and those within it; quicker than ``modules()``, since this is asked in every call."""
    stack: list[nn.Module | None] = [module]
    while stack:
        found = stack.pop()
        if found is not None:
            yield found
            stack += found._modules.values()


def _global_hooks() -> bool:
    """Return whether hooks of all modules are registered; a tracing compiler handles them itself."""
    hooks = (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    )  # `_has_any_global_hook`, which says the same, is not in torch 2.5
    return not torch.compiler.is_compiling() and any(hooks)
