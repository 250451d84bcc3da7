"""Adapter folders, as peft lays them out: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..calibration import Calibration
from ..checkpoints.file_names import ADAPTER_FILES, CARD_FILE
from ..checkpoints.safetensors_file import read_tensors, read_weights, serialise, shapes_in, write_files
from ..checks import DTYPES, check_weights, fail, json_object, parse_json, same_keys, sha256, text
from ..errors import AdapterError, CheckpointError
from ..models.qmamba import QMamba
from .base import Adapter
from .card import render_adapter_card
from .registry import build, create

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILES
FORMAT_VERSION = 1
_MAX_CONFIG_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Everything about an adapter but its weights.

    In the file ``method`` is written ``peft_type``, in capitals with underscores, and ``base``
    ``base_model_name_or_path``, where peft's readers look for them.

    Args:
        method: as :func:`qmamba.adapters.create` takes it.
        base: name of the model that it was made for, as :func:`qmamba.load` takes it.
        base_sha256: of that model's weights; an adapter is refused by any other.
        revision: commit of the base, if it came from the Hub.
        options: of the method; sequences are kept as lists.
        calibration: maps the adapted raw output of a crop to [0, 1].
        trained_on: names of the data sets that the adapter has seen.
        training: how it was trained; any JSON object.
        results: measured values, as in a checkpoint's config.
        licence: of the adapter's weights.
        limits: what it is not good for, for the card.
        weights_sha256, weights_bytes: of the file of weights; "" and 0 until saved.
        dtype: type that the weights are stored in: float32, float16 or bfloat16.
        format_version: 1.

    Raises:
        CheckpointError: a value of a wrong type or out of range; the message names the key.

    >>> config = AdapterConfig("style-prompt", "lqmamba-n", "0" * 64)
    >>> config.to_dict()["peft_type"]
    'STYLE_PROMPT'
    >>> AdapterConfig.from_dict(config.to_dict()) == config
    True
    """

    method: str
    base: str
    base_sha256: str
    revision: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    trained_on: tuple[str, ...] = ()
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    licence: str = "unknown"
    limits: str = ""
    weights_sha256: str = ""
    weights_bytes: int = 0
    dtype: str = "float32"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if type(self.format_version) is not int or self.format_version != FORMAT_VERSION:
            raise fail("format_version", str(FORMAT_VERSION), self.format_version)
        for key in ("method", "base", "licence"):
            text(getattr(self, key), key)
        if not isinstance(self.limits, str):
            raise fail("limits", "a string", self.limits)
        if not sha256(self.base_sha256, "base_sha256"):
            raise fail("base_sha256", "64 lower-case hexadecimal digits", self.base_sha256)
        if self.revision is not None:
            text(self.revision, "revision")
        for key in ("options", "training", "results"):
            object.__setattr__(self, key, json_object(getattr(self, key), key))
        if not isinstance(self.calibration, Calibration):
            raise fail("calibration", "a Calibration", self.calibration)
        if not isinstance(self.trained_on, (list, tuple)):
            raise fail("trained_on", "a list of strings", self.trained_on)
        object.__setattr__(self, "trained_on", tuple(text(item, "trained_on") for item in self.trained_on))
        check_weights(self.weights_sha256, self.weights_bytes, self.dtype)

    def replace(self, **changes: Any) -> AdapterConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The object in the file, with peft's names first."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        named = {
            "peft_type": fields.pop("method").upper().replace("-", "_"),
            "base_model_name_or_path": fields.pop("base"),
            "revision": fields.pop("revision"),
        }
        fields |= {key: json_object(fields[key], key) for key in ("options", "training", "results")}
        fields |= {"calibration": self.calibration.to_dict(), "trained_on": list(self.trained_on)}
        return named | fields

    @classmethod
    def from_dict(cls, data: Any) -> AdapterConfig:
        """The inverse of :meth:`to_dict`; every key must be there, and no other.

        Raises:
            CheckpointError: a missing or unknown key, or a value of a wrong type.
        """
        if not isinstance(data, Mapping):
            raise fail("(whole file)", "an object", data)
        data = {"limits": "", **data}  # adapters of the first days say nothing of them
        names = {field.name for field in dataclasses.fields(cls)} - {"method", "base"}
        same_keys(data, names | {"peft_type", "base_model_name_or_path"})
        values = dict(data)
        method = text(values.pop("peft_type"), "peft_type").lower().replace("_", "-")
        calibration = Calibration.from_dict(values.pop("calibration"))
        return cls(
            method=method, base=values.pop("base_model_name_or_path"), calibration=calibration, **values
        )


def read_adapter_config(folder: str | os.PathLike[str]) -> AdapterConfig:
    """The config of an adapter's folder. Reads `adapter_config.json` only.

    Raises:
        AdapterError: no such folder or file, or not the config of an adapter of ours; one line.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{folder}: no {CONFIG_FILE} here, so it is not an adapter")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise AdapterError(f"{path}: larger than {_MAX_CONFIG_BYTES} bytes, so it is not an adapter's config")
    try:
        return AdapterConfig.from_dict(parse_json(path.read_bytes()))
    except CheckpointError as error:
        raise AdapterError(f"{path}: {error}") from error


def save_adapter(
    folder: str | os.PathLike[str],
    adapter: Adapter,
    config: AdapterConfig,
    *,
    dtype: torch.dtype | None = None,
) -> AdapterConfig:
    """Write `adapter_model.safetensors`, `adapter_config.json` and a card, `README.md`, into a folder.

    Equal weights give equal bytes. What never acts is not written, see :meth:`Adapter.stored`.

    Args:
        folder: where to, made if need be; files of the same names are replaced.
        adapter: from :func:`qmamba.adapters.create`.
        config: what to write; method, options, sha256, size and type of the weights are filled in.
        dtype: float32, float16 or bfloat16 for the stored weights; the config's by default.

    Returns:
        The config as written.

    Raises:
        CheckpointError: a weight is NaN or too large for the type, the type is not one of the three, or the
            folder cannot be written.
    """
    name = config.dtype if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"weights are stored as {', '.join(DTYPES)}, not {name}")
    data = serialise(adapter.stored(), getattr(torch, name))
    config = config.replace(
        method=adapter.method, options=dataclasses.asdict(adapter.options),
        weights_sha256=hashlib.sha256(data).hexdigest(), weights_bytes=len(data), dtype=name,
    )  # fmt: skip
    written = json.dumps(config.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    card = render_adapter_card(config).encode()
    write_files(
        Path(folder), ((WEIGHTS_FILE, data), (CARD_FILE, card), (CONFIG_FILE, written.encode())), "adapter"
    )
    return config


def load_adapter(
    folder: str | os.PathLike[str], network: QMamba, base_sha256: str
) -> tuple[Adapter, AdapterConfig]:
    """The adapter in a folder, for the network that it was made for, on its device and in its type.

    The global random state is left as it was.

    Args:
        folder: as :func:`save_adapter` writes it.
        network: the base.
        base_sha256: of the base's weights.

    Raises:
        AdapterError: no adapter, one that was made for another base, or one that its config does not
            describe.
        CheckpointError: a file is missing, damaged or truncated.
    """
    folder = Path(folder)
    config, path = read_adapter_config(folder), folder / WEIGHTS_FILE
    if config.base_sha256 != base_sha256:
        raise AdapterError(
            f"{folder}: made for {config.base!r} with weights {config.base_sha256[:8]}…, and this base has "
            f"{base_sha256[:8]}…: load that base, or adapt this one"
        )
    data = read_weights(path, config.weights_sha256, config.weights_bytes, CONFIG_FILE)
    try:
        with torch.device("meta"):  # absurd options must cost nothing before the weights are compared
            shapes = shapes_in(path, data)
            build(config.method, network, **config.options).check({n: s for n, (_, s) in shapes.items()})
        with torch.random.fork_rng(devices=[]):
            adapter = create(config.method, network, **config.options)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from error
    adapter.restore(read_tensors(path, data))
    return adapter.requires_grad_(False).eval(), config
