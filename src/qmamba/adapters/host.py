"""What a scorer does with adapters, by the verbs of peft: load, set, disable, delete."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import repeat

import torch
from torch import nn

from qmamba.adapters.base import Adapter
from qmamba.adapters.folder import AdapterConfig, load_adapter
from qmamba.calibration import Calibration
from qmamba.checkpoints import ModelConfig
from qmamba.checkpoints.safetensors_file import serialise
from qmamba.errors import AdapterError
from qmamba.models.qmamba import QMamba

DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,95}")
# Scorers, by identity, whose adapters this thread has disabled.
_disabled: ContextVar[tuple[int, ...]] = ContextVar("qmamba_disabled", default=())


class Loaded(nn.Module):
    """An adapter that a scorer holds, and its config."""

    def __init__(self, adapter: Adapter, config: AdapterConfig) -> None:
        super().__init__()
        self.adapter = adapter
        self.config = config


class AdapterVerbs(nn.Module):
    """The part of a scorer that keeps adapters: any number of them beside one network, of which one may be
    active. An adapter is never built into the network, so to change it is to change a name.

    Args:
        network: the base.
        config: the base's.
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
        """Read an adapter and keep it under a name. It is not active before `set_adapter`.

        Args:
            path: a name from `qmamba.list_adapters()`, a folder, or a Hub id "user/repository". Only a Hub id
                can cause a download.
            name: letters, digits, "_" or "-"; an adapter of the same name is replaced.
            revision, local_files_only, cache_dir, token: for a Hub id, as for `qmamba.load`.

        Returns:
            The adapter's config.

        Raises:
            AdapterError: there is none, it was made for another base, or the name cannot be one.
            CheckpointError: its files are damaged.
            HubError: when a Hub repository cannot be had.
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
        """Keep an adapter that was made here, from `qmamba.adapters.create`; it is frozen in place.

        Args:
            name: as for `load_adapter`.
            adapter: made for this scorer's network.
            config: its calibration, and what is known about it; by default the calibration is the model's.

        Raises:
            AdapterError: the name cannot be one.
        """
        _check_name(name)
        if config is None:
            config = AdapterConfig(
                adapter.method, self.config.name, self.base_sha256(), calibration=self.config.calibration
            )
        weight = next(self.network.parameters())
        adapter = adapter.requires_grad_(False).to(weight.device, weight.dtype)
        self.adapters[name] = Loaded(adapter, config).eval()

    def set_adapter(self, name: str | None) -> None:
        """Score with this adapter from now on, in all threads; with None by the model alone.

        Raises:
            AdapterError: no adapter has this name.
        """
        self._named(name)
        self._active = name

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter. If it was the active one, none is active then.

        Raises:
            AdapterError: no adapter has this name.
        """
        self._named(name)
        if self._active == name:
            self._active = None
        del self.adapters[name]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """A context in which this thread scores by the model alone, as if it never had an adapter."""
        token = _disabled.set((*_disabled.get(), id(self)))
        try:
            yield
        finally:
            _disabled.reset(token)

    @property
    def active_adapter(self) -> str | None:
        """Name of the adapter that scores; None for the model alone, also within `disable_adapter`."""
        # Who never set an adapter never comes to the context variable, which compilers cannot look into.
        return None if self._active is None or id(self) in _disabled.get() else self._active

    def adapter_in_use(self) -> Adapter | None:
        """The active adapter itself."""
        chosen = self._chosen()
        return None if chosen is None else chosen.adapter

    @property
    def adapter_config(self) -> AdapterConfig | None:
        """What is known about the active adapter; None for the model alone."""
        chosen = self._chosen()
        return None if chosen is None else chosen.config

    @property
    def calibration(self) -> Calibration:
        """From raw quality to [0, 1]: the active adapter's own, or the model's."""
        return self._calibration_of(self._chosen())

    def _calibration_of(self, chosen: Loaded | None) -> Calibration:
        return self.config.calibration if chosen is None else chosen.config.calibration

    def base_sha256(self) -> str:
        """Digest of the model's weights as they are in its checkpoint, or would be."""
        if self.config.weights_sha256:
            return self.config.weights_sha256
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        return hashlib.sha256(serialise(self.network.state_dict(), dtype)).hexdigest()

    def base(self) -> QMamba:
        """The network, which adapters are made for.

        Raises:
            AdapterError: it is none that `create_model` builds.
        """
        if not isinstance(self.network, QMamba):
            raise AdapterError(
                f"adapters are for networks of create_model, not for a {type(self.network).__name__}"
            )
        return self.network

    def _named(self, name: str | None) -> Loaded | None:
        if name is None:
            return None
        if not isinstance(name, str) or name not in self.adapters:
            here = ", ".join(self.adapters) or "none is loaded"
            raise AdapterError(f"no adapter is called {name!r} here: {here}")
        loaded = self.adapters[name]
        assert isinstance(loaded, Loaded)
        return loaded

    def _chosen(self) -> Loaded | None:
        """The active adapter, looked up once for a whole call: another thread may change it meanwhile."""
        return self._named(self.active_adapter)

    def _chosen_for(self, images: int, adapters: Sequence[str | None] | None) -> Iterable[Loaded | None]:
        """One for each image."""
        if adapters is None:
            return repeat(self._chosen(), images)
        if isinstance(adapters, str) or not isinstance(adapters, Sequence):
            raise AdapterError(f"adapters is a list with a name, or None, for each image, not {adapters!r}")
        if len(adapters) != images:
            raise AdapterError(f"adapters has {len(adapters)} names, and there are {images} images")
        return [self._named(name) for name in adapters]


def _check_name(name: str) -> None:
    # torch keeps adapters by name in a ModuleDict, where "keys", say, is taken.
    if not isinstance(name, str) or not _NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
        raise AdapterError(f"an adapter is called by letters, digits, '_' or '-', and not {name!r}")
