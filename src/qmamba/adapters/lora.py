"""LoRA (Hu et al., ICLR 2022) through the library peft: ``pip install "qmamba[lora]"``.

peft modifies a network in place. Here it modifies a copy of the network's modules that shares the base's
tensors: the base is not changed, and no tensor is held twice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import AdapterError
from ..models.capabilities import AdapterHost, LowRankTargets, require
from .base import Adapter, check_at_least
from .registry import register

NAME = "default"


@dataclass(frozen=True)
class LoRAOptions:
    """Options of LoRA.

    Attributes:
        rank: rank of the updates to the weights of every block's Linears; 8 gives 178,176 parameters on
            lqmamba-n, and 1,179,648 on loda, in its ViT.
        alpha: the updates are scaled by alpha / rank.
    """

    rank: int = 8
    alpha: int = 16

    def __post_init__(self) -> None:
        check_at_least(self, rank=1, alpha=1)


@register("lora", LoRAOptions)
class LoRA(Adapter):
    """Low-rank updates of every block's Linears, made by peft.

    Raises:
        AdapterError: peft is not installed.
        CapabilityError: the network does not name the layers to update.
    """

    options: LoRAOptions

    def __init__(self, network: Any, options: LoRAOptions) -> None:
        super().__init__(options)
        targets = require(network, LowRankTargets, "LoRA").lora_targets
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise AdapterError('LoRA needs peft: pip install "qmamba[lora]"') from error
        weights = dict(network.named_parameters())
        wanted = {name: p.requires_grad for name, p in weights.items()}
        tuned = copy.deepcopy(network, {id(p): p for p in weights.values()})
        config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=targets)
        inject_adapter_in_model(config, tuned, adapter_name=NAME)
        for name, p in weights.items():  # peft has frozen the tensors shared with the base
            p.requires_grad_(wanted[name])
        # Bypass nn.Module, which would register the base's tensors as parameters of this adapter.
        self.__dict__["_tuned"] = tuned.eval()
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for name, module in tuned.named_modules():
            if hasattr(module, "lora_A"):
                key = name.replace(".", "-")  # module names must not contain dots
                self.down[key], self.up[key] = module.lora_A[NAME], module.lora_B[NAME]

    def forward(self, network: AdapterHost, images: Tensor) -> Tensor:
        """Return raw quality (B, 1) of the network with peft's layers for normalised images (B, 3, H, W).

        Raises:
            AdapterError: this is not the network that the adapter was created for.
        """
        raw: Tensor = self._tuned_of(network)(images)
        return raw

    def positions(self, network: AdapterHost, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw quality (B, 1), and the value of each position (B, h, w); raises as :meth:`forward`."""
        positions: tuple[Tensor, Tensor] = self._tuned_of(network).forward_positions(images)
        return positions

    def _tuned_of(self, network: AdapterHost) -> Any:
        tuned: nn.Module = self.__dict__["_tuned"]
        if next(tuned.parameters()) is not next(network.parameters()):
            raise AdapterError("this LoRA was created for another network, whose weights it shares")
        return tuned

    def __deepcopy__(self, memo: dict[int, Any]) -> LoRA:
        """Copy for the same network, or, when both are copied together, for the network's copy."""
        own = {id(p) for p in self.parameters()}
        for p in self.__dict__["_tuned"].parameters():
            if id(p) not in own:
                memo.setdefault(id(p), p)
        made: LoRA = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made
