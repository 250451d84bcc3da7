"""`qmamba export`: models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qmamba.cli._options import Offline, Revision
from qmamba.cli._shared import USAGE, load_scorer, note, quiet_ends

EPILOG = """\
\b
Examples:
  qmamba export --onnx lqmamba-n.onnx
  qmamba export --model runs/mine/checkpoint --onnx mine.onnx

\b
The file's input `image` is (B, 3, H, W) float32, RGB in [0, 1], of any size from 32 pixels; its output
`score` is (B,) float32 in [0, 1], one for each crop. A photograph's score is the mean over the crops of the
model's protocol, which the file has among its metadata.
"""


def export(
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="FILE", help="Write an ONNX file, for onnxruntime.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="An embedded model's name, a folder, or a Hub id.")
    ] = "lqmamba-n",
    revision: Revision = None,
    offline: Offline = False,
) -> None:
    """Write a model as a file that runs without torch and without qmamba."""
    with quiet_ends():
        if onnx is None:
            note("say what to write: --onnx FILE")
            raise typer.Exit(USAGE)
        from qmamba.integrations.onnx import export_onnx

        scorer = load_scorer(model, "cpu", None, None, revision, offline)
        note("tracing the network; this takes a minute")
        typer.echo(str(export_onnx(scorer, onnx)))
