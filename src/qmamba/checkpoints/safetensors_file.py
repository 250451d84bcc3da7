"""Files of weights: safetensors with equal bytes for equal weights, read as files from strangers."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from qmamba.errors import CheckpointError

_MAX_HEADER_BYTES = 4 << 20  # about 20,000 tensors; the largest architecture here has about 1,000
_MAX_WEIGHTS_BYTES = 4 << 30
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar")
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def serialise(
    state: Mapping[str, torch.Tensor], dtype: torch.dtype, types: Mapping[str, torch.dtype] | None = None
) -> bytes:
    """Return the bytes of a safetensors file with these tensors, floating ones in this type.

    Args:
        state: tensors by name.
        dtype: of the floating ones.
        types: of those by name that keep another type.

    Raises:
        CheckpointError: a value is NaN, infinite, or too large for the type.
    """
    from safetensors.torch import save

    stored: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        target = (types or {}).get(key, dtype)
        cast = value.detach().to("cpu", target if value.is_floating_point() else None)
        if value.is_floating_point() and not bool(torch.isfinite(cast).all()):
            why = (
                "holds NaN or infinity"
                if not bool(torch.isfinite(value).all())
                else f"is too large for {target}"
            )
            raise CheckpointError(f"weight {key!r} {why}: nothing was saved")
        # A clone each: safetensors refuses tensors that share memory.
        stored[key] = cast.contiguous().clone()
    return save(stored, metadata={"format": "pt"})


def write_files(folder: Path, files: Iterable[tuple[str, bytes]], what: str) -> None:
    """Write files into a folder in their order; the folder is created if it does not exist.

    Each is written under another name and then renamed: with the config last, an interruption leaves either
    no config or one whose sha256 does not match, and both are refused when they are read.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files:
            replace_file(folder / file, content)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write the {what} ({error})") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, in place of one of that name."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes private files; a checkpoint should be readable as other files are.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _remedy(folder: Path) -> str:
    """Return what to do about a damaged folder; in the Hub's cache that is to delete the repository's."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return f"the download is damaged: delete the folder {repository} and load it again"
    return "the file is damaged: copy or download the folder again"


def read_weights(path: Path, sha256: str, size: int, config: str) -> bytes:
    """Return the bytes of a weights file, once they are known to be those that its config describes.

    Args:
        path: of the file.
        sha256, size: as the config states them; a size of 0 is not checked.
        config: name of the config's file.

    Raises:
        CheckpointError: the file is missing, a pickle, damaged, or another one.
    """
    folder = path.parent
    if not path.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        if pickles:
            raise CheckpointError(
                f"{folder}: {pickles[0]} is a pickle, which can run code, and is never read: "
                f"ask for the weights as {path.name}"
            )
        raise CheckpointError(f"{folder}: no {path.name} here: copy or download the folder again")
    if not sha256:
        raise CheckpointError(f"{folder / config}: no 'weights_sha256': write it with save_checkpoint")
    found_size = path.stat().st_size
    if found_size > _MAX_WEIGHTS_BYTES:
        raise CheckpointError(f"{path}: {found_size} bytes is more than any architecture here needs")
    with path.open("rb") as file:
        data = file.read(found_size)
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: a Git LFS pointer, not the weights: run `git lfs pull` in its repository"
        )
    # Protocol 2 and later begin with 0x80; a safetensors file begins with a small 64-bit length.
    if data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[4:8].strip(b"\0")):
        raise CheckpointError(
            f"{path}: a pickle under another name; it can run code and is never read: ask for safetensors"
        )
    if size and found_size != size:
        raise CheckpointError(f"{path}: must have {size} bytes, got {found_size}; {_remedy(folder)}")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"{path}: sha256 must be {sha256[:8]}… as in the config, got {found[:8]}…; {_remedy(folder)}"
        )
    shapes_in(path, data)
    return data


def read_tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors in the bytes of a file, floating ones as float32 on the CPU.

    Raises:
        CheckpointError: the bytes are no safetensors, or a value is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not valid safetensors ({error}); {_remedy(path.parent)}") from error
    for key, value in state.items():
        if value.is_floating_point():
            if not bool(torch.isfinite(value).all()):
                raise CheckpointError(f"{path}: {key!r} holds NaN or infinity: train it again")
            state[key] = value.float()
    return state


def shapes_in(path: Path, data: bytes) -> Shapes:
    """Return types and shapes of the tensors in a safetensors file, whose header must cover every byte."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: not valid safetensors ({what}); {_remedy(path.parent)}")

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
