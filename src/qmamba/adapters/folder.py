"""Adapter folders in peft's layout: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..calibration import Calibration
from ..checkpoints.file_names import ADAPTER_FILES, CARD_FILE
from ..checkpoints.hub import PushOptions, check_repo_id, push
from ..checkpoints.safetensors_file import read_tensors, read_weights, serialise, shapes_in, write_files
from ..checks import DTYPES, check_weights, fail, json_object, parse_json, same_keys, sha256, text
from ..errors import AdapterError, CheckpointError
from .base import Adapter
from .card import render_adapter_card
from .registry import build, create

if TYPE_CHECKING:
    from typing_extensions import Unpack

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILES
FORMAT_VERSION = 1
_MAX_CONFIG_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Everything about an adapter except its weights.

    The file writes ``method`` as ``peft_type``, in capitals with underscores, and ``base`` as
    ``base_model_name_or_path``, where readers of peft files expect them.

    Args:
        method: name for :func:`qmamba.adapters.create`.
        base: name of the model that it was made for, for :func:`qmamba.load`.
        base_sha256: digest of that model's weights; any other model refuses the adapter.
        revision: commit of the base, if it came from the Hub.
        options: options of the method; sequences become lists.
        calibration: maps the adapted raw output of a crop to [0, 1].
        trained_on: names of the data sets that the adapter has seen.
        training: how it was trained; any JSON object.
        results: measured values, as in a checkpoint's config.
        licence: licence of the adapter's weights.
        limits: where not to use it, for the card.
        weights_sha256, weights_bytes: digest and size of the weights file; "" and 0 until saved.
        dtype: stored type of the weights: float32, float16 or bfloat16.
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
        """Return a copy with changed fields, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the file, with peft's names first."""
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
        """Return the config of a JSON object; every key is required, and no other is allowed.

        Raises:
            CheckpointError: a missing or unknown key, or a value of a wrong type.
        """
        if not isinstance(data, Mapping):
            raise fail("(whole file)", "an object", data)
        data = {"limits": "", **data}  # early files lack this key
        names = {field.name for field in dataclasses.fields(cls)} - {"method", "base"}
        same_keys(data, names | {"peft_type", "base_model_name_or_path"})
        values = dict(data)
        method = text(values.pop("peft_type"), "peft_type").lower().replace("_", "-")
        calibration = Calibration.from_dict(values.pop("calibration"))
        return cls(
            method=method, base=values.pop("base_model_name_or_path"), calibration=calibration, **values
        )


def read_adapter_config(folder: str | os.PathLike[str]) -> AdapterConfig:
    """Read the config in an adapter folder, `adapter_config.json` only.

    Raises:
        AdapterError: the file is missing, or is not the config of a qmamba adapter.
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

    Equal weights give equal bytes. Elements that never act are not written, see :meth:`Adapter.stored`.

    Args:
        folder: created if missing; files of the same names are replaced.
        adapter: from :func:`qmamba.adapters.create`.
        config: to write; method, options, and digest, size and type of the weights are filled in.
        dtype: of the stored weights: float32, float16 or bfloat16; by default the config's.

    Returns:
        The config as written.

    Raises:
        CheckpointError: a weight is NaN or too large for the type, the type is not one of the three, or the
            folder cannot be written.
    """
    name = config.dtype if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"dtype of stored weights must be one of {', '.join(DTYPES)}, got {name}")
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
    folder: str | os.PathLike[str], network: nn.Module, base_sha256: str
) -> tuple[Adapter, AdapterConfig]:
    """Load an adapter for the network that it was made for, on its device and in its type.

    The global random state is left untouched.

    Args:
        folder: written by :func:`save_adapter`.
        network: the base.
        base_sha256: digest of the base's weights.

    Raises:
        AdapterError: no adapter is there, it was made for another base, or its config does not match.
        CheckpointError: a file is missing, damaged or truncated.
    """
    folder = Path(folder)
    config, path = read_adapter_config(folder), folder / WEIGHTS_FILE
    if config.base_sha256 != base_sha256:
        raise AdapterError(
            f"{folder}: made for {config.base!r} with weights {config.base_sha256[:8]}…, but this base has "
            f"{base_sha256[:8]}…; load that base, or adapt this one"
        )
    data = read_weights(path, config.weights_sha256, config.weights_bytes, CONFIG_FILE)
    try:
        with torch.device("meta"):  # absurd options must cost nothing before shapes are compared
            shapes = shapes_in(path, data)
            build(config.method, network, **config.options).check({n: s for n, (_, s) in shapes.items()})
        with torch.random.fork_rng(devices=[]):
            adapter = create(config.method, network, **config.options)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from error
    adapter.restore(read_tensors(path, data))
    return adapter.requires_grad_(False).eval(), config


def push_to_hub(folder: str | os.PathLike[str], repo_id: str, **options: Unpack[PushOptions]) -> str:
    """Upload an adapter folder to the Hub in one commit, after the digest of the weights has been checked.

    Repository and branch are created if they do not exist. Config, weights and card are sent, no other file.

    Args:
        folder: written by :func:`save_adapter`.
        repo_id: `user/repo`.
        **options: ``private``, whether a new repository is private; ``token``, in place of the one that is
            logged in; ``commit_message``; ``revision``, the branch to commit to.

    Returns:
        The address of the commit.

    Raises:
        AdapterError: no adapter is there.
        CheckpointError: the weights are missing, damaged or truncated; nothing was sent.
        HubError: the upload failed; one line with what to do.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    config = read_adapter_config(folder)
    read_weights(folder / WEIGHTS_FILE, config.weights_sha256, config.weights_bytes, CONFIG_FILE)
    options.setdefault("commit_message", "Upload a qmamba adapter")
    return push(folder, (*ADAPTER_FILES, CARD_FILE), repo_id, **options).url
