"""Count parameters and multiply-adds of a network at an image size."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

NORM_OPERATIONS = 5  # per element: two for the statistics, one to centre, one to scale, one affine
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@runtime_checkable
class CountsItself(Protocol):
    """A module that computes more than the modules within it, and reports how much."""

    def multiply_adds(self, x: Tensor) -> int:
        """Return the multiply-adds of one call with the input x, beside those of the modules within."""
        ...


@dataclass(frozen=True)
class Count:
    """Parameters, and multiply-adds of one image.

    Attributes:
        parameters: all that the network has.
        macs: multiply-adds of one image: convolutions, Linears, and what modules report of themselves, such
            as the selective scan (9·K·L·D·N + K·L·D, and its step sizes and gates). Norms, activations and
            pooling are left out; with ``norms`` added, QMamba's three sizes give the paper's column to 0.1 %.
        norms: operations of the norms, 5 per element.
        size: (H, W) of the image.
    """

    parameters: int
    macs: int
    norms: int
    size: tuple[int, int]


def count(model: nn.Module, size: tuple[int, int] = (224, 224)) -> Count:
    """Count a network's parameters, and its multiply-adds for one image of ``size`` (H, W).

    Nothing is computed: shapes are run through a copy of the network that has no data.

    Args:
        model: any network of images (1, 3, H, W). Convolutions, Linears and norms are counted wherever they
            are called as modules; a module that computes more reports it by a method ``multiply_adds``.
        size: in pixels.

    Raises:
        ValueError: no module, one that does not take such images, or a size that it does not take.

    >>> from qmamba.models import create_model
    >>> counted = count(create_model("lqmamba-n"), (224, 224))
    >>> counted.parameters, f"{counted.macs / 1e9:.2f} G"
    (3384177, '0.53 G')
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch module, got {type(model).__name__}; use create_model")
    height, width = _sides(size)
    macs = norms = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, norms
        if isinstance(module, _NORMS):
            norms += NORM_OPERATIONS * output.numel()
        elif inputs:
            macs += _multiply_adds(module, inputs[0], output)

    hooks = [module.register_forward_hook(add) for module in model.modules()]
    try:
        with torch.no_grad():
            images = torch.empty(1, 3, height, width, device="meta")
            torch.func.functional_call(model, _without_data(model), (images,))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"model must take images (1, 3, {height}, {width}), and {type(model).__name__} does not: "
            f"{reason}; pass a network of create_model, or a scorer's .network"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return Count(sum(p.numel() for p in model.parameters()), macs, norms, (height, width))


def _sides(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"size must be (H, W) in whole pixels, got {size!r}") from error
    if min(height, width) < 1:
        raise ValueError(f"size must be at least (1, 1), got {(height, width)}")
    return height, width


def _without_data(model: nn.Module) -> dict[str, Tensor]:
    """Return stand-ins on the device "meta" for parameters and buffers, float32 where they are floating."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: torch.empty_like(t, dtype=torch.float32 if t.is_floating_point() else t.dtype, device="meta")
        for name, t in tensors
    }


def _multiply_adds(module: nn.Module, x: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, _CONVOLUTIONS):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, _TRANSPOSED):
        return x.numel() * module.weight[0].numel()
    return module.multiply_adds(x) if isinstance(module, CountsItself) else 0
