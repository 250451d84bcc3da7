"""What all adapters have in common: how they act on a network, what of them is kept, and their registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..models.qmamba import QMamba, undecayed

PAPER_WIDTH = 192  # of the first stage's output in the smallest of the paper's networks


class Size(NamedTuple):
    """Numbers in an adapter: those that train, and those that a file of it holds."""

    trained: int
    stored: int


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of an adapter that has none."""


class Adapter(nn.Module):
    """What trains while a network stays as it is. Its parameters are exactly those that train.

    An adapter is not built into a network: ``adapter(network, images)`` is the adapted network and
    ``network(images)`` the plain one. So one network serves any number of adapters and threads, and there is
    nothing to undo.

    A subclass gives ``prompts``, or ``head``, or both; where neither is enough it overrides :meth:`forward`
    and :meth:`positions`, and sets :attr:`start` to None.

    Args:
        options: what it was made with, a frozen dataclass whose fields JSON can hold.
        prompts: one module a stage, on its output (B, H, W, C) after the downsample; same shape out.
        head: in place of the network's: (B, H, W, C) → (B, 1).

    Attributes:
        method: the name that it is registered under.
        lr: a learning rate that suits it.
        start: the stage before whose prompt (or head) nothing is adapted; None where all of it may be.
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

    def forward(self, network: QMamba, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → raw quality (B, 1) of the adapted network."""
        raw: Tensor = network(images, self.prompts, self.head)
        return raw

    def positions(self, network: QMamba, images: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` gives, and what each position adds; see :meth:`QMamba.forward_positions`."""
        return network.forward_positions(images, self.prompts, self.head)

    def before(self, network: QMamba, images: Tensor) -> Tensor:
        """The part of :meth:`forward` that no parameter of the adapter has a say in; it may be kept."""
        if self.start is None:
            return images
        return network.forward_until(images, self.start % len(network.stages))

    def after(self, network: QMamba, kept: Tensor) -> Tensor:
        """The rest: ``after(network, before(network, images))`` is ``forward(network, images)``."""
        if self.start is None:
            return self(network, kept)  # type: ignore[no-any-return]
        return network.forward_after(kept, self.start % len(network.stages), self.prompts, self.head)

    def stored(self) -> dict[str, Tensor]:
        """The tensors that a file holds: the parameters, less what can never act."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what :meth:`stored` gave, of any floating type.

        Raises:
            AdapterError: a tensor is missing, unknown, or of another shape.
        """
        self.check({name: tuple(value.shape) for name, value in tensors.items()})
        self._take(tensors)

    def check(self, found: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse shapes of tensors that are not those of :meth:`stored`.

        Raises:
            AdapterError: a tensor is missing, unknown, or of another shape.
        """
        expected = {name: tuple(value.shape) for name, value in self.stored().items()}
        if expected != found:
            wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))[0]
            raise AdapterError(
                f"not the weights of a {self.method} with {self.options}: {wrong!r} is "
                f"{found.get(wrong, 'missing')} where {expected.get(wrong, 'nothing')} is due"
            )

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        self.load_state_dict(dict(tensors))

    @property
    def size(self) -> Size:
        """How many numbers train, and how many are stored."""
        stored = sum(value.numel() for value in self.stored().values())
        return Size(sum(p.numel() for p in self.parameters()), stored)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that an optimiser should not decay, as a network has them."""
        return undecayed(self)


def check_at_least(options: Any, **least: int) -> None:
    """Refuse options that are no whole numbers of at least so much; None stands for a default."""
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and (type(value) is not int or not low <= value < 2**16):
            raise AdapterError(f"{name} is a whole number of at least {low}, not {value!r}")


def is_paper_sized(network: QMamba) -> bool:
    """Whether a network is at least as wide as the smallest in the paper: then the paper's numbers fit."""
    return network.out_widths[0] >= PAPER_WIDTH
