"""`ModelConfig`: the contents of a checkpoint's `config.json`, as one frozen and checked dataclass."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args

from qmamba.calibration import Calibration
from qmamba.checkpoints.file_names import NAME
from qmamba.checks import check_weights, fail, json_object, numbers, parse_json, same_keys, text
from qmamba.errors import CheckpointError
from qmamba.models.registry import BaseWeights, Output, TokenizerFile
from qmamba.preprocessing import Preprocessing
from qmamba.protocol import Protocol
from qmamba.quantization.config import Quantization

FORMAT_VERSION = 2


def _tuples(value: Any) -> Any:
    """Turn lists into tuples, so that `widths=(32, 64)` equals what is read from a file."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


_PARTS: dict[str, type[Preprocessing] | type[Protocol] | type[Calibration]] = {
    "preprocessing": Preprocessing,
    "protocol": Protocol,
    "calibration": Calibration,
}

_RECORDS: dict[str, type[BaseWeights] | type[TokenizerFile]] = {
    "bases": BaseWeights,
    "tokenizers": TokenizerFile,
}
_OPTIONAL = {"quantization", "tokenizers"}  # keys that most files do without


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything about a checkpoint but its weights; `docs/checkpoints.md` describes each key.

    Args:
        name: short name, letters, digits, `.`, `_`, `-`; never used as a path.
        arch: architecture, as `create_model` takes it.
        overrides: keyword arguments of `create_model`; sequences are kept as tuples.
        preprocessing: normalisation, and size of the network's inputs.
        protocol: which crops are scored when the caller names none.
        calibration: maps the raw quality of a crop to [0, 1], higher is better.
        lower_better: whether a lower score means a better photograph.
        score_range: lowest and highest score; [0, 1] is mapped to it, downwards if `lower_better`.
        trained_on: names of the data sets that the weights have seen.
        training: how it was trained; any JSON object.
        licence: licence of the weights, an SPDX identifier where there is one.
        results: measured values, `{where: {"srcc": 0.61, "srcc_low": 0.58, "srcc_high": 0.64, "n": 2400}}`.
        limits: what the model is not good for, in Markdown; goes into the model card.
        weights_sha256: of `model.safetensors`, 64 hexadecimal digits; empty until saved.
        weights_bytes: size of `model.safetensors`; 0 until saved.
        dtype: type that the weights are stored in: float32, float16 or bfloat16.
        output: what the network returns, as its `Architecture` has it: "number", "levels" or "words".
        bases: frozen weights that the checkpoint names and does not store; empty where it stores all weights.
        quantization: what is quantized, and how; None for a network in float, whose file has no such key.
        tokenizers: files that the checkpoint names and does not store; empty for a network without words,
            whose file has no such key.
        format_version: 2. A file of version 1 is read as one without `output` and `bases`, and with inputs of
            any size.

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
    output: Output = "number"
    bases: tuple[BaseWeights, ...] = ()
    quantization: Quantization | None = None
    tokenizers: tuple[TokenizerFile, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if type(self.format_version) is not int or self.format_version != FORMAT_VERSION:
            raise fail("format_version", str(FORMAT_VERSION), self.format_version)
        if not NAME.fullmatch(text(self.name, "name")):
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
        if self.output not in get_args(Output):
            raise fail("output", f"one of {', '.join(get_args(Output))}", self.output)
        for key, record in _RECORDS.items():
            value = getattr(self, key)
            if not isinstance(value, (list, tuple)) or not all(isinstance(each, record) for each in value):
                raise fail(key, f"a list of {record.__name__}", value)
            object.__setattr__(self, key, tuple(value))
        if self.quantization is not None and not isinstance(self.quantization, Quantization):
            raise fail("quantization", "a Quantization or None", self.quantization)
        if self.quantization is not None and self.bases:
            raise fail("bases", "empty in a quantized checkpoint, which stores all weights", self.bases)
        check_weights(self.weights_sha256, self.weights_bytes, self.dtype)

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in their order, `format_version` first, ready for JSON."""
        data: dict[str, Any] = {"format_version": self.format_version}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            data[field.name] = value.to_dict() if hasattr(value, "to_dict") else _lists(value)
        # A deep copy: the caller may change what it gets without changing this frozen config.
        data["overrides"] = {key: _lists(value) for key, value in self.overrides.items()}
        data |= {key: json_object(data[key], key) for key in ("training", "results")}
        data |= {key: [dataclasses.asdict(each) for each in getattr(self, key)] for key in _RECORDS}
        for key in _OPTIONAL:
            if not getattr(self, key):
                del data[key]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Return the config that `to_dict` or a file of version 1 holds.

        Every key must be there, `quantization` in quantized checkpoints only, `tokenizers` in those of
        networks with words only, and no other.

        Raises:
            CheckpointError: an unknown format version, a missing or unknown key, a value of a wrong type.
        """
        if not isinstance(data, Mapping):
            raise fail("(whole file)", "an object", data)
        version = data.get("format_version")
        if type(version) is not int or version not in (1, FORMAT_VERSION):
            raise CheckpointError(
                f"config: format_version is {version!r}, this qmamba reads 1 and {FORMAT_VERSION}: "
                "upgrade qmamba (pip install -U qmamba), or check that the folder is a qmamba checkpoint"
            )
        names = {field.name for field in dataclasses.fields(cls)} - (_OPTIONAL - data.keys())
        same_keys(data, names if version > 1 else names - {"output", "bases", *_OPTIONAL})
        values = {**data, "format_version": FORMAT_VERSION}
        for key in _PARTS:
            if not isinstance(data[key], Mapping):
                raise fail(key, "an object", data[key])
        if version == 1:
            same_keys(data["preprocessing"], {"mean", "std"}, "preprocessing")
            values["preprocessing"] = {**Preprocessing().to_dict(), **data["preprocessing"]}
        values |= {key: kind.from_dict(values[key]) for key, kind in _PARTS.items()}
        values |= {key: _records(data.get(key, []), key) for key in _RECORDS}
        if "quantization" in data:
            values["quantization"] = Quantization.from_dict(data["quantization"])
        return cls(**values)

    def to_json(self) -> str:
        """Return the text of `config.json`: two-space indents, one trailing newline."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelConfig:
        """Return the config in the text of a `config.json`; raises CheckpointError as `from_dict` does."""
        return cls.from_dict(parse_json(text))


def _records(values: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise fail(key, "a list of objects", values)
    record, records = _RECORDS[key], []
    for value in values:
        if not isinstance(value, Mapping):
            raise fail(key, "a list of objects", values)
        same_keys(value, {field.name for field in dataclasses.fields(record)}, key)
        try:
            records.append(record(**value))
        except ValueError as error:
            raise CheckpointError(f"config: {key}: {error}") from error
    return tuple(records)
