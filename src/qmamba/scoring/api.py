"""Load a scorer, and score images in one call."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast, overload

import numpy as np
import torch
from PIL import Image

from qmamba.adapters.host import DEFAULT_NAME
from qmamba.checkpoints import ModelConfig
from qmamba.errors import BackendError
from qmamba.ops.fork import use_one_thread_in_forked_child
from qmamba.ops.precision import fastest_dtype
from qmamba.protocol import Kind, Protocol
from qmamba.scoring.scorer import Scorer
from qmamba.scoring.stream import Column, ScoreOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DEFAULT_MODEL", "Scorer", "load", "score"]

DEFAULT_MODEL = "lqmamba-n"


@torch.inference_mode(False)  # weights that are made in inference mode never take part in a gradient
def load(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    local_files_only: bool = False,
    protocol: Kind | Protocol | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    adapter: str | os.PathLike[str] | None = None,
    checkpointing: bool = False,
    draft: bool = False,
) -> Scorer:
    """Load a scorer from a checkpoint.

    Args:
        name: a name from `qmamba.list_models()`, a checkpoint folder, or a Hub id "user/repository". Only a
            Hub id, a name that an index maps to the Hub, and a checkpoint that names base weights on the Hub
            can cause a download; docs/checkpoints.md describes indexes.
        revision: branch, tag or commit of a Hub id.
        device: where to put the weights; the CPU by default.
        dtype: floating type of the weights, float32 by default. "auto" takes bfloat16 where the CPU or GPU
            has instructions for it. Scores are float32 in any case.
        local_files_only: take files of the Hub from the cache, and never use the network.
        protocol: "grid", "random", "whole", "scales", or a `Protocol`, in place of the checkpoint's own. A
            word keeps the checkpoint's other numbers. Measured results hold for its own protocol only.
        cache_dir: in place of the standard Hub cache.
        token: in place of the token that is logged in to the Hub.
        adapter: name, folder or Hub id of an adapter that was made for this model; active from the start,
            under the name "default". `Scorer.load_adapter` loads more of them.
        checkpointing: with activation checkpointing, when the score is used as a loss: the same gradients in
            less memory and more time. `scorer.network.checkpointing` switches it later.

    Returns:
        A frozen scorer; a `qmamba.scoring.LanguageScorer` where the network answers in words.

    Raises:
        UnknownModelError: no model has this name, and near names are listed; or nobody has published it yet.
        CheckpointError: the checkpoint is incomplete or damaged; AdapterError, a kind of it, if the adapter
            was made for another model.
        HubError: a Hub repository cannot be reached, or is not in the cache.
        ArgumentError: an unknown protocol.
        BackendError: the device or type cannot be used here.
    """
    from qmamba.checkpoints import load_checkpoint
    from qmamba.checkpoints.locate import resolve

    use_one_thread_in_forked_child()
    dtype = _floating(dtype, device)
    options: Any = {"local_files_only": local_files_only, "cache_dir": cache_dir, "token": token}
    folder = resolve(name, revision=revision, **options)
    network, config = load_checkpoint(folder, dtype=dtype, **options)
    if isinstance(protocol, Protocol):
        config = config.replace(protocol=protocol)
    elif protocol is not None:
        config = config.replace(protocol=config.protocol.as_kind(protocol))
    try:
        network = network.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        # torch's first line names the cause.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(
            f"device {str(device)!r} cannot be used here ({reason}); try device='cpu'"
        ) from error
    cast(Any, network).checkpointing = checkpointing
    scorer = _scorer(network, config, options)
    scorer.draft = draft
    if adapter is not None:
        scorer.load_adapter(adapter, **options)
        scorer.set_adapter(DEFAULT_NAME)
    return scorer


def _floating(dtype: torch.dtype | Literal["auto"] | None, device: str | torch.device | None) -> torch.dtype:
    """Return the floating type of the weights."""
    if dtype == "auto":
        return fastest_dtype(torch.device(device or "cpu"))
    if dtype is None:
        return torch.float32
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        known = 'torch.float32, torch.float16, torch.bfloat16 or "auto"'
        raise BackendError(f"dtype must be {known}, got {dtype!r}")
    return dtype


def _scorer(network: torch.nn.Module, config: ModelConfig, options: Any) -> Scorer:
    if config.output != "words":
        return Scorer(network, config)
    from qmamba.checkpoints.bases import fetcher
    from qmamba.scoring.language import LanguageScorer

    return LanguageScorer.of(network, config, fetcher(**options))


_default_lock = threading.Lock()


def _renew_lock() -> None:
    global _default_lock
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # another thread of the parent may hold the lock at a fork
    os.register_at_fork(after_in_child=_renew_lock)


@functools.cache
def _default() -> Scorer:
    return load()


@overload
def score(
    images: str | os.PathLike[str] | bytes | BinaryIO | Image.Image, **options: Unpack[ScoreOptions]
) -> float: ...
@overload
def score(images: np.ndarray | torch.Tensor | Column, **options: Unpack[ScoreOptions]) -> Any: ...
@overload
def score(images: Iterable[Any], **options: Unpack[ScoreOptions]) -> torch.Tensor: ...


def score(images: Any, **options: Unpack[ScoreOptions]) -> Any:
    """Score one image, or each of a sequence, with the embedded model.

    The model is loaded once per process, at the first call. For another model, device or protocol see `load`.

    Args:
        images: one image or a sequence of images; see `Scorer.score`.
        **options: on_error, batch_size, progress, max_pixels; see `Scorer.score`.

    Returns:
        A float in [0, 1] for a single image, higher is better; for a sequence of n a tensor (n,), float32,
        or for a pandas Series a Series with its index.

    Raises:
        ImageError: as `Scorer.score`.
    """
    # functools.cache alone would let two threads load the model at once.
    with _default_lock:
        scorer = _default()
    return scorer.score(images, **options)
