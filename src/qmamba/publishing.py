"""Publish a checkpoint or an adapter on the Hub under a name, after checking what others will rely on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmamba.adapters.card import render_adapter_card
from qmamba.adapters.folder import AdapterConfig, read_adapter_config
from qmamba.calibration import Calibration
from qmamba.checkpoints.card import render_card
from qmamba.checkpoints.config import ModelConfig
from qmamba.checkpoints.file_names import ADAPTER_FILES, CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from qmamba.checkpoints.folder import verify_checkpoint
from qmamba.checkpoints.hub import is_repo_id, push
from qmamba.checkpoints.index import Entry, Kind, listed, package_index
from qmamba.checkpoints.locate import embedded_models
from qmamba.checkpoints.safetensors_file import read_weights
from qmamba.errors import ArgumentError, CheckpointError

METRICS = ("srcc", "plcc", "n")


@dataclass(frozen=True)
class Publication:
    """A folder that has passed all checks, and where it goes.

    Attributes:
        kind: "models" or "adapters".
        folder: with config, weights and card.
        config: as it is published; it differs from the folder's in name and licence only.
        entry: its line for an index, whose commit is "" until it is uploaded.
    """

    kind: Kind
    folder: Path
    config: ModelConfig | AdapterConfig
    entry: Entry

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that are uploaded."""
        both = (CONFIG_FILE, WEIGHTS_FILE) if self.kind == "models" else ADAPTER_FILES
        return (*both, CARD_FILE)


def prepare(
    folder: str | os.PathLike[str], to: str, name: str | None = None, licence: str | None = None
) -> Publication:
    """Check a folder, and return what would be published; nothing is sent.

    Args:
        folder: a checkpoint or adapter, or a run that holds one in `checkpoint` or `adapter`.
        to: Hub user, or Hub id ``user/repo``; by default the repository has the name of the checkpoint.
        name: for `qmamba.load`; by default the config's, or the one that the run gave an adapter.
        licence: of the weights; by default the config's.

    Raises:
        CheckpointError: the folder holds neither, its weights are damaged, or it lacks a card, a licence,
            data sets, a calibration or an evaluation; or the name belongs to another network.
        ArgumentError: a name or a Hub id of another form.
    """
    place, kind = _find(Path(folder))
    config = _read(place, kind)
    name = name or _default_name(config)
    config = config.replace(licence=licence or config.licence)
    if isinstance(config, ModelConfig):
        config = config.replace(name=name)
    repo = to if "/" in to else f"{to}/{name}"
    if not is_repo_id(repo):
        raise ArgumentError(f"--to must be a Hub user or a Hub id, user/repo, got {to!r}")
    entry = Entry(
        name, arch=_arch(config), data=config.trained_on, repo=repo, sha256=config.weights_sha256,
        base=config.base if isinstance(config, AdapterConfig) else "", licence=config.licence,
        results=_evaluation(config.results),
    )  # fmt: skip
    problems = [*_problems(place, config), *_name_problems(entry, kind)]
    if problems:
        raise CheckpointError(f"{place} cannot be published: {'; '.join(problems)}")
    return Publication(kind, place, config, entry)


def publish(publication: Publication, *, private: bool = False, token: str | bool | None = None) -> Entry:
    """Upload a publication in one commit, and return its line for an index.

    Args:
        private: whether a new repository is private; an existing one stays as it is.
        token: one that may write, in place of the one that is logged in.

    Raises:
        HubError: the upload failed; one line with what to do.
    """
    entry = publication.entry
    with tempfile.TemporaryDirectory(prefix="qmamba-publish-") as folder:
        commit = push(
            _copy(publication, Path(folder)), publication.files, entry.repo, private=private,
            token=token, commit_message=f"Upload {entry.name}", revision=None,
        )  # fmt: skip
    return replace(entry, commit=commit.oid)


def _find(folder: Path) -> tuple[Path, Kind]:
    for place in (folder, folder / "checkpoint", folder / "adapter"):
        if (place / CONFIG_FILE).is_file():
            return place, "models"
        if (place / ADAPTER_FILES[0]).is_file():
            return place, "adapters"
    runs = sorted(
        path.parent for name in (CONFIG_FILE, ADAPTER_FILES[0]) for path in folder.glob(f"**/{name}")
    )
    several = f"; it holds {len(runs)} of them, such as {runs[0]}: give one" if runs else ""
    raise CheckpointError(f"{folder} is neither a checkpoint, an adapter, nor a run with one{several}")


def _read(folder: Path, kind: Kind) -> ModelConfig | AdapterConfig:
    """Return the config of a folder whose weights have the size and digest that it states."""
    if kind == "models":
        return verify_checkpoint(folder)
    config = read_adapter_config(folder)
    read_weights(folder / ADAPTER_FILES[1], config.weights_sha256, config.weights_bytes, ADAPTER_FILES[0])
    return config


def _default_name(config: ModelConfig | AdapterConfig) -> str:
    name = config.name if isinstance(config, ModelConfig) else config.training.get("name")
    if not isinstance(name, str) or not name:
        raise ArgumentError("--name is needed: this adapter has none of its own")
    return name


def _arch(config: ModelConfig | AdapterConfig) -> str:
    if isinstance(config, ModelConfig):
        return config.arch
    base = {**package_index()["models"], **listed("models")}.get(config.base)
    return base.arch if base is not None else config.base if config.base in embedded_models() else ""


def _evaluation(results: Mapping[str, Any]) -> dict[str, float]:
    """Return SRCC, PLCC and number of images of the last test in a config's results."""
    for where in sorted(results, key=lambda key: ("after" not in key, "test" not in key)):
        values = results[where]
        if isinstance(values, Mapping) and isinstance(values.get("srcc"), (int, float)) and values.get("n"):
            return {key: values[key] for key in METRICS if isinstance(values.get(key), (int, float))}
    return {}


def _problems(folder: Path, config: ModelConfig | AdapterConfig) -> list[str]:
    card = folder / CARD_FILE
    checks = {
        f"it has no card ({CARD_FILE}): save it again": card.is_file() and card.stat().st_size > 0,
        "its licence is unknown: state one, --license": config.licence not in ("", "unknown"),
        "it does not say what it was trained on": bool(config.trained_on),
        "it is not calibrated, so that its scores mean nothing": config.calibration != Calibration(),
        "it has no evaluation, SRCC and number of images on a test set": bool(_evaluation(config.results)),
    }
    return [problem for problem, is_fine in checks.items() if not is_fine]


def _name_problems(entry: Entry, kind: Kind) -> list[str]:
    """Return why an entry may not have its name: it is shipped, or the index has it for another network."""
    if entry.name in embedded_models():
        return [f"the name {entry.name} is that of a model that ships: choose another with --name"]
    problems = []
    known = package_index()[kind].get(entry.name)
    if known is not None and (known.arch, set(known.data)) != (entry.arch, set(entry.data)):
        problems.append(
            f"the name {entry.name} is for {known.arch} trained on {', '.join(known.data)}, and this is "
            f"{entry.arch or 'an adapter of ' + entry.base} trained on {', '.join(entry.data) or 'nothing'}: "
            "choose another with --name"
        )
    loadable = {*embedded_models(), *(name for name, each in listed("models").items() if each.published)}
    if kind == "adapters" and entry.base not in loadable:
        problems.append(
            f"its base {entry.base} is not published: publish it first, and add its line to QMAMBA_INDEX"
        )
    return problems


def _copy(publication: Publication, folder: Path) -> Path:
    """Return a folder whose config and card are those of the publication: its own, unless they differ."""
    config, kind = publication.config, publication.kind
    if config == _read(publication.folder, kind):
        return publication.folder
    config_file, weights_file, card_file = publication.files
    if isinstance(config, ModelConfig):
        text, card = config.to_json(), render_card(config)
    else:
        text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        card = render_adapter_card(config)
    shutil.copyfile(publication.folder / weights_file, folder / weights_file)
    (folder / config_file).write_text(text, encoding="utf-8")
    (folder / card_file).write_text(card, encoding="utf-8")
    return folder
