"""The base class of adapters: how they act on a network, and which of their tensors are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..models.capabilities import AdapterHost

PAPER_WIDTH = 192  # channels of the first stage's output in the smallest of the paper's networks


class Size(NamedTuple):
    """Number of elements in an adapter: those that train, and those in its file."""

    trained: int
    stored: int


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


class Adapter(nn.Module):
    """Trainable modules beside a frozen network. Its parameters are exactly those that train.

    An adapter is never merged into the network: ``adapter(network, images)`` is the adapted network and
    ``network(images)`` the plain one. One network therefore serves any number of adapters and threads, and
    there is nothing to undo.

    A subclass passes ``prompts``, ``head``, or both. Where neither is enough, it overrides :meth:`forward`
    and :meth:`positions` and sets :attr:`start` to None.

    Args:
        options: the method's options, a frozen dataclass with fields that JSON can hold.
        prompts: one module per stage, applied to its output (B, H, W, C); it keeps the shape.
        head: replaces the network's head, and takes what it takes.

    Attributes:
        method: registered name.
        lr: recommended learning rate.
        start: the first adapted stage: nothing before its prompt (or head) changes; None where anything may.
    """

    method: ClassVar[str] = ""
    lr: ClassVar[float] = 1e-3
    start: int | None

    def __init__(
        self, options: Any, *, prompts: nn.ModuleList | None = None, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.options = options
        self.prompts = prompts
        self.head = None if head is None else head.requires_grad_(True)
        self.start = None if prompts is None and head is None else 0 if prompts is not None else -1

    def forward(self, network: AdapterHost, images: Tensor) -> Tensor:
        """Return raw quality (B, 1) of the adapted network for normalised images (B, 3, H, W)."""
        raw: Tensor = network(images, self.prompts, self.head)
        return raw

    def positions(self, network: AdapterHost, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of :meth:`forward`, and the values of positions (B, h, w), whose mean it is."""
        return network.forward_positions(images, self.prompts, self.head)

    def before(self, network: AdapterHost, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the part of :meth:`forward` that does not depend on the adapter's parameters.

        The tensors may be kept. The first dimension of each is that of the images.
        """
        if self.start is None:
            return (images,)
        return network.forward_until(images, self.start % len(network.out_widths))

    def after(self, network: AdapterHost, kept: Sequence[Tensor]) -> Tensor:
        """Compute the rest: ``after(network, before(network, images))`` is ``forward(network, images)``."""
        if self.start is None:
            return self(network, *kept)  # type: ignore[no-any-return]
        return network(kept, self.prompts, self.head, start=self.start % len(network.out_widths))

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors to store: the parameters, without elements that can never act."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that :meth:`stored` returned, in any floating type.

        Raises:
            AdapterError: a tensor is missing, unknown, or of another shape.
        """
        self.check({name: tuple(value.shape) for name, value in tensors.items()})
        self._take(tensors)

    def check(self, found: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse tensor shapes that differ from those of :meth:`stored`.

        Raises:
            AdapterError: a tensor is missing, unknown, or of another shape.
        """
        expected = {name: tuple(value.shape) for name, value in self.stored().items()}
        if expected != found:
            wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))[0]
            raise AdapterError(
                f"not the weights of a {self.method} with {self.options}: {wrong!r} must be "
                f"{expected.get(wrong, 'absent')}, got {found.get(wrong, 'nothing')}"
            )

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        self.load_state_dict(dict(tensors))

    @property
    def size(self) -> Size:
        """Number of elements that train, and that are stored."""
        stored = sum(value.numel() for value in self.stored().values())
        return Size(sum(p.numel() for p in self.parameters()), stored)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that an optimiser should not decay: norms and biases."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}


def check_at_least(options: Any, **minima: int) -> None:
    """Refuse options that are not integers of at least their minimum; None stands for a default.

    Raises:
        AdapterError: an option is of another type, too small, or 65,536 or more.
    """
    for name, minimum in minima.items():
        value = getattr(options, name)
        if value is not None and (type(value) is not int or not minimum <= value < 2**16):
            raise AdapterError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def is_paper_sized(network: AdapterHost) -> bool:
    """Return whether a network is as wide as the paper's smallest or wider, so that the paper's sizes fit."""
    return network.out_widths[0] >= PAPER_WIDTH
