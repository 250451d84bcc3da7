"""Parameter groups and optimisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..models.capabilities import DecayGroups, LearningRates
from .recipe import Optimisation

LR_SCALE = "lr_scale"  # key of a group: the factor of its learning rate


def undecayed(module: nn.Module) -> set[str]:
    """Return names of the parameters that weight decay leaves alone.

    The module names them itself where it can; otherwise they are its vectors and scalars (norms, biases).
    """
    if isinstance(module, DecayGroups):
        return module.no_weight_decay()
    return {name for name, p in module.named_parameters() if p.ndim <= 1}


def parameter_groups(
    network: nn.Module, heads: nn.Module, weight_decay: float, leave_out: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Return the trained parameters as groups: decayed, not decayed, and heads (not decayed).

    Parameters whose learning rate the network scales follow, two groups for each factor.

    Args:
        network: what is trained and kept. Its parameters without ``requires_grad`` stay as they are.
        heads: what trains along and is not kept.
        weight_decay: of the first group.
        leave_out: names of the network's parameters that another optimiser has.
    """
    still = undecayed(network)
    scales = network.lr_scales() if isinstance(network, LearningRates) else {}
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad and n not in leave_out]
    plain = [(n, p) for n, p in named if n not in scales]
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in plain if n not in still], "weight_decay": weight_decay},
        {"params": [p for n, p in plain if n in still], "weight_decay": 0.0},
        {"params": [p for p in heads.parameters() if p.requires_grad], "weight_decay": 0.0},
    ]
    for scale in sorted({scales[n] for n, _ in named if n in scales}):
        scaled = [(n, p) for n, p in named if scales.get(n) == scale]
        groups += [
            {
                "params": [p for n, p in scaled if (n in still) == is_still],
                "weight_decay": decay,
                LR_SCALE: scale,
            }
            for is_still, decay in ((False, weight_decay), (True, 0.0))
        ]
    return groups


def make_optimisers(
    network: nn.Module, heads: nn.Module, recipe: Optimisation
) -> list[torch.optim.Optimizer]:
    """Return AdamW for everything, or Muon for the matrices inside the network and AdamW for the rest.

    The learning rate is set before every step; here it is 0. Nothing to train gives no optimiser.

    Raises:
        RecipeError: Muon is asked for and this torch has none.
    """
    matrices = _matrices(network) if recipe.optimiser == "muon" else {}
    groups = parameter_groups(network, heads, recipe.weight_decay, frozenset(matrices))
    optimisers: list[torch.optim.Optimizer] = []
    if any(group["params"] for group in groups):
        optimisers.append(torch.optim.AdamW(groups, lr=0.0))
    if matrices:
        optimisers.append(
            torch.optim.Muon(
                matrices.values(), lr=0.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimisers


def _matrices(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of linear layers by name, those of the head left out."""
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError(
            f"optimiser 'muon' needs torch 2.9 or later, got {torch.__version__}; use 'adamw' or update torch"
        )
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("head.") and module.weight.requires_grad
    }
