"""The linear probe: only the head trains (QMamba, Table 3, "Lin_Probe (R)")."""

from __future__ import annotations

import copy

from ..models.capabilities import AdapterHost
from .base import Adapter, NoOptions
from .registry import register


@register("linear-probe")
class LinearProbe(Adapter):
    """Train a copy of the network's head. LayerNorm and Linear have 3·C + 1 parameters, 769 on lqmamba-n."""

    def __init__(self, network: AdapterHost, options: NoOptions) -> None:
        super().__init__(options, head=copy.deepcopy(network.head))
