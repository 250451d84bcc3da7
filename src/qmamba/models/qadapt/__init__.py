"""Q-Adapt: a large multi-modal model that judges quality in words, tuned in two stages.

Nothing here imports transformers or peft before a network is built: ``pip install "qmamba[explain]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...preprocessing import Preprocessing
from ...protocol import Protocol
from ..registry import Architecture, register
from .published import BASES, STARTS, TOKENIZERS, is_stored, names_of
from .sizes import Sizes

if TYPE_CHECKING:
    from .network import QAdapt

__all__ = ["STARTS", "Sizes", "build", "is_stored"]

PREPROCESSING = Preprocessing(
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=(384, 384), interpolation="bicubic", padding="mean"
)


def build(**overrides: Any) -> QAdapt:
    """Build an untrained network, with the keyword arguments of :class:`Sizes`; nothing is downloaded.

    Raises:
        BackendError: transformers or peft is not installed.
        ValueError: a size of a wrong type or out of range.
    """
    sizes = Sizes(**overrides)
    from .network import QAdapt

    return QAdapt(sizes)


register(
    Architecture(
        "q-adapt", build, preprocessing=PREPROCESSING, protocol=Protocol("whole", crop=32), output="words",
        bases=BASES, trained=is_stored, names_of=names_of, starts=STARTS, tokenizers=TOKENIZERS,
        listed=False,
    )
)  # fmt: skip
