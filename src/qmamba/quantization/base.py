"""The base classes of quantizers, and the tensors that modules offer to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .grid import Grid
from .rounding import check_bits


@runtime_checkable
class QuantizableTensors(Protocol):
    """A module with tensors that can be quantized though they are neither input nor weight of a layer.

    Another attribute, ``quantizers``, is a ``nn.ModuleDict`` of the quantizers that these tensors pass
    through, by name, or None in a float network.

    Attributes:
        quantizable: kinds by name: an input of an operation (B, …), a weight (a parameter of that name), or
            another parameter.
    """

    quantizable: Mapping[str, Literal["input", "weight", "parameter"]]


class Quantizer(nn.Module):
    """A quantizer of b bits, which moves with its network and keeps float32 whatever the network's type."""

    bits: int
    public: bool = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            same = found.dtype == tensor.dtype or not tensor.is_floating_point()
            return found if same else tensor.to(found.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"bits={self.bits}" + (", public=True" if self.public else "")


class WeightQuantizer(Quantizer):
    """A quantizer of one weight tensor, of which codes and a grid are kept after training."""

    @abstractmethod
    def initialise(self, w: Tensor) -> None:
        """Set the learnables to where training starts from, for these weights."""

    @abstractmethod
    def codes(self, w: Tensor) -> Tensor:
        """Return the codes of weights, int64."""

    @abstractmethod
    def grid(self) -> Grid:
        """Return the values that the codes stand for."""


class ActivationQuantizer(Quantizer):
    """A quantizer of activations (B, …).

    Args:
        bits: 2, 4 or 8.
        public: choose the sign of the codes by the first batch, as the authors' public version does; they are
            signed otherwise.

    Attributes:
        signed: (1,) buffer, 1 where codes are signed; in files with `public` only.
    """

    signed: Tensor

    def __init__(self, bits: int, public: bool) -> None:
        super().__init__()
        self.bits, self.public = check_bits(bits), public
        self.register_buffer("signed", torch.ones(1), persistent=public)

    @abstractmethod
    def initialise(self, x: Tensor) -> None:
        """Set the learnables as the public version does on its first batch."""

    @abstractmethod
    def fit(self, rows: Tensor, search: bool) -> None:
        """Set the learnables by activations (n, m), one row for each image.

        Args:
            rows: float32, the least and the greatest value of each image in front.
            search: choose the least squared error; otherwise the range of all values (minmax).
        """

    def _range(self) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest code, (1,) each; tensors, so that tracers can follow."""
        half = 2 ** (self.bits - 1)
        low = -half * self.signed
        return low, low + (2 * half - 1)
