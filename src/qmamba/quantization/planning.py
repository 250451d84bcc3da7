"""Which tensors of a network are quantized: a plan made from its modules and a `Quantization`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from .base import QuantizableTensors
from .config import Quantization, matches
from .layers import why_not


class WeightPlan(NamedTuple):
    """How a weight is quantized: bits, and whether each index of its first dimension has its own step."""

    bits: int
    per_channel: bool


class InputPlan(NamedTuple):
    """How an activation is quantized: bits, and whether by statistics of each image (DLS)."""

    bits: int
    dynamic: bool


@dataclass
class Plan:
    """What is quantized in a network.

    Attributes:
        weights: by name of the parameter.
        layers: inputs of layers, by name of the module.
        tensors: tensors within a module, by name of the module and of the tensor; weights among them have no
            entry here.
        float_: names of modules whose weights stay in float, and why.
    """

    weights: dict[str, WeightPlan] = field(default_factory=dict)
    layers: dict[str, InputPlan] = field(default_factory=dict)
    tensors: dict[tuple[str, str], InputPlan] = field(default_factory=dict)
    float_: dict[str, str] = field(default_factory=dict)


def plan(network: nn.Module, config: Quantization) -> Plan:
    """Return what a configuration quantizes in a network of any kind.

    Layers are ``nn.Linear`` and ``nn.Conv2d``; modules that declare tensors of their own
    (:class:`~qmamba.quantization.base.QuantizableTensors`) are asked for them. Every other module with a
    weight of two or more dimensions stays in float and is named in ``float_``.
    """
    made = Plan()
    inner = WeightPlan(config.weights, config.per_channel)
    for name, module in network.named_modules():
        own = {key for key, p in module.named_parameters(recurse=False) if p.ndim > 1}
        if isinstance(module, QuantizableTensors) and not matches(name, config.keep):
            _add_tensors(made, name, module, config)
            own = set()
        if not own:
            continue
        if matches(name, config.keep):
            made.float_[name] = "kept in float by the configuration"
        elif (reason := why_not(module)) is not None:
            made.float_[name] = reason
        elif matches(name, config.stored):
            made.weights[_joined(name, "weight")] = WeightPlan(config.stored_bits, True)
        else:
            made.weights[_joined(name, "weight")] = inner
            if config.activations is not None:
                dynamic = config.method == "rfa+dls" and matches(name, config.dynamic)
                made.layers[name] = InputPlan(config.activations, dynamic)
    return made


def _add_tensors(made: Plan, name: str, module: QuantizableTensors, config: Quantization) -> None:
    for tensor, kind in module.quantizable.items():
        if kind == "weight":
            made.weights[_joined(name, tensor)] = WeightPlan(config.weights, config.per_channel)
        elif config.activations is not None and (kind == "input" or config.scan_parameters):
            made.tensors[name, tensor] = InputPlan(config.activations, config.method == "rfa+dls")


def _joined(module: str, tensor: str) -> str:
    return f"{module}.{tensor}" if module else tensor
