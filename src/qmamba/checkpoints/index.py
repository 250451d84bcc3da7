"""The index of named checkpoints and adapters: which names exist, and where the published ones are.

An index is a TOML file, `models.toml`, with a line for each name below `[models]` or `[adapters]`:

    [models]
    lqmamba-t-koniq = { arch = "lqmamba-t", data = ["koniq10k"], train = "table1 --rows lqmamba-t/koniq",
                        published = false }
    lqmamba-t-livec = { repo = "lab/lqmamba-t-livec", commit = "…", sha256 = "…", arch = "lqmamba-t", … }

One comes with the package; `QMAMBA_INDEX` names more of them.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qmamba.checkpoints.file_names import NAME
from qmamba.checkpoints.hub import HUB_PREFIX, fetch_file, is_repo_id
from qmamba.errors import CheckpointError, HubError
from qmamba.toml import from_table, parse_toml

INDEX_FILE = "models.toml"
INDEX_VARIABLE = "QMAMBA_INDEX"
Kind: TypeAlias = Literal["models", "adapters"]
KINDS: tuple[Kind, Kind] = ("models", "adapters")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """A line of an index.

    Attributes:
        name: for `qmamba.load`, or for its ``adapter``.
        arch: architecture of the network.
        data: names of the sets that it was trained on; for an adapter, the target.
        train: how to train it, the arguments of `qmamba reproduce`; "" where no recipe is shipped.
        base: for an adapter, the name of the model that it belongs to.
        published: whether anybody has published it; `repo`, `commit` and `sha256` are "" otherwise.
        repo: Hub repository, ``user/repo``.
        commit: the commit that is loaded, 40 hexadecimal digits, whatever the branches do.
        sha256: digest of the weights, 64 hexadecimal digits; other weights are refused.
        licence: of the weights.
        results: measured values, such as ``{"srcc": 0.91, "plcc": 0.92, "n": 2015}``.
    """

    name: str
    arch: str = ""
    data: tuple[str, ...] = ()
    train: str = ""
    base: str = ""
    published: bool = True
    repo: str = ""
    commit: str = ""
    sha256: str = ""
    licence: str = ""
    results: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return the entry as a line of an index file, without empty values.

        >>> Entry("a", arch="lqmamba-t", data=("koniq10k",), published=False).line()
        'a = { arch = "lqmamba-t", data = ["koniq10k"], published = false }'
        """
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["name"]
        if self.published:
            del values["published"]
        shown = {key: _toml(value) for key, value in values.items() if value not in ("", (), {})}
        key = self.name if "." not in self.name else json.dumps(self.name)
        return f"{key} = {{ {', '.join(f'{name} = {value}' for name, value in shown.items())} }}"


Index: TypeAlias = Mapping[Kind, Mapping[str, Entry]]


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_toml(each)}' for name, each in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def parse_index(text: str, where: str) -> Index:
    """Return the entries of an index by kind and name.

    Args:
        text: TOML.
        where: the file, for errors.

    Raises:
        CheckpointError: not TOML, an unknown key, a published line without repository, commit or digest.
    """
    try:
        tables = parse_toml(text)
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid TOML: {error}") from error
    if unknown := sorted(tables.keys() - set(KINDS)):
        raise CheckpointError(f"{where} must have the tables [models] and [adapters], got {unknown[0]!r}")
    index: dict[Kind, dict[str, Entry]] = {}
    for kind in KINDS:
        lines = tables.get(kind, {})
        if not isinstance(lines, dict):
            raise CheckpointError(f"{where}: {kind} must be a table, got {lines!r}")
        index[kind] = {name: _entry(name, values, f"{where}: {name}") for name, values in lines.items()}
    return index


def _entry(name: str, values: Any, where: str) -> Entry:
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{where}: a name must have letters, digits, '.', '_' or '-'")
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} must be a table in braces, got {values!r}")
    entry = from_table(Entry, values, where, CheckpointError, name=name)
    if entry.published:
        _check_place(entry, where)
    return entry


def _check_place(entry: Entry, where: str) -> None:
    for key, is_valid, expected in (
        ("repo", is_repo_id(entry.repo), "a Hub id, user/repo"),
        ("commit", _COMMIT.fullmatch(entry.commit), "the 40 hexadecimal digits of a commit"),
        ("sha256", _SHA256.fullmatch(entry.sha256), "the 64 hexadecimal digits of the weights' digest"),
    ):
        if not is_valid:
            raise CheckpointError(
                f"{where}: {key} must be {expected}, got {getattr(entry, key)!r}; take the line that "
                "`qmamba publish` prints, or say published = false"
            )


@functools.cache
def package_index() -> Index:
    """Return the index that comes with the package."""
    path = Path(__file__).with_name(INDEX_FILE)
    return parse_index(path.read_text(encoding="utf-8"), INDEX_FILE)


def indexes(
    *,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Iterator[Index]:
    """Yield the package's index, then those of `QMAMBA_INDEX`, each read when it is asked for.

    Args:
        local_files_only, cache_dir, token: for indexes on the Hub, as for `qmamba.load`.

    Raises:
        CheckpointError: an index is neither a file nor a Hub id, or is not valid.
        HubError: an index on the Hub cannot be reached and is not in the cache.
    """
    yield package_index()
    for place in user_indexes():
        path = index_path(place, local_files_only=local_files_only, cache_dir=cache_dir, token=token)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{INDEX_VARIABLE}: {place} cannot be read: {error}") from error
        yield parse_index(text, place)


def user_indexes() -> list[str]:
    """Return the places in `QMAMBA_INDEX`, which commas separate."""
    return [place.strip() for place in os.environ.get(INDEX_VARIABLE, "").split(",") if place.strip()]


def index_path(
    place: str,
    *,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the file of an index: a file, a folder that holds one, or a Hub id, ``user/repo[@revision]``.

    Raises:
        CheckpointError: it is none of them.
        HubError: it is on the Hub, which cannot be reached, and not in the cache.
    """
    path = Path(place).expanduser()
    path = path / INDEX_FILE if path.is_dir() else path
    if path.is_file():
        return path
    repo, _, revision = place.removeprefix(HUB_PREFIX).partition("@")
    if not is_repo_id(repo):
        raise CheckpointError(
            f"{INDEX_VARIABLE} must name files, folders with {INDEX_FILE}, or Hub ids, separated by commas; "
            f"{place!r} is none of them"
        )
    try:
        return fetch_file(
            repo, INDEX_FILE, revision=revision or None, local_files_only=local_files_only,
            cache_dir=cache_dir, token=token,
        )  # fmt: skip
    except HubError as error:
        raise HubError(f"{INDEX_VARIABLE}: {error}") from error


def listed(kind: Kind) -> dict[str, Entry]:
    """Return all entries by name, in the order of the indexes; the first published line of a name counts.

    The network is not used: of indexes on the Hub, those in the cache are read.
    """
    found: dict[str, Entry] = {}
    for index in _in_reach():
        for name, entry in index[kind].items():
            if name not in found or (entry.published and not found[name].published):
                found[name] = entry
    return found


def out_of_reach() -> list[str]:
    """Return the indexes of `QMAMBA_INDEX` that `listed` leaves out: on the Hub, and not in the cache."""
    lacking = []
    for place in user_indexes():
        try:
            index_path(place, local_files_only=True)
        except HubError:
            lacking.append(place)
    return lacking


def _in_reach() -> Iterator[Index]:
    yield package_index()
    for place in user_indexes():
        try:
            path = index_path(place, local_files_only=True)
        except HubError:
            continue
        yield parse_index(path.read_text(encoding="utf-8"), place)
