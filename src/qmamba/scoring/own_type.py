"""A module that keeps its floating type when a module around it changes its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

# Modules, by identity, whose own method for another type is running in this thread.
_converted: ContextVar[tuple[int, ...]] = ContextVar("qmamba_converted", default=())


class OwnType(nn.Module):
    """Change the floating type only by methods of this module itself.

    ``outer.half()`` and ``outer.to(torch.bfloat16)`` reach every module within. A scorer within a network is
    often held elsewhere too, and its scores would change there. It follows an outer module to its device.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if id(self) in _converted.get():
            return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

        def kept(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(kept, recurse)  # type: ignore[no-any-return, no-untyped-call]

    @contextmanager
    def _converting(self) -> Iterator[None]:
        token = _converted.set((*_converted.get(), id(self)))
        try:
            yield
        finally:
            _converted.reset(token)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert as `torch.nn.Module.to` does."""
        with self._converting():
            return super().to(*args, **kwargs)

    def type(self, dst_type: Any) -> Self:
        """Convert as `torch.nn.Module.type` does."""
        with self._converting():
            return super().type(dst_type)

    def float(self) -> Self:
        """Convert as `torch.nn.Module.float` does."""
        with self._converting():
            return super().float()

    def double(self) -> Self:
        """Convert as `torch.nn.Module.double` does."""
        with self._converting():
            return super().double()

    def half(self) -> Self:
        """Convert as `torch.nn.Module.half` does."""
        with self._converting():
            return super().half()

    def bfloat16(self) -> Self:
        """Convert as `torch.nn.Module.bfloat16` does."""
        with self._converting():
            return super().bfloat16()
