"""Checkpoint folders: `config.json`, `model.safetensors` and a model card.

A folder from a stranger is data, never code: no pickle is read, no value of the config becomes a path, and
the header of the weights is checked before anything is made of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qmamba.errors import CheckpointError, QMambaError
from qmamba.model_card import render_card
from qmamba.model_config import DTYPES, FORMAT_VERSION, ModelConfig, Preprocessing

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "WEIGHTS_FILE",
    "ModelConfig",
    "Preprocessing",
    "load_checkpoint",
    "read_config",
    "render_card",
    "save_checkpoint",
    "verify_checkpoint",
]

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"

_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 4 << 20  # some 20,000 tensors; the largest architecture here has about a thousand
_MAX_WEIGHTS_BYTES = 4 << 30
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar")
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The config of a checkpoint folder. Reads `config.json` only.

    Raises:
        CheckpointError: no such folder or file, not a qmamba config, or a value that is wrong; one line.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; a checkpoint is one with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_FILE} here, so it is not a qmamba checkpoint")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path}: larger than {_MAX_CONFIG_BYTES} bytes, so it is not a qmamba config")
    try:
        return ModelConfig.from_json(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def verify_checkpoint(folder: str | os.PathLike[str]) -> ModelConfig:
    """Check a folder's config and that its weights are whole (size, sha256, header); builds no network.

    Raises:
        CheckpointError: as `load_checkpoint`, but for what only the network can tell.
    """
    config = read_config(folder)
    _read_weights(Path(folder), config)
    return config


def load_checkpoint(folder: str | os.PathLike[str]) -> tuple[nn.Module, ModelConfig]:
    """Build the network that a checkpoint folder describes and load its weights, strictly.

    Args:
        folder: a folder with `config.json` and `model.safetensors`.

    The global random state is left as it was.

    Returns:
        The network, float32 on the CPU whatever type the file holds, in eval mode, and its config.

    Raises:
        CheckpointError: a file is missing, damaged or truncated (sha256), the weights are a pickle, or they
            do not fit the architecture (the first names and shapes that differ are given).
    """
    folder = Path(folder)
    config = read_config(folder)
    data = _read_weights(folder, config)
    network = _build(folder, config)
    _check_fit(folder, config, network, _header(folder, data))
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: not valid safetensors ({error}); {_mend(folder)}"
        ) from error
    for key, value in state.items():
        if value.is_floating_point():
            if not bool(torch.isfinite(value).all()):
                raise CheckpointError(
                    f"{folder / WEIGHTS_FILE}: {key!r} holds NaN or infinity: train it again"
                )
            state[key] = value.float()
    network.load_state_dict(state, strict=True, assign=True)
    return network.float().eval(), config


def save_checkpoint(
    folder: str | os.PathLike[str],
    network: nn.Module,
    config: ModelConfig,
    *,
    dtype: torch.dtype | None = None,
    card: str | None = None,
) -> ModelConfig:
    """Write `model.safetensors`, `README.md` and `config.json` into a folder, which is made if need be.

    Each file is written beside its place and then moved into it, the config last: an interruption leaves
    either a folder without a config or one whose sha256 does not match, and both are refused when they are
    loaded. Equal weights give equal bytes.

    Args:
        folder: where to; files of the same names are replaced, others are left alone.
        network: the module that `create_model(config.arch, **config.overrides)` builds, on any device.
        config: what to write; sha256, size and type of the weights are filled in.
        dtype: float32, float16 or bfloat16 for the stored weights; the config's by default.
        card: text of the model card; made from the config by default.

    Returns:
        The config as written.

    Raises:
        CheckpointError: the network is of another architecture, a weight is NaN or too large for the type,
            the type is not one of the three, or the folder cannot be written.
    """
    folder = Path(folder)
    name = config.dtype if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"weights are stored as {', '.join(DTYPES)}, not {name}")
    _check_same(network, config)
    data = _serialise(network, getattr(torch, name))
    config = config.replace(
        weights_sha256=hashlib.sha256(data).hexdigest(), weights_bytes=len(data), dtype=name
    )
    files = (
        (WEIGHTS_FILE, data),
        (CARD_FILE, (render_card(config) if card is None else card).encode()),
        (CONFIG_FILE, config.to_json().encode()),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files:
            _replace(folder / file, content)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write the checkpoint ({error})") from error
    return config


def _check_same(network: nn.Module, config: ModelConfig) -> None:
    """Some overrides (windows, say) leave no trace in the weights' shapes: compare what was asked for."""
    arch, overrides = getattr(network, "arch", config.arch), getattr(network, "overrides", config.overrides)
    if arch != config.arch:
        raise CheckpointError(f"the network is a {arch!r}, the config says {config.arch!r}: make them agree")
    asked = ModelConfig(name=config.name, arch=arch, overrides=overrides).overrides
    for key in sorted((asked.keys() | config.overrides.keys()) - {"drop_path"}):  # it acts in training only
        ours, theirs = asked.get(key), config.overrides.get(key)
        if ours != theirs:
            raise CheckpointError(f"the network has {key}={ours}, the config {key}={theirs}: make them agree")


def _serialise(network: nn.Module, dtype: torch.dtype) -> bytes:
    from safetensors.torch import save

    state: dict[str, torch.Tensor] = {}
    for key, value in network.state_dict().items():
        stored = value.detach().to("cpu", dtype if value.is_floating_point() else None)
        if value.is_floating_point() and not bool(torch.isfinite(stored).all()):
            why = (
                "holds NaN or infinity"
                if not bool(torch.isfinite(value).all())
                else f"is too large for {dtype}"
            )
            raise CheckpointError(f"weight {key!r} {why}: nothing was saved")
        # A clone each: safetensors refuses tensors that share memory.
        state[key] = stored.contiguous().clone()
    return save(state, metadata={"format": "pt"})


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes private files; a checkpoint is as readable as any other file of its owner.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _mend(folder: Path) -> str:
    """What to do about a damaged folder. In the Hub's cache, a repository's folder must go."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return f"the download is damaged: delete the folder {repository} and load it again"
    return "the file is damaged: copy or download the folder again"


def _read_weights(folder: Path, config: ModelConfig) -> bytes:
    """The bytes of the weights file, once they are those that the config speaks of."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        if pickles:
            raise CheckpointError(
                f"{folder}: {pickles[0]} is a pickle, which can run code, and is never read: "
                f"ask for the weights as {WEIGHTS_FILE}"
            )
        raise CheckpointError(f"{folder}: no {WEIGHTS_FILE} here: copy or download the folder again")
    if not config.weights_sha256:
        raise CheckpointError(f"{folder / CONFIG_FILE}: no 'weights_sha256': write it with save_checkpoint")
    size = path.stat().st_size
    if size > _MAX_WEIGHTS_BYTES:
        raise CheckpointError(f"{path}: {size} bytes is more than any architecture here needs")
    with path.open("rb") as file:
        data = file.read(size)
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: a Git LFS pointer, not the weights: run `git lfs pull` in its repository"
        )
    # Protocol 2 and later begin with 0x80; a safetensors file begins with a small 64-bit length.
    if data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[4:8].strip(b"\0")):
        raise CheckpointError(
            f"{path}: a pickle under another name; it can run code and is never read: ask for safetensors"
        )
    if config.weights_bytes and size != config.weights_bytes:
        raise CheckpointError(f"{path}: {size} bytes where {config.weights_bytes} are due; {_mend(folder)}")
    found = hashlib.sha256(data).hexdigest()
    if found != config.weights_sha256:
        raise CheckpointError(
            f"{path}: sha256 {found[:8]}… where the config says {config.weights_sha256[:8]}…; {_mend(folder)}"
        )
    _header(folder, data)
    return data


def _header(folder: Path, data: bytes) -> Shapes:
    """Types and shapes of the tensors in a safetensors file, whose header must account for every byte."""
    path = folder / WEIGHTS_FILE

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: not valid safetensors ({what}); {_mend(folder)}")

    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise wrong(f"a header of {length} bytes in a file of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise wrong("its header is not JSON") from error
    if not isinstance(header, dict):
        raise wrong("its header is not an object")
    header.pop("__metadata__", None)
    tensors: Shapes = {}
    spans = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(entry, wrong, name)
        size = _ITEM_BYTES[dtype]
        for side in shape:
            size *= side
        if end - begin != size:
            raise wrong(f"{name!r} claims {end - begin} bytes where its shape needs {size}")
        spans.append((begin, end))
        tensors[name] = dtype, shape
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise wrong("tensors overlap or leave holes")
        position = end
    if position != len(data) - 8 - length:
        raise wrong(f"tensors take {position} bytes of {len(data) - 8 - length}")
    return tensors


def _entry(entry: Any, wrong: Any, name: str) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong(f"{name!r} has no dtype, shape and offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise wrong(f"{name!r} has type {dtype!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(number) is not int or number < 0 for number in numbers):
            raise wrong(f"{name!r} has a bad shape or offsets")
    if len(shape) > 8 or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong(f"{name!r} has a bad shape or offsets")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _build(folder: Path, config: ModelConfig) -> nn.Module:
    from qmamba.models import create_model

    try:
        network = _build_empty(config)
        if network is None:
            # An untrained network draws its weights; the caller's random numbers must not notice.
            with torch.random.fork_rng(devices=[]):
                network = create_model(config.arch, **config.overrides)
    except (QMambaError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: this qmamba cannot build {config.arch!r} as described: {why}"
        ) from error
    return network


def _build_empty(config: ModelConfig) -> nn.Module | None:
    """The network without memory: a config with absurd widths costs nothing before its weights are compared.

    None for an architecture that computes with tensors while it is built, or keeps some outside its state.
    """
    from qmamba.models import create_model

    try:
        with torch.device("meta"):
            network: nn.Module = create_model(config.arch, **config.overrides)
    except (NotImplementedError, RuntimeError):
        return None
    buffers = {name for name, _ in network.named_buffers()}
    return network if buffers <= network.state_dict().keys() else None


def _check_fit(folder: Path, config: ModelConfig, network: nn.Module, found: Shapes) -> None:
    """Refuse weights that are not exactly those of the network, with the first names that differ."""
    own = network.state_dict()
    expected = {key: tuple(value.shape) for key, value in own.items()}
    problems = []
    for what, names in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            problems.append(f"{what} {', '.join(repr(name) for name in sorted(names)[:2])}{more}")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name][1]:
            problems.append(f"{name!r} has shape {list(found[name][1])} where {list(expected[name])} is due")
            break
    if problems:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: not the weights of {config.arch!r} as the config describes it: "
            f"{'; '.join(problems)}: use the config that they were saved with"
        )
    for name, (dtype, _) in found.items():
        stored = _FLOATS.get(dtype, dtype)
        if stored != config.dtype and (own[name].is_floating_point() or dtype in _FLOATS):
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE}: {name!r} is {stored} where {config.dtype} is due: "
                "use the config that they were saved with"
            )
