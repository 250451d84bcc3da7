"""Tokenizers: files that a checkpoint of a network with words names by Hub id and digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qmamba.checkpoints.bases import Fetch, check_digest
from qmamba.errors import BackendError, CheckpointError
from qmamba.models.registry import TokenizerFile


def load_tokenizers(files: Sequence[TokenizerFile], fetch: Fetch) -> dict[str, Any]:
    """Return a ``Tokenizer`` of the library tokenizers for each role. Its file is data, no code.

    Args:
        files: of a checkpoint's config.
        fetch: of :func:`qmamba.checkpoints.bases.fetcher`.

    Raises:
        BackendError: tokenizers is not installed.
        HubError: a file is neither in the cache nor can be downloaded.
        CheckpointError: a file has another digest than the checkpoint names, or is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BackendError('words need tokenizers: pip install "qmamba[explain]"') from error
    found = {}
    for file in files:
        path = fetch(file)
        check_digest(path, file)
        try:
            found[file.role] = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{path}: not a tokenizer ({reason}); name another, or load it again"
            ) from error
    return found
