"""Quantizers put into a network, and taken out again once its weights lie on their grids."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .base import ActivationQuantizer, WeightQuantizer
from .config import Quantization
from .dls import DLS
from .grid import Grid, fit_weights
from .layers import QuantConv2d, QuantLinear, quantized_class
from .lsq import LSQ, LSQPlus
from .planning import InputPlan, Plan
from .rfa import RFA

GRIDS = "grids"  # attribute of a network whose weights lie on grids: Grid by name of the parameter


def grids_of(network: nn.Module) -> dict[str, Grid]:
    """Return the grids that a network's weights lie on, by name of the parameter; none for a float one."""
    found: dict[str, Grid] = getattr(network, GRIDS, {})
    return found


def set_grids(network: nn.Module, grids: dict[str, Grid]) -> None:
    """Note which grids a network's weights lie on; checkpoints store their codes."""
    setattr(network, GRIDS, grids)


def prepare(network: nn.Module, config: Quantization, made: Plan, *, training: bool = False) -> None:
    """Put a plan's quantizers into a network, in place.

    Args:
        network: in float. Modules are swapped; those that keep their weights and inputs are left alone.
        config: method, and whether quantizers are the public version's.
        made: of :func:`~qmamba.quantization.planning.plan` for this network.
        training: also quantize weights in every forward pass, with learnables. Otherwise weights are taken as
            they are: only activations are quantized.
    """
    for name, module in list(network.named_modules()):
        weight = made.weights.get(f"{name}.weight" if name else "weight")
        given = made.layers.get(name)
        learns = training and weight is not None and weight.bits == config.weights and not weight.per_channel
        if given is None and not learns:
            continue
        kind = quantized_class(module)
        if kind is None:
            continue
        device = cast(Tensor, module.weight).device
        of_input = None if given is None else _activation_quantizer(given, config).to(_real(device))
        of_weight = _weight_quantizer(config, module.weight).to(_real(device)) if learns else None
        _replace(network, name, kind(cast(Any, module), of_weight, of_input))
    slots: dict[str, dict[str, nn.Module]] = {}
    for (name, tensor), given in made.tensors.items():
        slots.setdefault(name, {})[tensor] = _activation_quantizer(given, config)
    if training:
        for name, entry in made.weights.items():
            owner, _, tensor = name.rpartition(".")
            if tensor in getattr(network.get_submodule(owner), "quantizable", {}) and not entry.per_channel:
                slots.setdefault(owner, {})[tensor] = _weight_quantizer(config, network.get_parameter(name))
    for name, quantizers in slots.items():
        module = cast(Any, network.get_submodule(name))
        device = next(module.parameters()).device
        module.quantizers = nn.ModuleDict(quantizers).to(_real(device))
        module.quantizers.train(module.training)


def _real(device: torch.device) -> torch.device:
    """Return where quantizers live: they have values also beside weights on the device "meta"."""
    return torch.device("cpu") if device.type == "meta" else device


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    layer.train(network.get_submodule(name).training)
    setattr(network.get_submodule(owner), leaf, layer)


def _activation_quantizer(given: InputPlan, config: Quantization) -> ActivationQuantizer:
    return (
        DLS(given.bits, public=config.public) if given.dynamic else LSQPlus(given.bits, public=config.public)
    )


def _weight_quantizer(config: Quantization, w: Any) -> WeightQuantizer:
    if config.method == "lsq":
        quantizer: WeightQuantizer = LSQ(config.weights)
    else:
        quantizer = RFA(config.weights, public=config.public)
    quantizer.initialise(w.detach().float())
    return quantizer


def round_weights(network: nn.Module, config: Quantization, made: Plan) -> None:
    """Round weights to grids fitted to them, in place, and note the grids.

    With a method that trains, these are the weights that are only stored in fewer bits; the others have
    quantizers of their own, until :func:`freeze`.
    """
    grids = dict(grids_of(network))
    for name, (bits, per_channel) in made.weights.items():
        if config.is_trained and not per_channel:
            continue
        parameter = network.get_parameter(name)
        grid = fit_weights(parameter, bits, search=config.method != "ptq-minmax", per_channel=per_channel)
        _settle(parameter, grid, grid.codes(parameter.detach()))
        grids[name] = _on_cpu(grid)
    set_grids(network, grids)


def freeze(network: nn.Module) -> None:
    """Replace trained weight quantizers by the weights that they return, in place, and note the grids."""
    grids = dict(grids_of(network))
    for name, module in network.named_modules():
        if isinstance(module, (QuantLinear, QuantConv2d)) and module.weight_quantizer is not None:
            grids[f"{name}.weight"] = _frozen(module.weight, module.weight_quantizer)
            module.weight_quantizer = None
        slots = getattr(module, "quantizers", None)
        if not isinstance(slots, nn.ModuleDict):
            continue
        for tensor, quantizer in list(slots.items()):
            if isinstance(quantizer, WeightQuantizer):
                grids[f"{name}.{tensor}"] = _frozen(module.get_parameter(tensor), quantizer)
                del slots[tensor]
        if not len(slots):
            cast(Any, module).quantizers = None
    set_grids(network, grids)


def _frozen(parameter: Tensor, quantizer: WeightQuantizer) -> Grid:
    grid = quantizer.grid()
    _settle(parameter, grid, quantizer.codes(parameter.detach().float()))
    return _on_cpu(grid)


def _on_cpu(grid: Grid) -> Grid:
    return Grid(grid.bits, grid.scale.cpu(), grid.offset.cpu())


@torch.no_grad()
def _settle(parameter: Tensor, grid: Grid, codes: Tensor) -> None:
    parameter.copy_(grid.values(codes))


def activation_quantizers(network: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return the quantizers of activations in a network, by name of the module."""
    return {name: m for name, m in network.named_modules() if isinstance(m, ActivationQuantizer)}
