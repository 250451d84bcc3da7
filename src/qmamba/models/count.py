"""Counting: parameters and multiply-adds of a network at an image size."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .qmamba import QMamba
from .qmamba.network import MIN_SIDE
from .qmamba.ss2d import SS2D

NORM_OPERATIONS = 5  # per element: two for the statistics, one to centre, one to scale, one affine


@dataclass(frozen=True)
class Count:
    """Parameters, and multiply-adds of one image.

    Attributes:
        parameters: all that can be trained.
        macs: multiply-adds of one image: convolutions, Linears, the route gate, and the selective scan as
            9·K·L·D·N + K·L·D. Norms and activations are left out; with ``norms`` added, QMamba's three
            sizes give the paper's column to 0.1 %.
        norms: operations of the LayerNorms, 5 per element.
        size: (H, W) of the image.
    """

    parameters: int
    macs: int
    norms: int
    size: tuple[int, int]


def count(model: QMamba, size: tuple[int, int] = (224, 224)) -> Count:
    """Count a network's parameters, and its multiply-adds for one image of ``size`` (H, W).

    Nothing is computed: shapes are run through a copy of the network that has no data.

    Raises:
        ValueError: another module than a network, or a size that it does not take.

    >>> from qmamba.models import create_model
    >>> counted = count(create_model("lqmamba-n"), (224, 224))
    >>> counted.parameters, f"{counted.macs / 1e9:.2f} G"
    (3384177, '0.53 G')
    """
    if not isinstance(model, QMamba):
        raise ValueError(
            f"count takes a network from create_model, not a {type(model).__name__}; a scorer's is .network"
        )
    height, width = _sides(size)
    macs = norms = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs, norms
        if isinstance(module, nn.LayerNorm):
            norms += NORM_OPERATIONS * output.numel()
            return
        if isinstance(module, SS2D) and module.gate is not None:  # which normalises every route
            norms += NORM_OPERATIONS * _routes(module, inputs[0])
        macs += _multiply_adds(module, inputs[0], output)

    hooks = [module.register_forward_hook(add) for module in model.modules()]
    shadow = {
        name: torch.empty_like(p, dtype=torch.float32, device="meta") for name, p in model.named_parameters()
    }
    try:
        with torch.no_grad():
            torch.func.functional_call(model, shadow, (torch.empty(1, 3, height, width, device="meta"),))
    finally:
        for hook in hooks:
            hook.remove()
    return Count(sum(p.numel() for p in model.parameters()), macs, norms, (height, width))


def _sides(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"size is (H, W) in whole pixels, not {size!r}") from error
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"the network needs sides of at least {MIN_SIDE}, not {(height, width)}")
    return height, width


def _multiply_adds(module: nn.Module, x: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, SS2D):
        K, _, N = module.A_log.shape
        scan = _routes(module, x) * (9 * N + 1 + module.splits[0])  # with Δ from its rank-R form
        if module.gate is None:
            return scan
        # y · g, and two small Linears a route
        return scan + _routes(module, x) + x.shape[0] * K * 2 * module.gate.reduce.weight.numel()
    return 0


def _routes(module: SS2D, x: Tensor) -> int:
    """Numbers in the outputs of all routes."""
    K, D, _ = module.A_log.shape
    return x[..., 0].numel() * K * D
