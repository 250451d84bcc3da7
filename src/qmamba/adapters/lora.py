"""LoRA (Hu et al., ICLR 2022) as the library peft has it: ``pip install "qmamba[lora]"``.

peft puts its layers into a network. Here it gets a copy of the network's modules that shares the base's
tensors: the base itself stays as it is, and nothing of it is held twice.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import AdapterError
from ..models.qmamba import QMamba
from .base import Adapter, check_at_least
from .registry import register

# Not the route gate's Linears, whose weights an operator takes without calling them.
TARGETS = r".*\.(in_proj|x_proj|out_proj|fc1|fc2)"
NAME = "default"


@dataclass(frozen=True)
class LoRAOptions:
    """Options of LoRA.

    Attributes:
        rank: of the products that are added to the weights of every block's Linears: 178,176 parameters on
            lqmamba-n for 8.
        alpha: the products are scaled by alpha / rank.
    """

    rank: int = 8
    alpha: int = 16

    def __post_init__(self) -> None:
        check_at_least(self, rank=1, alpha=1)


@register("lora", LoRAOptions)
class LoRA(Adapter):
    """Low-rank changes of the Linears of every block, made by peft.

    Raises:
        AdapterError: peft is not installed.
    """

    options: LoRAOptions

    def __init__(self, network: QMamba, options: LoRAOptions) -> None:
        super().__init__(options)
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise AdapterError('LoRA comes from another library: pip install "qmamba[lora]"') from error
        weights = dict(network.named_parameters())
        wanted = {name: p.requires_grad for name, p in weights.items()}
        tuned = copy.deepcopy(network, {id(p): p for p in weights.values()})
        config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=TARGETS)
        inject_adapter_in_model(config, tuned, adapter_name=NAME)
        for name, p in weights.items():  # peft has frozen what it shares with the base
            p.requires_grad_(wanted[name])
        # Past nn.Module, to which the base's tensors would then be parameters of this adapter.
        self.__dict__["_tuned"] = tuned.eval()
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for name, module in tuned.named_modules():
            if hasattr(module, "lora_A"):
                key = name.replace(".", "-")  # dots have a meaning in names of modules
                self.down[key], self.up[key] = module.lora_A[NAME], module.lora_B[NAME]

    def forward(self, network: QMamba, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → raw quality (B, 1) of the network with peft's layers.

        Raises:
            AdapterError: this is not the network that the adapter was created for.
        """
        raw: Tensor = self._tuned_of(network)(images)
        return raw

    def positions(self, network: QMamba, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and what each position adds; same errors."""
        return self._tuned_of(network).forward_positions(images)

    def _tuned_of(self, network: QMamba) -> QMamba:
        tuned: QMamba = self.__dict__["_tuned"]
        if tuned.stem.conv1.weight is not network.stem.conv1.weight:
            raise AdapterError("this LoRA was created for another network, whose weights it shares")
        return tuned

    def __deepcopy__(self, memo: dict[int, Any]) -> LoRA:
        """A copy for the same network; for the network's copy, where both are copied together."""
        own = {id(p) for p in self.parameters()}
        for p in self.__dict__["_tuned"].parameters():
            if id(p) not in own:
                memo.setdefault(id(p), p)
        made: LoRA = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made
