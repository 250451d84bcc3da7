"""Find the folder of a name: embedded checkpoints and adapters, local folders, Hub ids, indexed names."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qmamba.checkpoints.file_names import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from qmamba.checkpoints.hub import HUB_PREFIX, FetchOptions, fetch, is_repo_id
from qmamba.checkpoints.index import Kind, listed
from qmamba.checkpoints.named import HUB_USER_VARIABLE, Lookup, look_up, unpublished_message
from qmamba.errors import AdapterError, CheckpointError, UnknownModelError, near_names

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _embedded(kind: str = "weights", files: tuple[str, str] = (CONFIG_FILE, WEIGHTS_FILE)) -> dict[str, Path]:
    root = Path(str(importlib.resources.files("qmamba").joinpath(kind)))
    if not root.is_dir():
        return {}
    folders = (f for f in sorted(root.iterdir()) if all((f / file).is_file() for file in files))
    return {folder.name: folder for folder in folders}


def _embedded_adapters() -> dict[str, Path]:
    return _embedded("weights/adapters", ADAPTER_FILES)


def embedded_models() -> list[str]:
    """Return the names of the checkpoints that ship with the library, sorted; reads file names only."""
    return list(_embedded())


def embedded_folders() -> list[Path]:
    """Return the folders of the checkpoints that ship with the library, sorted by name."""
    return list(_embedded().values())


def embedded_adapters() -> list[str]:
    """Return the names of the adapters that ship with the library, sorted; reads file names only."""
    return list(_embedded_adapters())


def list_models(*, published: bool | None = True) -> list[str]:
    """Return the names of models, sorted; the network is not used.

    Args:
        published: True for the names that `qmamba.load` finds: those that ship with the library, and the
            published ones of its index and of `QMAMBA_INDEX`. False for the names of an index that nobody
            has published yet. None for both.

    Raises:
        CheckpointError: an index of `QMAMBA_INDEX` does not exist or is not valid.

    >>> import qmamba
    >>> "lqmamba-n" in qmamba.list_models(), "lqmamba-t-koniq" in qmamba.list_models(published=None)
    (True, True)
    """
    return _names("models", embedded_models(), published)


def list_adapters(*, published: bool | None = True) -> list[str]:
    """Return the names of adapters, sorted; `published`, and errors, as for `list_models`.

    >>> import qmamba
    >>> qmamba.list_adapters()
    ['video-stills']
    """
    return _names("adapters", embedded_adapters(), published)


def _names(kind: Kind, embedded: list[str], published: bool | None) -> list[str]:
    known = {name: entry.published for name, entry in listed(kind).items()} | dict.fromkeys(embedded, True)
    return sorted(name for name, is_published in known.items() if published in (None, is_published))


def resolve(name: str | os.PathLike[str], **options: Unpack[FetchOptions]) -> Path:
    """Return the folder of a model, downloaded if `name` is a Hub id and it is not in the cache.

    A name is looked up in this order: models that ship; existing folders; Hub ids, `user/repo`; the package's
    index; the indexes of `QMAMBA_INDEX`; the repository of that name of the Hub user `QMAMBA_HUB_USER`.
    `hf-hub:user/repo` is always on the Hub, `./name` or a `Path` always a folder. Only Hub ids, names that an
    index maps to the Hub, and these two variables can cause network traffic. Commit and digest of an index
    are enforced.

    Args:
        name: name, folder or Hub id.
        options: see :class:`qmamba.checkpoints.hub.FetchOptions`; ``revision`` is for repositories on the Hub
            that no index pins.

    Raises:
        UnknownModelError: no such model, and near names are listed; or nobody has published it yet.
        CheckpointError: the name is that of a file, there is a revision for a folder, an index is not valid,
            or the weights are not those of the index.
        HubError: as `hub.fetch`.
    """
    found = _resolved(name, "models", _embedded(), (CONFIG_FILE, WEIGHTS_FILE), options)
    if found.folder is None:
        raise UnknownModelError(_unknown(os.fspath(name), found))
    return found.folder


def resolve_adapter(name: str | os.PathLike[str], **options: Unpack[FetchOptions]) -> Path:
    """Return the folder of an adapter: a name, an existing folder, or a Hub id.

    Order and options are those of `resolve`.

    Raises:
        AdapterError: no such adapter, or nobody has published it yet.
        CheckpointError, HubError: as `resolve`.
    """
    found = _resolved(name, "adapters", _embedded_adapters(), ADAPTER_FILES, options)
    if found.folder is None:
        raise AdapterError(_unknown_adapter(os.fspath(name), found))
    return found.folder


def _resolved(
    name: str | os.PathLike[str],
    kind: Kind,
    embedded: dict[str, Path],
    files: tuple[str, str],
    options: FetchOptions,
) -> Lookup:
    """Return what a name leads to: what ships, a folder, a Hub id, then indexes and the Hub user."""
    hub = partial(fetch, files=files, **options)
    folder = _find(name, embedded, hub, options.get("revision"), files)
    if folder is not None:
        return Lookup(folder)
    return look_up(name, kind, files, **options) if isinstance(name, str) else Lookup()


def _find(
    name: str | os.PathLike[str],
    embedded: dict[str, Path],
    hub: Callable[[str], Path],
    revision: str | None,
    files: tuple[str, str],
) -> Path | None:
    if not isinstance(name, (str, os.PathLike)):
        raise UnknownModelError(f"{name!r} names no model: give a name, a checkpoint folder or a Hub id")
    if isinstance(name, str) and name.startswith(HUB_PREFIX):
        return hub(name.removeprefix(HUB_PREFIX))
    folder = embedded.get(name) if isinstance(name, str) else None
    if folder is None and name:
        folder = _local(Path(name), files)
    if folder is not None:
        if revision is not None:
            raise CheckpointError(
                f"{os.fspath(name)} is not from the Hub, so it has no revisions: leave revision= out"
            )
        return folder
    return hub(name) if isinstance(name, str) and is_repo_id(name) else None


def _local(path: Path, files: tuple[str, str]) -> Path | None:
    path = path.expanduser()
    if path.is_file():
        raise CheckpointError(f"{path} is a file: give the folder that holds {' and '.join(files)}")
    return path if path.is_dir() else None


def _unknown(name: str, found: Lookup) -> str:
    from qmamba.models import list_archs

    models, archs = embedded_models(), list_archs()
    if found.entry is not None:
        return unpublished_message(found.entry, "models", models) + _asked(found)
    if name in archs:
        shipped = ", ".join(models) or "none yet"
        return (
            f"no weights ship for {name!r} (those that do: {shipped}): load a folder or a Hub id, "
            f"or build it untrained with create_model({name!r})"
        )
    return f"no model and no folder {name!r}; {_near(name)}; a Hub id is written user/repo{_asked(found)}"


def _near(name: str) -> str:
    """Return near names of models, published or not; else those that can be loaded."""
    every = near_names(name, list_models(published=None))
    return every if every.startswith("near") else near_names(name, list_models())


def _unknown_adapter(name: str, found: Lookup) -> str:
    shipped = embedded_adapters()
    if found.entry is not None:
        return unpublished_message(found.entry, "adapters", shipped) + _asked(found)
    return (
        f"no adapter {name!r}: give one that ships ({', '.join(shipped)}), its folder, or a Hub id, "
        f"user/repo{_asked(found)}"
    )


def _asked(found: Lookup) -> str:
    """Return the end of a message about a Hub user's repository that does not exist."""
    if not found.asked:
        return ""
    return f"; {HUB_USER_VARIABLE}: no {found.asked} on the Hub either (for a private one `hf auth login`)"
