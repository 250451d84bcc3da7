"""`Quantization`: what of a network is quantized, to how many bits, and by which method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..checks import fail, same_keys
from ..errors import ArgumentError
from .rounding import BITS

METHODS = ("ptq-minmax", "ptq-mse", "lsq", "rfa", "rfa+dls")
"""Without training: minmax, least squared error. With training: LSQ, RFA for weights, and DLS beside it."""
TRAINED = METHODS[2:]


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What of a network is quantized, and how. Patterns are those of `fnmatch`, for names of modules.

    Args:
        weights: bits of a weight: 2, 4 or 8.
        activations: bits of an activation, or None where activations stay in float (weights only).
        method: one of `METHODS`. "ptq-minmax" and "ptq-mse" need no training, and have a step for each output
            channel of a weight; the others learn one step for each weight tensor.
        keep: modules that stay in float.
        stored: modules computed in float, whose weights are stored in 8 bits (in 4 where weights have 2).
        dynamic: layers whose input has a DLS with the method "rfa+dls"; the scan's inputs always have.
        scan_parameters: quantize the scan's own parameters A, D and dt_bias, too (`ssm_params="dls"`).
        public: quantizers as in the authors' public version, with its defects, for comparison.

    Raises:
        ArgumentError: a value of a wrong type or out of range.

    >>> Quantization(weights=4, activations=8).label
    'W4A8'
    """

    weights: int = 8
    activations: int | None = None
    method: str = "ptq-mse"
    keep: tuple[str, ...] = ("stem*", "head*")
    stored: tuple[str, ...] = ("*.gate.*",)
    dynamic: tuple[str, ...] = ("*.out_proj",)
    scan_parameters: bool = False
    public: bool = False

    def __post_init__(self) -> None:
        for key in ("weights", "activations"):
            value = getattr(self, key)
            if not (key == "activations" and value is None) and (type(value) is not int or value not in BITS):
                raise ArgumentError(f"{key} must be one of {', '.join(map(str, BITS))} bits, got {value!r}")
        if self.method not in METHODS:
            raise ArgumentError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for key in ("keep", "stored", "dynamic"):
            value = getattr(self, key)
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise ArgumentError(f"{key} must be a list of patterns of module names, got {value!r}")
            object.__setattr__(self, key, tuple(value))
        for key in ("scan_parameters", "public"):
            if not isinstance(getattr(self, key), bool):
                raise ArgumentError(f"{key} must be true or false, got {getattr(self, key)!r}")

    @property
    def label(self) -> str:
        """The usual short name: W8A8, or W8 for weights only."""
        return f"W{self.weights}" + ("" if self.activations is None else f"A{self.activations}")

    @property
    def is_trained(self) -> bool:
        """Whether the method trains the quantizers."""
        return self.method in TRAINED

    @property
    def per_channel(self) -> bool:
        """Whether a weight has a step for each output channel."""
        return not self.is_trained

    @property
    def stored_bits(self) -> int:
        """Bits of the weights of `stored` modules."""
        return 8 if self.weights >= 4 else 4

    def replace(self, **changes: Any) -> Quantization:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Quantization:
        """Return the inverse of `to_dict`.

        Raises:
            CheckpointError: a missing or unknown key, or a wrong value.
        """
        if not isinstance(data, Mapping):
            raise fail("quantization", "an object", data)
        same_keys(data, {field.name for field in dataclasses.fields(cls)}, "quantization")
        try:
            return cls(**data)
        except ArgumentError as error:
            raise fail("quantization", str(error).partition(",")[0], data) from error


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a module's name matches one of some patterns.

    >>> matches("stages.0.blocks.1.ss2d.gate.reduce", ("*.gate.*",)), matches("stages.0", ("stem*",))
    (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)
