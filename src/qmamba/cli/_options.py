"""Options that several commands have, most of them those that score images."""

from __future__ import annotations

from typing import Annotated

import typer

from qmamba.cli._shared import DtypeName, ProtocolName

Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH", help='Images, folders, or quoted patterns like "shots/**/*.jpg".'),
]
Model = Annotated[
    str, typer.Option("--model", "-m", help="A name from `qmamba models`, a folder, or a Hub id.")
]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", "-a", help="An adapter: a name from `qmamba models`, folder or Hub id."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into sub-folders too.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Crops per forward pass; fewer, less memory.")]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps, … Default: cpu.")]
Dtype = Annotated[DtypeName | None, typer.Option(help="What the network computes in. Default: float32.")]
ProtocolOption = Annotated[
    ProtocolName | None, typer.Option(help="How images are cut into crops. Default: the model's own way.")
]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Refuse images with more pixels. Default: 50,000,000.")
]
Revision = Annotated[str | None, typer.Option(help="For a Hub id: a branch, tag or commit.")]
Offline = Annotated[bool, typer.Option("--offline", help="For a Hub id: only what is cached.")]
Progress = Annotated[
    bool | None, typer.Option("--progress/--no-progress", help="A bar on stderr. Default: on terminals.")
]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]
