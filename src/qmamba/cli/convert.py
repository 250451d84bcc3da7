"""`qmamba convert`: published weights as a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._options import Force
from qmamba.cli._shared import note, quiet_ends
from qmamba.errors import CheckpointError, QMambaError

if TYPE_CHECKING:
    from torch import nn

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
    force: Force = False,
) -> None:
    """Convert published weights to a checkpoint folder of this library.

    Pickles are read with weights_only=True: no code in them is run. Nothing is downloaded. Frozen base models
    are not copied into the folder, which names them.
    """
    with quiet_ends():
        from qmamba.checkpoints.config import ModelConfig
        from qmamba.checkpoints.file_names import CONFIG_FILE
        from qmamba.checkpoints.folder import save_checkpoint
        from qmamba.models import get_architecture

        if (out / CONFIG_FILE).exists() and not force:
            raise QMambaError(f"{out}: holds a checkpoint; give --force to write over it")
        architecture = get_architecture(arch)
        config = ModelConfig(
            name=name or out.resolve().name, arch=arch, overrides=_overrides(override or ()),
            preprocessing=architecture.preprocessing, protocol=architecture.protocol,
            trained_on=tuple(trained_on or ()), licence=licence,
        )  # fmt: skip
        save_checkpoint(out, _converted(file, config), config)
        typer.echo(str(out))


def _converted(file: Path, config: Any) -> nn.Module:
    """Return the network with the weights of the file; its base models have no memory.

    Raises:
        CheckpointError: the file cannot be read, does not fit, or lacks a tensor that a checkpoint stores.
    """
    import torch

    from qmamba.models import create_model, get_architecture
    from qmamba.train.paper.start import read_state

    architecture = get_architecture(config.arch)
    if architecture.convert is None:
        raise QMambaError(f"no weights of {config.arch!r} are published in a format that is known here")
    with torch.device("meta"):
        network = create_model(config.arch, **config.overrides)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        converted = architecture.convert(network, read_state(file))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    note(f"{file}: {len(converted)} tensors")
    return network


def _overrides(given: Any) -> dict[str, Any]:
    """Return sizes by name, from texts such as ``width=192`` and ``cnn_depths=[2,2,2,2]``."""
    overrides = {}
    for text in given:
        name, separator, value = text.partition("=")
        try:
            overrides[name] = json.loads(value)
        except ValueError:
            overrides[name] = value
        if not name or not separator:
            raise QMambaError(f"--override must be SIZE=VALUE, such as width=192, got {text!r}")
    return overrides
