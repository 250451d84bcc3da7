"""The linear probe: the head alone (QMamba, Table 3, "Lin_Probe (R)")."""

from __future__ import annotations

import copy

from ..models.qmamba import QMamba
from .base import Adapter, NoOptions
from .registry import register


@register("linear-probe")
class LinearProbe(Adapter):
    """A copy of the network's head, LayerNorm and Linear: 3·C + 1 parameters, 769 on lqmamba-n."""

    def __init__(self, network: QMamba, options: NoOptions) -> None:
        super().__init__(options, head=copy.deepcopy(network.head))
