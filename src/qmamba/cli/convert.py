"""`qmamba convert`: published weights as a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._options import Force
from qmamba.cli._shared import note
from qmamba.errors import CheckpointError, QMambaError

if TYPE_CHECKING:
    from torch import nn

    from qmamba.models import BaseWeights

EPILOG = """\
\b
Examples:
  qmamba convert loda koniq10k.pth --out loda-koniq --trained-on koniq10k
  qmamba score --model loda-koniq photo.jpg

\b
Exit code:
  0    the folder is written, and its path is on stdout
  2    the file cannot be read or does not fit, or the folder holds a checkpoint already
"""


def convert(
    arch: Annotated[str, typer.Argument(metavar="ARCH", help="Architecture of the weights, such as loda.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Published weights: .pth or .safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Checkpoint folder to write.")],
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: that of the folder.")] = None,
    trained_on: Annotated[
        list[str] | None, typer.Option(metavar="DATASET", help="Data set it was trained on; repeatable.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "unknown",
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE=VALUE", help="Size that differs from the architecture's; repeatable."),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(metavar="PART=REPO", help="Hub id of another base model for a frozen part; repeatable."),
    ] = None,
    force: Force = False,
) -> None:
    """Convert published weights to a checkpoint folder of this library.

    Pickles are read with weights_only=True: no code in them is run. Frozen base models are not copied into
    the folder, which names them; nothing is downloaded.
    """
    from qmamba.checkpoints import CONFIG_FILE, default_config, save_checkpoint

    if (out / CONFIG_FILE).exists() and not force:
        raise QMambaError(f"{out}: holds a checkpoint; give --force to overwrite it")
    network = _converted(file, arch, _overrides(override or ()))
    config = default_config(
        network, name or out.resolve().name, bases=_bases(arch, base or ()), licence=licence,
        trained_on=tuple(trained_on or ()),
    )  # fmt: skip
    for named in save_checkpoint(out, network, config).bases:
        if not named.sha256:
            note(f"{named.repo} is not in the Hub's cache, so its digest is not in the config")
    typer.echo(str(out))


def _converted(file: Path, arch: str, overrides: dict[str, Any]) -> nn.Module:
    """Return the network with the weights of the file; its frozen base weights have no memory.

    Raises:
        QMambaError: the sizes make no network, or no weights of the architecture are published.
        CheckpointError: the file cannot be read, or does not hold exactly what is trained.
    """
    import torch

    from qmamba.checkpoints.start import read_state
    from qmamba.models import create_model, get_architecture

    architecture = get_architecture(arch)
    if architecture.convert is None or architecture.trained is None:
        raise QMambaError(f"{arch}: no trained weights are published in a format that qmamba converts")
    try:
        with torch.device("meta"):
            network = create_model(arch, **overrides)
    except ValueError as error:
        raise QMambaError(str(error)) from error
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        converted = architecture.convert(network, read_state(file))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    note(f"{file}: {len(converted.renamed)} tensors")
    return network


def _pairs(option: str, example: str, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise QMambaError(f"{option} must be like {example}, got {text!r}")
        yield name, value


def _overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Return sizes by name, from texts such as ``width=192`` and ``cnn_depths=[2,2,2,2]``."""
    overrides: dict[str, Any] = {}
    for name, value in _pairs("--override", "width=192", texts):
        try:
            overrides[name] = json.loads(value)
        except ValueError:
            overrides[name] = value
    return overrides


def _bases(arch: str, texts: Sequence[str]) -> tuple[BaseWeights, ...]:
    """Return the base models of an architecture, some of them replaced."""
    from qmamba.models import get_architecture

    bases = {base.prefix.rstrip("."): base for base in get_architecture(arch).bases}
    for part, repo in _pairs("--base", "vit=user/repo", texts):
        if part not in bases:
            raise QMambaError(f"--base must name one of {', '.join(bases)}, got {part!r}")
        try:
            bases[part] = replace(bases[part], repo=repo, revision="main", sha256="")
        except ValueError as error:
            raise QMambaError(f"--base {part}: {error}") from error
    return tuple(bases.values())
