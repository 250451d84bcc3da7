"""Architectures by name: records that a family of networks registers when it is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import nn

from ..errors import UnknownModelError, near_names
from ..preprocessing import Preprocessing
from ..protocol import Protocol

Output: TypeAlias = Literal["number", "levels", "words"]
"""The kind of output: one number, a distribution over rating levels, or text."""


_SHA256 = re.compile(r"([0-9a-f]{64})?")
_REPO = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_][\w.-]*/[\w.-]+", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w./-]*", re.ASCII)
_PREFIX = re.compile(r"[\w.]*", re.ASCII)
_JSON = re.compile(r"[A-Za-z0-9_][\w.-]*\.json", re.ASCII)
_ROLE = re.compile(r"[a-z]+", re.ASCII)


@dataclass(frozen=True)
class BaseWeights:
    """Frozen weights that a checkpoint names and does not store: a file on the Hub, and its digest.

    Args:
        repo: Hub id, ``user/repo``.
        revision: branch, tag or commit.
        filename: a safetensors file at the top of the repository.
        sha256: of the file, 64 lower-case hexadecimal digits; empty where it is not known yet.
        prefix: what goes in front of the file's tensor names to make the network's: ``"vit."``, say.

    Raises:
        ValueError: a value of another form.
    """

    repo: str
    revision: str
    filename: str
    sha256: str
    prefix: str = ""

    def __post_init__(self) -> None:
        _check_forms(
            self,
            filename=(_FILE, "the name of a .safetensors file, without a folder"),
            prefix=(_PREFIX, "letters, digits, '_' or '.'"),
        )


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that a checkpoint names and does not store: a ``tokenizer.json`` on the Hub.

    Args:
        role: what it is for, "language" or "instruction", say.
        repo, revision, sha256: as for :class:`BaseWeights`.
        filename: a JSON file at the top of the repository, in the form of the library tokenizers.

    Raises:
        ValueError: a value of another form.
    """

    role: str
    repo: str
    revision: str
    filename: str
    sha256: str = ""

    def __post_init__(self) -> None:
        _check_forms(
            self,
            role=(_ROLE, "lower-case letters"),
            filename=(_JSON, "the name of a .json file, without a folder"),
        )


def _check_forms(record: BaseWeights | TokenizerFile, **forms: tuple[re.Pattern[str], str]) -> None:
    shared = {
        "repo": (_REPO, "a Hub id, user/repo"),
        "revision": (_REVISION, "a branch, a tag or a commit"),
        "sha256": (_SHA256, "64 lower-case hexadecimal digits, or empty"),
    }
    for name, (form, expected) in {**shared, **forms}.items():
        value = getattr(record, name)
        if not isinstance(value, str) or not form.fullmatch(value):
            raise ValueError(f"{name} must be {expected}, got {value!r}")


@dataclass(frozen=True)
class Architecture:
    """The record of an architecture.

    Args:
        name: for :func:`create_model`.
        build: returns an untrained network, given its own keyword arguments.
        preprocessing: default of a checkpoint of this architecture.
        protocol: default of a checkpoint of this architecture.
        convert: loads a published state dict into a network and returns a report; None where no weights are
            published in another format.
        output: what the network returns: "number" (B, 1); "levels", logits (B, L) from the worst level to the
            best; or "words".
        bases: frozen weights that its checkpoints name and do not store.
        trained: whether a tensor of this name is stored in a checkpoint that names bases; None where all are.
        names_of: names that a tensor of a base's file, its prefix in front, may have in the network; None
            where it has that very name.
        starts: more files that a training starts from, none of which a checkpoint names.
        tokenizers: that its checkpoints name and do not store.
        start: gives an untrained network the weights that a training starts from; None where it is built
            with them.
        listed: whether :func:`list_archs` names it; not where it needs packages of its own.
    """

    name: str
    build: Callable[..., nn.Module]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    protocol: Protocol = field(default_factory=Protocol)
    convert: Callable[[Any, Mapping[str, Any]], Any] | None = None
    output: Output = "number"
    bases: tuple[BaseWeights, ...] = ()
    trained: Callable[[str], bool] | None = None
    names_of: Callable[[str], Sequence[str]] | None = None
    starts: tuple[BaseWeights, ...] = ()
    tokenizers: tuple[TokenizerFile, ...] = ()
    start: Callable[[Any], None] | None = None
    listed: bool = True


_ARCHITECTURES: dict[str, Architecture] = {}


def register(architecture: Architecture) -> Architecture:
    """Register an architecture for :func:`create_model`, and return it.

    Raises:
        ValueError: the name is taken.
    """
    if architecture.name in _ARCHITECTURES:
        raise ValueError(f"architecture {architecture.name!r} is registered already; choose another name")
    _ARCHITECTURES[architecture.name] = architecture
    return architecture


def list_archs() -> list[str]:
    """Return the names that :func:`create_model` takes.

    >>> list_archs()
    ['loda', 'lqmamba-b', 'lqmamba-n', 'lqmamba-s', 'lqmamba-t', 'qmamba-b', 'qmamba-s', 'qmamba-t']
    """
    return sorted(name for name, architecture in _ARCHITECTURES.items() if architecture.listed)


def get_architecture(name: str) -> Architecture:
    """Return the record of an architecture.

    Raises:
        UnknownModelError: no architecture has this name; near names are listed.
    """
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise UnknownModelError(f"no architecture is called {name!r}; {near_names(name, list_archs())}")
    return _ARCHITECTURES[name]


def create_model(arch: str, **overrides: Any) -> nn.Module:
    """Build an untrained network.

    Args:
        arch: one of :func:`list_archs`.
        overrides: keyword arguments of the architecture, in place of its defaults. QMamba's are ``widths``,
            ``depths``, ``windows``, ``drop_path``, ``mlp_ratio`` and ``head`` (``"mean"`` or
            ``"statistics"``).

    Returns:
        The network, with ``arch`` and ``overrides`` as attributes.

    Raises:
        UnknownModelError: no architecture has this name.
        ValueError: an override that does not exist, or whose value no network can have.

    >>> net = create_model("qmamba-t", widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))
    >>> sum(p.numel() for p in net.parameters())
    456977
    """
    architecture = get_architecture(arch)
    overrides = {name: _plain(value) for name, value in overrides.items()}
    try:
        model = architecture.build(**overrides)
    except TypeError as error:
        raise ValueError(f"{arch} cannot be built with {sorted(overrides)}: {error}") from error
    for name, value in (("arch", arch), ("overrides", overrides)):
        setattr(model, name, value)
    return model


def _plain(value: Any) -> Any:
    """Return NumPy's numbers, tuples and arrays as Python numbers and lists, which JSON can hold."""
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, (Sequence, np.ndarray)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
