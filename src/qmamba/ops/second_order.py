"""Derivatives of any order, for operations whose backward is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def differentiable_gradients(
    function: Callable[..., Tensor], given: Sequence[Tensor], g: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of an operation by autograd, in a backward with ``create_graph=True``.

    Args:
        function: computes the same from the same tensors, by operations that torch can differentiate.
        given: the tensors that the forward was given.
        g: the cotangent of its result.
        wanted: which gradients to return; None stands for the others.
    """
    # Aliases: one tensor may have been computed from another, and each gradient is that of its own place.
    places = [t.view_as(t) for t in given]
    leaves = [t for t, w in zip(places, wanted, strict=True) if w]
    found = iter(torch.autograd.grad(function(*places), leaves, g, create_graph=True))
    return tuple(next(found) if w else None for w in wanted)


def recomputed(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Return ``function(*tensors)``, of which only the tensors are kept for derivatives of any order.

    Activation checkpointing for transforms of ``torch.func``, which `torch.utils.checkpoint` does not take.
    The function must be made of operations that torch can differentiate.
    """
    if forward_ad._current_level >= 0:  # which keeps nothing
        return function(*tensors)
    return _Recomputed.apply(function, *tensors)  # type: ignore[no-untyped-call]


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Any], *tensors: Tensor) -> Any:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Any, ...]:
        pulled = recomputed(_pullback(ctx.function, len(g)), *g, *ctx.saved_tensors)
        return None, *pulled


def _pullback(function: Callable[..., Any], outputs: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return the gradients of a function, as a function of its cotangents and its arguments."""

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        g, arguments = tensors[:outputs], tensors[outputs:]
        result, pull, *_ = torch.func.vjp(function, *arguments)
        pulled: tuple[Tensor, ...] = pull(g if isinstance(result, tuple) else g[0])
        return pulled

    return gradients
