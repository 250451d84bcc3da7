"""Find the folder of a name: embedded checkpoints and adapters, local folders, Hub ids."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qmamba.checkpoints.file_names import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from qmamba.checkpoints.hub import FetchOptions, fetch, is_repo_id
from qmamba.errors import AdapterError, CheckpointError, UnknownModelError, near_names

if TYPE_CHECKING:
    from typing_extensions import Unpack

_HUB_PREFIX = "hf-hub:"


def _embedded(kind: str = "weights", files: tuple[str, str] = (CONFIG_FILE, WEIGHTS_FILE)) -> dict[str, Path]:
    root = Path(str(importlib.resources.files("qmamba").joinpath(kind)))
    if not root.is_dir():
        return {}
    folders = (f for f in sorted(root.iterdir()) if all((f / file).is_file() for file in files))
    return {folder.name: folder for folder in folders}


def _embedded_adapters() -> dict[str, Path]:
    return _embedded("weights/adapters", ADAPTER_FILES)


def list_models() -> list[str]:
    """Return the names of the checkpoints that ship with the library, sorted; reads file names only."""
    return list(_embedded())


def list_adapters() -> list[str]:
    """Return the names of the adapters that ship with the library, sorted; reads file names only.

    >>> import qmamba
    >>> qmamba.list_adapters()
    ['upscaled', 'video-stills']
    """
    return list(_embedded_adapters())


def resolve(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the folder of a model, downloaded if `name` is a Hub id and it is not in the cache.

    A name is looked up in this order: `list_models`; existing folders; Hub ids, `user/repo`.
    `hf-hub:user/repo` is always on the Hub, `./name` or a `Path` always a folder. Only a Hub id can cause
    network traffic.

    Args:
        name: name, folder or Hub id.
        revision: branch, tag or commit; for Hub ids only.
        local_files_only: never use the network.
        cache_dir: in place of the standard Hub cache.
        token: in place of the token that is logged in.

    Raises:
        UnknownModelError: no such model; near names are listed.
        CheckpointError: the name is that of a file, or there is a revision for a folder.
        HubError: as `hub.fetch`.
    """
    hub = partial(
        fetch, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir, token=token
    )
    folder = _find(name, _embedded(), hub, revision, (CONFIG_FILE, WEIGHTS_FILE))
    if folder is None:
        raise UnknownModelError(_unknown(os.fspath(name)))
    return folder


def resolve_adapter(name: str | os.PathLike[str], **options: Unpack[FetchOptions]) -> Path:
    """Return the folder of an adapter: one of `list_adapters`, an existing folder, or a Hub id.

    Order and options are those of `resolve`.

    Raises:
        AdapterError: no such adapter.
        CheckpointError: the name is that of a file, or there is a revision for a folder.
        HubError: as `hub.fetch`.
    """
    hub = partial(fetch, files=ADAPTER_FILES, **options)
    folder = _find(name, _embedded_adapters(), hub, options.get("revision"), ADAPTER_FILES)
    if folder is None:
        shipped = ", ".join(list_adapters())
        raise AdapterError(
            f"no adapter {os.fspath(name)!r}: give one that ships ({shipped}), its folder, or a Hub id, "
            "user/repo"
        )
    return folder


def _find(
    name: str | os.PathLike[str],
    embedded: dict[str, Path],
    hub: Callable[[str], Path],
    revision: str | None,
    files: tuple[str, str],
) -> Path | None:
    if not isinstance(name, (str, os.PathLike)):
        raise UnknownModelError(f"{name!r} names no model: give a name, a checkpoint folder or a Hub id")
    if isinstance(name, str) and name.startswith(_HUB_PREFIX):
        return hub(name.removeprefix(_HUB_PREFIX))
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


def _unknown(name: str) -> str:
    from qmamba.models import list_archs

    models, archs = list_models(), list_archs()
    if name in archs:
        shipped = ", ".join(models) or "none yet"
        return (
            f"no weights ship for {name!r} (those that do: {shipped}): load a folder or a Hub id, "
            f"or build it untrained with create_model({name!r})"
        )
    return f"no model and no folder {name!r}; {near_names(name, models)}; a Hub id is written user/repo"
