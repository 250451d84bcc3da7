"""`qmamba export`: models as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._options import Force, ModelOptions
from qmamba.cli._shared import check_target, note
from qmamba.errors import ArgumentError

EPILOG = """\
\b
Examples:
  qmamba export --onnx lqmamba-n.onnx
  qmamba export --model runs/mine/checkpoint --onnx mine.onnx

\b
The file's input `image` is (B, 3, H, W) float32, RGB in [0, 1], of any size from 32 pixels; its output
`score` is (B,) float32 in [0, 1], one per crop. A photograph's score is the mean over the crops of the
model's protocol, which the file has among its metadata.
"""


@with_groups
def export(
    model: ModelOptions,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="FILE", help="ONNX file to write, for onnxruntime.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a model as a file that runs without torch and without qmamba."""
    if onnx is None:
        raise ArgumentError("nothing to write; give --onnx FILE")
    from qmamba.integrations.onnx import export_onnx

    check_target(onnx, force)
    scorer = model.load()
    note("tracing the network; this takes a minute")
    typer.echo(str(export_onnx(scorer, onnx)))
