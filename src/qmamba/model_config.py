"""`ModelConfig`: what a checkpoint's `config.json` says, as one frozen and checked dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from qmamba.calibration import Calibration
from qmamba.errors import CheckpointError
from qmamba.protocol import Protocol

FORMAT_VERSION = 1
DTYPES = ("float32", "float16", "bfloat16")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def _fail(key: str, expected: str, value: object) -> CheckpointError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return CheckpointError(f"config: {key!r} must be {expected}, got {shown}")


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise _fail(key, "a string", value)
    return value


def _number(value: object, key: str) -> float:
    # bool is an int to Python, and `true` as a mean or a slope is a mistake worth reporting.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _fail(key, "a finite number", value)
    return float(value)


def _numbers(value: object, key: str, count: int) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise _fail(key, f"a list of {count} numbers", value)
    return tuple(_number(item, key) for item in value)


def _free(value: object, key: str) -> dict[str, Any]:
    """A deep copy of a JSON object; what JSON cannot hold is refused now rather than when it is saved."""
    if not isinstance(value, Mapping):
        raise _fail(key, "an object", value)
    try:
        copy = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"config: {key!r} must hold plain JSON values only ({error})") from error
    if copy.keys() != value.keys():
        raise CheckpointError(f"config: {key!r} must have strings as keys")
    return dict(copy)


def _tuples(value: Any) -> Any:
    """JSON has no tuples, `create_model` takes them: `widths=(32, 64)` must equal what a file gives back."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Channel means and standard deviations (red, green, blue), for images in [0, 1]."""

    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _numbers(self.mean, "preprocessing.mean", 3))
        object.__setattr__(self, "std", _numbers(self.std, "preprocessing.std", 3))
        if min(self.std) <= 0:
            raise _fail("preprocessing.std", "three numbers above zero", self.std)

    def to_dict(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        _same_keys(data, {"mean", "std"}, "preprocessing")
        return cls(mean=data["mean"], std=data["std"])


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
            raise _fail("format_version", str(FORMAT_VERSION), self.format_version)
        if not _NAME.fullmatch(_text(self.name, "name")):
            raise _fail("name", "letters, digits, '.', '_' or '-'", self.name)
        for key in ("arch", "licence", "limits"):
            _text(getattr(self, key), key)
        for key in ("overrides", "training", "results"):
            object.__setattr__(self, key, _free(getattr(self, key), key))
        object.__setattr__(self, "overrides", {key: _tuples(value) for key, value in self.overrides.items()})
        for key, kind in _PARTS.items():
            if not isinstance(getattr(self, key), kind):
                raise _fail(key, f"a {kind.__name__}", getattr(self, key))
        if not isinstance(self.lower_better, bool):
            raise _fail("lower_better", "true or false", self.lower_better)
        low, high = _numbers(self.score_range, "score_range", 2)
        if low >= high:
            raise _fail("score_range", "two rising numbers", self.score_range)
        object.__setattr__(self, "score_range", (low, high))
        if not isinstance(self.trained_on, (list, tuple)):
            raise _fail("trained_on", "a list of strings", self.trained_on)
        object.__setattr__(self, "trained_on", tuple(_text(item, "trained_on") for item in self.trained_on))
        self._check_weights()

    def _check_weights(self) -> None:
        if _text(self.weights_sha256, "weights_sha256") and not _SHA256.fullmatch(self.weights_sha256):
            raise _fail("weights_sha256", "64 lower-case hexadecimal digits", self.weights_sha256)
        if type(self.weights_bytes) is not int or self.weights_bytes < 0:
            raise _fail("weights_bytes", "a whole number", self.weights_bytes)
        if self.dtype not in DTYPES:
            raise _fail("dtype", f"one of {', '.join(DTYPES)}", self.dtype)

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
        data["training"], data["results"] = _free(self.training, "training"), _free(self.results, "results")
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The config that `to_dict` gave; every key must be there, and no other.

        Raises:
            CheckpointError: an unknown format version, a missing or unknown key, a value of a wrong type.
        """
        if not isinstance(data, Mapping):
            raise _fail("(whole file)", "an object", data)
        version = data.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise CheckpointError(
                f"config: format_version is {version!r}, this qmamba reads {FORMAT_VERSION}: "
                "upgrade qmamba (pip install -U qmamba), or check that the folder is a qmamba checkpoint"
            )
        _same_keys(data, {field.name for field in dataclasses.fields(cls)})
        values = dict(data)
        for key, kind in _PARTS.items():
            if not isinstance(data[key], Mapping):
                raise _fail(key, "an object", data[key])
            values[key] = kind.from_dict(data[key])
        return cls(**values)

    def to_json(self) -> str:
        """The text of `config.json`: two-space indents, one trailing newline."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelConfig:
        """The config in the text of a `config.json`; raises CheckpointError as `from_dict` does."""
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"config: not valid JSON ({error})") from error
        return cls.from_dict(data)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _same_keys(data: Mapping[str, Any], expected: set[str], where: str = "") -> None:
    prefix = f"{where}." if where else ""
    if missing := sorted(expected - data.keys()):
        raise CheckpointError(f"config: missing {', '.join(repr(prefix + key) for key in missing)}")
    for key in sorted(str(key) for key in data.keys() - expected):
        near = difflib.get_close_matches(key, expected, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise CheckpointError(f"config: unknown key {prefix + key!r}{hint}")
