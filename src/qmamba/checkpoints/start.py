"""What a network starts from: fresh weights, published ones, or a checkpoint of this library."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qmamba.checkpoints.bases import load_bases
from qmamba.checkpoints.folder import load_checkpoint
from qmamba.checkpoints.hub import HUB_PREFIX, fetch_file, is_repo_id
from qmamba.checkpoints.locate import embedded_models, resolve
from qmamba.errors import CheckpointError
from qmamba.models import Architecture, BaseWeights, get_architecture
from qmamba.models.converted import ConvertedState

WEIGHTS = "model.safetensors"  # of a Hub repository whose id names no file
MIDDLE = 0.5  # of the scale of labels, where a new head starts
BASES = "bases"  # in place of a name: the frozen base weights of the architecture


@dataclass(frozen=True)
class Start:
    """What became of each tensor of a network and of the file that it started from.

    Attributes:
        source: the name that was given, "" for fresh weights.
        loaded: names of the network's tensors that came from the file.
        missing: names of those that are not in the file: a new head, gates that start at one half.
        dropped: names in the file that were not used, and why.
        bases: frozen weights that the network has, with digests, which its checkpoint need not store.
    """

    source: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    dropped: Mapping[str, str] | None = None
    bases: tuple[BaseWeights, ...] = ()

    def report(self) -> str:
        """Return one line: how many tensors were loaded, and which were not.

        >>> Start("v.pth", ("a", "b"), ("head.fc.bias",), {"classifier.head.bias": "1000"}).report()
        'v.pth: 2 tensors loaded; not in it: head.fc.bias; dropped: classifier.head.bias (1000)'
        """
        if not self.source:
            return "random weights"
        parts = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        gates = [name for name in self.missing if ".gate." in name]
        names = [name for name in self.missing if name not in gates]
        names += [f"{len(gates)} tensors of route gates, which start at one half"] if gates else []
        if names:
            parts.append(f"not in it: {', '.join(names)}")
        if self.dropped:
            parts.append("dropped: " + ", ".join(f"{name} ({why})" for name, why in self.dropped.items()))
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return {
            "source": self.source, "loaded": list(self.loaded), "missing": list(self.missing),
            "dropped": dict(self.dropped or {}), "bases": [asdict(base) for base in self.bases],
        }  # fmt: skip


def start(network: nn.Module, name: str, root: Path | None = None) -> Start:
    """Give a network the weights that it starts from.

    Published weights go through the ``convert`` of the network's architecture. VMamba's (``v05_noz``) lose
    their head of 1000 classes, and a local-scan network takes them, too: its route gates then start at
    exactly one half, which the LayerNorm behind them absorbs. Frozen weights that a published file lacks come
    from the architecture's bases.

    Args:
        network: what ``create_model`` built, changed in place.
        name: "" for fresh weights, as the architecture starts a training; "bases" for its frozen base
            weights, from the Hub or its cache, and fresh ones for the rest; a name of
            ``qmamba.list_models()``; a checkpoint folder; a file of weights (``.pth``, read with
            ``weights_only=True``, or safetensors), ours or published; or a Hub id: ``user/repository`` for
            its ``model.safetensors``, ``user/repository/file.pth`` for another file.
        root: a folder that files may lie in.

    Returns:
        Which tensors were loaded, are missing, or were dropped.

    Raises:
        CheckpointError: no such file, or weights of another network; the first names or shapes that differ
            are given; bases of an architecture that has none.
        HubError: a Hub repository that cannot be reached.
    """
    architecture = get_architecture(str(getattr(network, "arch", "")))
    if not name:
        if architecture.start is not None:
            architecture.start(network)
        return Start("")
    if name == BASES:
        return _from_bases(network, architecture)
    (found, bases), own = _state(name, root), network.state_dict()
    if architecture.convert is not None and found.keys() != own.keys():
        try:
            return _started(name, network, architecture.convert(network, found), architecture)
        except CheckpointError as error:
            if own.keys().isdisjoint(found):
                raise CheckpointError(f"{name}: {error}") from error
    if wrong := sorted(k for k in own.keys() | found.keys() if _shape(own, k) != _shape(found, k)):
        raise CheckpointError(
            f"{name} is of another network than {network.arch}: {wrong[0]} is {_shape(found, wrong[0])} "
            f"in it and {_shape(own, wrong[0])} here (and {len(wrong) - 1} more differ)"
        )
    network.load_state_dict(found, strict=True)
    return Start(name, tuple(own), bases=bases)


def _started(name: str, network: nn.Module, converted: ConvertedState, architecture: Architecture) -> Start:
    missing = sorted(network.state_dict().keys() - converted.keys())
    if "head.fc.bias" in missing:
        nn.init.constant_(network.get_parameter("head.fc.bias"), MIDDLE)
    bases: tuple[BaseWeights, ...] = ()
    if architecture.trained is not None and not all(map(architecture.trained, missing)):
        bases = load_bases(network, architecture.bases)
        network.load_state_dict(converted, strict=False)  # statistics that the bases have, too
        missing = [each for each in missing if architecture.trained(each)]
    return Start(name, tuple(sorted(converted)), tuple(missing), dict(converted.dropped), bases)


def _from_bases(network: nn.Module, architecture: Architecture) -> Start:
    if not architecture.bases or architecture.trained is None:
        raise CheckpointError(
            f"architecture {architecture.name!r} has no base weights to start from; give a checkpoint, or "
            "start from random weights"
        )
    pinned = load_bases(network, architecture.bases)
    names = sorted(network.state_dict())
    loaded = tuple(each for each in names if not architecture.trained(each))
    return Start(BASES, loaded, tuple(each for each in names if architecture.trained(each)), bases=pinned)


def _shape(state: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def find_start(name: str, root: Path | None) -> Path | None:
    """Return the local file or folder of a name, None for one that may be on the Hub.

    Raises:
        CheckpointError: the name is neither a local path nor a Hub id.
    """
    for path in (*([root / name] if root else []), Path(name)):
        if path.exists():
            return path
    if is_repo_id(_repo_of(name)) and "/" in name:
        return None
    raise CheckpointError(
        f"nothing to start from: {root / name if root else name} does not exist and is no Hub id"
    )


def no_start(name: str, root: Path | None) -> str | None:
    """Return why there is nothing to start from by a name; None where there is, or may be on the Hub."""
    if not name or name == BASES or name in embedded_models():
        return None
    try:
        find_start(name, root)
    except CheckpointError as error:
        return str(error)
    return None


def _repo_of(name: str) -> str:
    return "/".join(name.removeprefix(HUB_PREFIX).split("/")[:2])


def _state(name: str, root: Path | None) -> tuple[Mapping[str, Any], tuple[BaseWeights, ...]]:
    """Return the tensors of a name, and the bases that frozen ones among them came from."""
    if name in embedded_models():
        return _tensors_and_bases(resolve(name))
    path = find_start(name, root)
    if path is None:
        repo = _repo_of(name)
        path = fetch_file(repo, name.removeprefix(HUB_PREFIX).removeprefix(repo).strip("/") or WEIGHTS)
    return _tensors_and_bases(path) if path.is_dir() else (read_state(path), ())


def _tensors_and_bases(folder: Path) -> tuple[Mapping[str, Any], tuple[BaseWeights, ...]]:
    network, config = load_checkpoint(folder)
    return network.state_dict(), config.bases


def read_state(path: Path) -> Mapping[str, Any]:
    """Return the tensors of a file: safetensors, or a pickle that holds only tensors and plain values.

    Raises:
        CheckpointError: it cannot be read, or holds anything else, which is never executed.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(_unreadable(path)) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(_unreadable(path)) from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} must hold weights by name, got a {type(found).__name__}")
    return found


def _unreadable(path: Path) -> str:
    return f"{path} cannot be read: it is damaged, or a pickle with more than tensors, which is not executed"
