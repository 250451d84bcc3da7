"""Checks of what a config file says: JSON from strangers, one line for whatever is wrong with it."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from qmamba.errors import CheckpointError

DTYPES = ("float32", "float16", "bfloat16")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fail(key: str, expected: str, value: object) -> CheckpointError:
    """The error for a value of a config that is not what it should be."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return CheckpointError(f"config: {key!r} must be {expected}, got {shown}")


def text(value: object, key: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise fail(key, "a string", value)
    return value


def number(value: object, key: str) -> float:
    """A finite number."""
    # bool is an int to Python, and `true` as a mean or a slope is a mistake worth reporting.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise fail(key, "a finite number", value)
    return float(value)


def numbers(value: object, key: str, count: int) -> tuple[float, ...]:
    """A list of so many finite numbers."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise fail(key, f"a list of {count} numbers", value)
    return tuple(number(item, key) for item in value)


def json_object(value: object, key: str) -> dict[str, Any]:
    """A deep copy of a JSON object; what JSON cannot hold is refused now rather than when it is saved."""
    if not isinstance(value, Mapping):
        raise fail(key, "an object", value)
    try:
        copy = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"config: {key!r} must hold plain JSON values only ({error})") from error
    if copy.keys() != value.keys():
        raise CheckpointError(f"config: {key!r} must have strings as keys")
    return dict(copy)


def same_keys(data: Mapping[str, Any], expected: set[str], where: str = "") -> None:
    """Refuse an object that lacks a key or has another."""
    prefix = f"{where}." if where else ""
    if missing := sorted(expected - data.keys()):
        raise CheckpointError(f"config: missing {', '.join(repr(prefix + key) for key in missing)}")
    for key in sorted(str(key) for key in data.keys() - expected):
        near = difflib.get_close_matches(key, expected, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise CheckpointError(f"config: unknown key {prefix + key!r}{hint}")


def sha256(value: object, key: str) -> str:
    """A digest, or an empty string where there is none yet."""
    if text(value, key) and not _SHA256.fullmatch(str(value)):
        raise fail(key, "64 lower-case hexadecimal digits", value)
    return str(value)


def check_weights(digest: object, size: object, dtype: object) -> None:
    """What a config says of the file of its weights."""
    sha256(digest, "weights_sha256")
    if type(size) is not int or size < 0:
        raise fail("weights_bytes", "a whole number", size)
    if dtype not in DTYPES:
        raise fail("dtype", f"one of {', '.join(DTYPES)}", dtype)


def parse_json(data: str | bytes) -> Any:
    """The value in a JSON text, without NaN and infinities."""
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"config: not valid JSON ({error})") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
