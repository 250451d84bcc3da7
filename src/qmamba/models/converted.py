"""A state dict under this library's names, made from one under published names."""

from __future__ import annotations

from torch import Tensor


class ConvertedState(dict[str, Tensor]):
    """A state dict under our names, with a record of the conversion.

    Attributes:
        renamed: published name → our name, for every tensor that was kept.
        dropped: published name → the reason it was dropped (a 1000-way classification head).
    """

    def __init__(self) -> None:
        super().__init__()
        self.renamed: dict[str, str] = {}
        self.dropped: dict[str, str] = {}

    def report(self) -> str:
        """Return one line for what was kept, and one for each tensor that was dropped."""
        lines = [f"{len(self.renamed)} tensors converted"]
        lines += [f"dropped {name}: {why}" for name, why in self.dropped.items()]
        return "\n".join(lines)
