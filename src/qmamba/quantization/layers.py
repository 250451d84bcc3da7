"""Linear and convolution layers whose input and weight pass through quantizers."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import linear
from ..ops.hooks import hooked_itself
from .base import ActivationQuantizer, WeightQuantizer


class QuantLinear(nn.Linear):
    """An ``nn.Linear`` with quantizers; a missing quantizer leaves its tensor as it is.

    Args:
        layer: whose parameters it takes over, without a copy.
        weight_quantizer: None where the weight already lies on its grid.
        input_quantizer: None for an input in float.
    """

    def __init__(
        self,
        layer: nn.Linear,
        weight_quantizer: WeightQuantizer | None = None,
        input_quantizer: ActivationQuantizer | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        x = x if self.input_quantizer is None else self.input_quantizer(x)
        return linear(x, quantized_weight(self), self.bias)


class QuantConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` with quantizers; see :class:`QuantLinear`. Padding is added behind the quantizer."""

    _GEOMETRY = (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed",
        "output_padding", "groups", "padding_mode", "_reversed_padding_repeated_twice",
    )  # fmt: skip

    def __init__(
        self,
        layer: nn.Conv2d,
        weight_quantizer: WeightQuantizer | None = None,
        input_quantizer: ActivationQuantizer | None = None,
    ) -> None:
        nn.Module.__init__(self)
        for name in self._GEOMETRY:
            setattr(self, name, getattr(layer, name))
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        x = x if self.input_quantizer is None else self.input_quantizer(x)
        out: Tensor = self._conv_forward(x, quantized_weight(self).to(x.dtype), self.bias)
        return out


def quantized_weight(layer: QuantLinear | QuantConv2d) -> Tensor:
    """Return the weight that a layer computes with, in the type of its parameter."""
    quantizer = layer.weight_quantizer
    if quantizer is None:
        return layer.weight
    out: Tensor = quantizer(layer.weight.float()).to(layer.weight.dtype)
    return out


def quantized_class(module: nn.Module) -> type[QuantLinear] | type[QuantConv2d] | None:
    """Return the class that can stand for a module; None where none computes the same.

    That is for the very classes ``nn.Linear`` and ``nn.Conv2d``, and for a subclass of ``nn.Linear`` that
    sets ``computes_linear = True`` itself: other subclasses may compute anything.
    """
    kind = type(module)
    if kind is nn.Linear or (issubclass(kind, nn.Linear) and vars(kind).get("computes_linear") is True):
        return QuantLinear
    return QuantConv2d if kind is nn.Conv2d else None


def why_not(module: nn.Module) -> str | None:
    """Return why a module with weights cannot be quantized; None where it can."""
    if quantized_class(module) is None:
        return f"no quantized layer stands for {type(module).__name__}"
    if hooked_itself(module):
        return "it has hooks or a forward of its own"
    return None
