"""A scorer's methods for adapters, named as in peft: load, set, disable, delete."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import repeat
from typing import Any

import torch
from torch import nn

from qmamba.adapters.base import Adapter
from qmamba.adapters.folder import AdapterConfig, load_adapter
from qmamba.calibration import Calibration
from qmamba.checkpoints import ModelConfig
from qmamba.checkpoints.bases import stored_state
from qmamba.checkpoints.safetensors_file import serialise
from qmamba.errors import AdapterError
from qmamba.models.capabilities import TakesPrompts, require
from qmamba.quantization.packing import own_types

DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,95}")
# Adapters are added and deleted in a copy of the ModuleDict, since other threads score meanwhile. The lock is
# not an attribute of the scorer: it can be neither copied nor pickled.
_CHANGING = threading.Lock()
# Scorers, by identity, whose adapters this thread has disabled.
_disabled: ContextVar[tuple[int, ...]] = ContextVar("qmamba_disabled", default=())


class Loaded(nn.Module):
    """An adapter held by a scorer, and its config."""

    def __init__(self, adapter: Adapter, config: AdapterConfig) -> None:
        super().__init__()
        self.adapter = adapter
        self.config = config


class AdapterVerbs(nn.Module):
    """The part of a scorer that holds adapters: any number beside one network, at most one of them active.

    An adapter is never merged into the network, so that switching is only a change of name.

    Args:
        network: the base.
        config: the base's config.
    """

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.adapters = nn.ModuleDict()
        self._active: str | None = None

    def load_adapter(
        self,
        path: str | os.PathLike[str],
        name: str = DEFAULT_NAME,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
    ) -> AdapterConfig:
        """Load an adapter under a name. It becomes active with `set_adapter`.

        Args:
            path: a name from `qmamba.list_adapters()`, a folder, or a Hub id "user/repository". Only a Hub
                id, and a name that an index maps to the Hub, can cause a download.
            name: letters, digits, "_" or "-"; an adapter of the same name is replaced.
            revision, local_files_only, cache_dir, token: for a Hub id, as for `qmamba.load`.

        Returns:
            The adapter's config.

        Raises:
            AdapterError: no adapter is there, it was made for another base, or the name is invalid.
            CheckpointError: its files are damaged.
            HubError: the Hub repository cannot be downloaded.
        """
        from qmamba.checkpoints.locate import resolve_adapter

        _check_name(name)
        folder = resolve_adapter(
            path, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir, token=token
        )
        adapter, config = load_adapter(folder, self.base(), self.base_sha256())
        self.add_adapter(name, adapter, config)
        return config

    def add_adapter(self, name: str, adapter: Adapter, config: AdapterConfig | None = None) -> None:
        """Hold an adapter made by `qmamba.adapters.create`; it is frozen in place.

        Args:
            name: as for `load_adapter`.
            adapter: made for this scorer's network.
            config: its calibration and description; by default with the model's calibration.

        Raises:
            AdapterError: the name is invalid.
        """
        _check_name(name)
        if config is None:
            config = AdapterConfig(
                adapter.method, self.config.name, self.base_sha256(), calibration=self.config.calibration
            )
        weight = next(self.network.parameters())
        adapter = adapter.requires_grad_(False).to(weight.device, weight.dtype)
        with _CHANGING:
            self.adapters = nn.ModuleDict({**self.adapters, name: Loaded(adapter, config).eval()})

    def set_adapter(self, name: str | None) -> None:
        """Score with this adapter from now on, in all threads; None selects the model alone.

        Raises:
            AdapterError: no adapter has this name.
        """
        self._named(name)
        self._active = name

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter. If it was active, the model alone scores.

        Raises:
            AdapterError: no adapter has this name.
        """
        with _CHANGING:
            self._named(name)
            if self._active == name:
                self._active = None
            self.adapters = nn.ModuleDict({key: kept for key, kept in self.adapters.items() if key != name})

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Score by the model alone within this context, in this thread."""
        token = _disabled.set((*_disabled.get(), id(self)))
        try:
            yield
        finally:
            _disabled.reset(token)

    @property
    def active_adapter(self) -> str | None:
        """Name of the active adapter; None for the model alone, also within `disable_adapter`."""
        active = self._active
        # Skip the context variable, which compilers cannot trace, when no adapter is set.
        return None if active is None or id(self) in _disabled.get() else active

    def adapter_in_use(self) -> Adapter | None:
        """Return the active adapter, or None for the model alone."""
        chosen = self._chosen()
        return None if chosen is None else chosen.adapter

    @property
    def adapter_config(self) -> AdapterConfig | None:
        """Config of the active adapter; None for the model alone."""
        chosen = self._chosen()
        return None if chosen is None else chosen.config

    @property
    def calibration(self) -> Calibration:
        """The calibration in use: the active adapter's, or the model's."""
        return self._calibration_of(self._chosen())

    def _calibration_of(self, chosen: Loaded | None) -> Calibration:
        return self.config.calibration if chosen is None else chosen.config.calibration

    def base_sha256(self) -> str:
        """Return the SHA-256 of the model's weights as its checkpoint stores, or would store, them."""
        if self.config.weights_sha256:
            return self.config.weights_sha256
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        state = stored_state(self.network, self.config)
        data = serialise(state, dtype, own_types(self.network, state))
        return hashlib.sha256(data).hexdigest()

    def base(self) -> Any:
        """Return the network that adapters are made for.

        Raises:
            CapabilityError: it takes no adapters.
        """
        return require(self.network, TakesPrompts, "adapters")

    def _named(self, name: str | None) -> Loaded | None:
        if name is None:
            return None
        loaded = self._found(name)
        if loaded is None:
            loaded_names = ", ".join(self.adapters) or "none"
            raise AdapterError(f"no adapter is named {name!r}; loaded: {loaded_names}")
        return loaded

    def _found(self, name: str) -> Loaded | None:
        adapters = self.adapters  # once: another thread may put another ModuleDict here
        loaded = adapters[name] if isinstance(name, str) and name in adapters else None
        assert loaded is None or isinstance(loaded, Loaded)
        return loaded

    def _chosen(self) -> Loaded | None:
        """Return the active adapter, looked up once for a whole call: another thread may change it meanwhile.

        One that was deleted since its name was read is no longer active.
        """
        name = self.active_adapter
        return None if name is None else self._found(name)

    def _chosen_for(
        self, images: int | None, adapters: Sequence[str | None] | None
    ) -> Iterator[Loaded | None]:
        """Return an adapter, or None, for each image; `images` is their number, None where it is unknown."""
        if adapters is None:
            return repeat(self._chosen())
        if isinstance(adapters, str) or not isinstance(adapters, Sequence):
            raise AdapterError(f"adapters must be a list with a name or None per image, got {adapters!r}")
        if images is not None and len(adapters) != images:
            raise AdapterError(f"adapters must have a name for each of {images} images, got {len(adapters)}")
        return _enough([self._named(name) for name in adapters])


def _enough(chosen: Sequence[Loaded | None]) -> Iterator[Loaded | None]:
    """Yield the adapters; raise AdapterError if more are asked for."""
    yield from chosen
    raise AdapterError(f"adapters must have a name for each image, got {len(chosen)} names")


def _check_name(name: str) -> None:
    # torch keeps adapters by name in a ModuleDict, where "keys", say, is taken.
    if not isinstance(name, str) or not _NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
        raise AdapterError(f"invalid adapter name {name!r}: use letters, digits, '_' or '-'")
