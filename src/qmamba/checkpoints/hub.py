"""Checkpoints on the Hugging Face Hub. The standard cache, tokens and environment variables apply."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from qmamba.checkpoints.file_names import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from qmamba.errors import HubError, NoRepositoryError

if TYPE_CHECKING:
    from typing_extensions import Unpack

HUB_PREFIX = "hf-hub:"  # of a name that is always on the Hub
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class Commit(NamedTuple):
    """A commit on the Hub: its address, and its hash of 40 hexadecimal digits."""

    url: str
    oid: str


def is_repo_id(name: str) -> bool:
    """Return whether a name has the form of a Hub id, `user/repo`.

    >>> is_repo_id("someone/some-model"), is_repo_id("lqmamba-n"), is_repo_id("../up"), is_repo_id("a/b/c")
    (True, False, False, False)
    """
    return (
        bool(_REPO_ID.fullmatch(name)) and not name.startswith(".") and "--" not in name and ".." not in name
    )


class FetchOptions(TypedDict, total=False):
    """Options of downloads.

    Attributes:
        revision: branch, tag or full commit hash; the default branch when left out.
        local_files_only: look in the cache only, never at the network.
        cache_dir: in place of the standard cache (`HF_HUB_CACHE`).
        token: in place of the one that is logged in; False sends none.
    """

    revision: str | None
    local_files_only: bool
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None


def fetch(
    repo_id: str,
    files: tuple[str, str] = (CONFIG_FILE, WEIGHTS_FILE),
    **options: Unpack[FetchOptions],
) -> Path:
    """Download the two files of a checkpoint or an adapter, or find them in the cache.

    Both come from the same commit, even when the branch moves meanwhile. Without a network the state of a
    branch that was downloaded last is used.

    Args:
        repo_id: `user/repo`.
        files: names of the config and of the weights.
        options: see :class:`FetchOptions`.

    Returns:
        The folder in the cache. Its contents are not verified; `load_checkpoint` does that.

    Raises:
        HubError: not found, gated, no network, not in the cache; one line with what to do.
    """
    check_repo_id(repo_id)

    config, weights = files
    folder = fetch_file(repo_id, config, **options).parent
    options["revision"] = folder.name  # the commit
    fetch_file(repo_id, weights, **options)
    return folder


def fetch_file(
    repo_id: str,
    file: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Path:
    """Download one file of a repository, or find it in the cache; see :class:`FetchOptions`.

    Returns:
        The file in the cache. Its contents are not verified.

    Raises:
        HubError: not found, gated, no network, not in the cache; one line with what to do.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                repo_id,
                file,
                revision=revision,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                token=token,
                library_name="qmamba",
            )
        )
    # The client raises errors of its own and of its HTTP library, which changed with its versions.
    except Exception as error:
        raise _hub_error(error, repo_id, file, revision, local_files_only) from error


def check_repo_id(repo_id: str) -> None:
    """Refuse what is not a Hub id.

    Raises:
        HubError: it is not of the form `user/repo`.
    """
    if not is_repo_id(repo_id):
        raise HubError(f"{repo_id!r} is not a Hub id: write it as user/repo")


class PushOptions(TypedDict, total=False):
    """Options of uploads.

    Attributes:
        private: whether a new repository is private, False by default; an existing one stays as it is.
        token: one that may write, in place of the one that is logged in.
        commit_message: first line of the commit.
        revision: branch to commit to; the default branch when left out.
    """

    private: bool
    token: str | bool | None
    commit_message: str
    revision: str | None


def push(
    folder: str | os.PathLike[str],
    names: Sequence[str],
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    commit_message: str = "Upload a qmamba model",
    revision: str | None = None,
) -> Commit:
    """Upload those files of a folder that exist in one commit; create repository and branch if needed.

    Args:
        folder: where the files are.
        names: of the files.
        repo_id: `user/repo`.
        private, token, commit_message, revision: see :class:`PushOptions`.

    Returns:
        The commit.

    Raises:
        HubError: the upload failed; one line with what to do.
    """
    check_repo_id(repo_id)
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {name: Path(folder, name) for name in names if Path(folder, name).is_file()}
    try:
        api = HfApi(token=token, library_name="qmamba")
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()
        ]
        commit = api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    except Exception as error:
        raise _hub_error(error, repo_id, None, revision, False) from error
    return Commit(str(commit.commit_url), str(commit.oid))


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _kinds(chain: list[BaseException]) -> set[str]:
    # By name: versions of the client have these classes in different modules.
    return {kind.__name__ for item in chain for kind in type(item).__mro__}


def _hub_error(
    error: Exception, repo_id: str, file: str | None, revision: str | None, local_only: bool
) -> HubError:
    """Return an error of one line for any error of the Hub client."""
    kinds = _kinds(_causes(error))
    is_missing = "RepositoryNotFoundError" in kinds and "GatedRepoError" not in kinds
    message = _explain(error, repo_id, file, revision, local_only)
    return NoRepositoryError(message) if is_missing else HubError(message)


def _explain(error: Exception, repo_id: str, file: str | None, revision: str | None, local_only: bool) -> str:
    """Return one line for any error of the Hub client."""
    what = repo_id if revision is None else f"{repo_id} at {revision!r}"
    chain = _causes(error)
    kinds = _kinds(chain)
    statuses = [getattr(getattr(item, "response", None), "status_code", None) for item in chain]
    status = next((number for number in statuses if isinstance(number, int)), None)
    if "GatedRepoError" in kinds:
        return f"{what}: access is gated: ask for it on the model's page, then `hf auth login` or pass token="
    if "RepositoryNotFoundError" in kinds:
        return (
            f"{what}: no such model on the Hub, and no such folder here: check the spelling; "
            "for a private one `hf auth login` or pass token="
        )
    if "RevisionNotFoundError" in kinds:
        return f"{repo_id}: no revision {revision!r} on the Hub: give a branch, a tag or a full commit hash"
    if local_only:
        return f"{what}: {file} is not in the local cache: load it once with local_files_only=False"
    if "OfflineModeIsEnabled" in kinds:
        return (
            f"{what}: {file or 'the Hub'} is out of reach while HF_HUB_OFFLINE is set: unset it and try again"
        )
    if status == 404 and {"EntryNotFoundError", "RemoteEntryNotFoundError"} & kinds:
        kinds_of = {CONFIG_FILE: "checkpoint", WEIGHTS_FILE: "checkpoint"} | dict.fromkeys(
            ADAPTER_FILES, "adapter"
        )
        so = f", so it is not a qmamba {kinds_of[file]}" if file in kinds_of else ""
        return f"{what}: no {file} in this repository{so}"
    if status in (401, 403):
        return (
            f"{what}: the Hub refused access ({status}): `hf auth login`, or pass a token= that may do this"
        )
    if status is not None and status >= 400:
        return f"{what}: the Hub answered with error {status}: try again later, or load a local folder"
    if _is_network(chain):
        return (
            f"{what}: cannot reach the Hub: check the network, HF_ENDPOINT, proxies; or load a local folder"
        )
    return f"{what}: {_first_line(error)}: try again"


def _is_network(chain: list[BaseException]) -> bool:
    # By name, which imports none of the HTTP libraries that versions of the client use.
    modules = ("httpx", "httpcore", "requests", "urllib3", "socket", "ssl")
    return any(
        isinstance(item, (ConnectionError, TimeoutError)) or type(item).__module__.startswith(modules)
        for item in chain
    )


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
