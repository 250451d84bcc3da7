"""Find a checkpoint or an adapter by a name that is neither embedded nor a folder: in indexes, on the Hub."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmamba.checkpoints.file_names import NAME
from qmamba.checkpoints.hub import HUB_PREFIX, fetch, fetch_file
from qmamba.checkpoints.index import Entry, Kind, indexes, listed
from qmamba.checks import parse_json
from qmamba.errors import CheckpointError, NoRepositoryError

HUB_USER_VARIABLE = "QMAMBA_HUB_USER"


@dataclass(frozen=True)
class Lookup:
    """What a name led to.

    Attributes:
        folder: of the files in the cache; None where nothing is published under the name.
        entry: an index's line for a name that nobody has published; None for an unknown name.
        asked: the Hub repository that was asked for and does not exist, "" if none was.
    """

    folder: Path | None = None
    entry: Entry | None = None
    asked: str = ""


def look_up(
    name: str, kind: Kind, files: tuple[str, str], *, revision: str | None = None, **options: Any
) -> Lookup:
    """Look a name up in the package's index, those of `QMAMBA_INDEX`, and below `QMAMBA_HUB_USER`.

    Only a name that an index maps to the Hub, an index on the Hub, and a Hub user cause network traffic.

    Args:
        name: letters, digits, `.`, `_`, `-`; any other name is unknown.
        kind: of what is looked up.
        files: names of its config and of its weights.
        revision: of a repository of the Hub user; names of an index are pinned to a commit.
        options: ``local_files_only``, ``cache_dir``, ``token`` of `qmamba.load`.

    Raises:
        CheckpointError: an index is not valid, the weights are not those of the index, or there is a
            revision for a name that the index pins.
        HubError: a repository, or an index on the Hub, cannot be reached and is not in the cache.
    """
    if not NAME.fullmatch(name):
        return Lookup()
    unpublished = None
    for index in indexes(**options):
        entry = index[kind].get(name)
        if entry is not None and entry.published:
            return Lookup(_fetched(entry, files, revision, options), entry)
        unpublished = unpublished or entry
    user = os.environ.get(HUB_USER_VARIABLE, "").strip()
    if not user:
        return Lookup(entry=unpublished)
    try:
        return Lookup(fetch(f"{user}/{name}", revision=revision, files=files, **options), unpublished)
    except NoRepositoryError:
        return Lookup(entry=unpublished, asked=f"{user}/{name}")


def _fetched(entry: Entry, files: tuple[str, str], revision: str | None, options: Mapping[str, Any]) -> Path:
    """Return the folder of a published entry, whose config states the digest of the index."""
    if revision is not None:
        raise CheckpointError(
            f"{entry.name}: the index pins commit {entry.commit[:8]}…: leave revision= out, or load "
            f"{HUB_PREFIX}{entry.repo}"
        )
    # The config alone comes first: weights that would be refused are not downloaded.
    path = fetch_file(entry.repo, files[0], revision=entry.commit, **options)
    config = parse_json(path.read_bytes())
    stated = config.get("weights_sha256") if isinstance(config, Mapping) else None
    if stated != entry.sha256:
        raise CheckpointError(
            f"{entry.name}: the index has weights {entry.sha256[:8]}…, but {entry.repo} at "
            f"{entry.commit[:8]}… has {str(stated)[:8]}…: ask the author of the index line"
        )
    return fetch(entry.repo, revision=entry.commit, files=files, **options)


def unpublished_message(entry: Entry, kind: Kind, embedded: Iterable[str]) -> str:
    """Return one line for a known name that nobody has published: how to train it, and what is near it."""
    how = f"train it with `qmamba reproduce {entry.train} --data-root DATA`" if entry.train else "train it"
    published = {name: each for name, each in listed(kind).items() if each.published}
    nearest = nearest_names(entry, [*embedded, *published], published)
    near = f"; nearest of what exists: {', '.join(nearest)}" if nearest else ""
    return (
        f"nobody has published {entry.name!r} yet; {how}, publish it with "
        f"`qmamba publish RUN --to USER`{near}"
    )


def nearest_names(
    entry: Entry, names: Iterable[str], known: Mapping[str, Entry], count: int = 2
) -> list[str]:
    """Return the names that come nearest: of the same data, then of the same architecture, then alike.

    >>> wanted = Entry("lqmamba-t-koniq", arch="lqmamba-t", data=("koniq10k",))
    >>> other = Entry("lqmamba-n-koniq", arch="lqmamba-n", data=("koniq10k",))
    >>> nearest_names(wanted, ["lqmamba-n", "qmamba-b", "lqmamba-n-koniq"], {"lqmamba-n-koniq": other})
    ['lqmamba-n-koniq', 'lqmamba-n']
    """

    def distance(name: str) -> tuple[bool, bool, float]:
        other = known.get(name, Entry(name))
        alike = difflib.SequenceMatcher(None, entry.name, name).ratio()
        return other.data != entry.data, other.arch != entry.arch, -alike

    return sorted(dict.fromkeys(names), key=distance)[:count]
