"""`ModelConfig`: what a checkpoint's `config.json` says, as one frozen and checked dataclass."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from qmamba.calibration import Calibration
from qmamba.checks import check_weights, fail, json_object, numbers, parse_json, same_keys, text
from qmamba.errors import CheckpointError
from qmamba.images import Preprocessing
from qmamba.protocol import Protocol

FORMAT_VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def _tuples(value: Any) -> Any:
    """JSON has no tuples, `create_model` takes them: `widths=(32, 64)` must equal what a file gives back."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


_PARTS: dict[str, type[Preprocessing] | type[Protocol] | type[Calibration]] = {
    "preprocessing": Preprocessing,
    "protocol": Protocol,
    "calibration": Calibration,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything about a checkpoint but its weights; `docs/checkpoints.md` describes each key.

    Args:
        name: short name, letters, digits, `.`, `_`, `-`; never used as a path.
        arch: architecture, as `create_model` takes it.
        overrides: keyword arguments of `create_model`; sequences are kept as tuples.
        preprocessing: channel means and standard deviations.
        protocol: which crops are scored when the caller names none.
        calibration: maps the raw output of a crop to [0, 1].
        lower_better: whether a lower score means a better photograph.
        score_range: least and greatest value a score can take.
        trained_on: names of the data sets that the weights have seen.
        training: how it was trained; any JSON object.
        licence: licence of the weights, an SPDX identifier where there is one.
        results: measured values, `{where: {"srcc": 0.61, "srcc_low": 0.58, "srcc_high": 0.64, "n": 2400}}`.
        limits: what the model is not good for, in Markdown; goes into the model card.
        weights_sha256: of `model.safetensors`, 64 hexadecimal digits; empty until saved.
        weights_bytes: size of `model.safetensors`; 0 until saved.
        dtype: type that the weights are stored in: float32, float16 or bfloat16.
        format_version: 1.

    Raises:
        CheckpointError: a value of a wrong type or out of range; the message names the key.

    >>> config = ModelConfig(name="mine", arch="lqmamba-n", overrides={"widths": [8, 16, 32, 64]})
    >>> config.overrides["widths"]
    (8, 16, 32, 64)
    >>> ModelConfig.from_json(config.to_json()) == config
    True
    """

    name: str
    arch: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    lower_better: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)
    trained_on: tuple[str, ...] = ()
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    licence: str = "unknown"
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    limits: str = ""
    weights_sha256: str = ""
    weights_bytes: int = 0
    dtype: str = "float32"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if type(self.format_version) is not int or self.format_version != FORMAT_VERSION:
            raise fail("format_version", str(FORMAT_VERSION), self.format_version)
        if not _NAME.fullmatch(text(self.name, "name")):
            raise fail("name", "letters, digits, '.', '_' or '-'", self.name)
        for key in ("arch", "licence", "limits"):
            text(getattr(self, key), key)
        for key in ("overrides", "training", "results"):
            object.__setattr__(self, key, json_object(getattr(self, key), key))
        object.__setattr__(self, "overrides", {key: _tuples(value) for key, value in self.overrides.items()})
        for key, kind in _PARTS.items():
            if not isinstance(getattr(self, key), kind):
                raise fail(key, f"a {kind.__name__}", getattr(self, key))
        if not isinstance(self.lower_better, bool):
            raise fail("lower_better", "true or false", self.lower_better)
        low, high = numbers(self.score_range, "score_range", 2)
        if low >= high:
            raise fail("score_range", "two rising numbers", self.score_range)
        object.__setattr__(self, "score_range", (low, high))
        if not isinstance(self.trained_on, (list, tuple)):
            raise fail("trained_on", "a list of strings", self.trained_on)
        object.__setattr__(self, "trained_on", tuple(text(item, "trained_on") for item in self.trained_on))
        self._check_weights()

    def _check_weights(self) -> None:
        check_weights(self.weights_sha256, self.weights_bytes, self.dtype)

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; its keys are the fields, in their order, `format_version` first."""
        data: dict[str, Any] = {"format_version": self.format_version}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            data[field.name] = value.to_dict() if hasattr(value, "to_dict") else _lists(value)
        # A deep copy: the caller may change what it gets without changing this frozen config.
        data["overrides"] = {key: _lists(value) for key, value in self.overrides.items()}
        data |= {key: json_object(data[key], key) for key in ("training", "results")}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The config that `to_dict` gave; every key must be there, and no other.

        Raises:
            CheckpointError: an unknown format version, a missing or unknown key, a value of a wrong type.
        """
        if not isinstance(data, Mapping):
            raise fail("(whole file)", "an object", data)
        version = data.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise CheckpointError(
                f"config: format_version is {version!r}, this qmamba reads {FORMAT_VERSION}: "
                "upgrade qmamba (pip install -U qmamba), or check that the folder is a qmamba checkpoint"
            )
        same_keys(data, {field.name for field in dataclasses.fields(cls)})
        values = dict(data)
        for key, kind in _PARTS.items():
            if not isinstance(data[key], Mapping):
                raise fail(key, "an object", data[key])
            values[key] = kind.from_dict(data[key])
        return cls(**values)

    def to_json(self) -> str:
        """The text of `config.json`: two-space indents, one trailing newline."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelConfig:
        """The config in the text of a `config.json`; raises CheckpointError as `from_dict` does."""
        return cls.from_dict(parse_json(text))
