"""Options that several commands have, each declared once; `with_groups` expands the groups.

A letter means the same in every command: -m model, -a adapter, -d data, -o out, -f format, -r recursive.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._shared import note_missing_kernel

if TYPE_CHECKING:
    from qmamba.scoring import Scorer


class ProtocolName(str, Enum):
    """Kinds of protocol."""

    grid = "grid"
    random = "random"
    whole = "whole"
    scales = "scales"


class DtypeName(str, Enum):
    """Floating types that a network can compute in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    auto = "auto"


class Format(str, Enum):
    """Formats of one row per image."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


class ComparisonFormat(str, Enum):
    """Formats of a comparison: of one row per image, or of folders."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    latex = "latex"


class ReportFormat(str, Enum):
    """Formats of what a command has found out."""

    table = "table"
    json = "json"


Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH", help='Images, folders, or quoted patterns like "shots/**/*.jpg".'),
]
Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Model: a name from `qmamba models`, a folder, or a Hub id."),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="Device to compute on: cpu, cuda, cuda:1, mps, … Default: cpu."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Search sub-folders too.")]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Refuse images with more pixels. Default: 50,000,000.")
]
Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="Progress on stderr: a bar on a terminal, else lines. Default: a bar, or a line each minute.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
RowFormat = Annotated[Format, typer.Option("--format", "-f", help="Format of the rows.")]
OutputFormat = Annotated[ReportFormat, typer.Option("--format", "-f", help="Format of the output.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Total CPU threads of all processes. Default: one per CPU."),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0, help="Stop after this time with exit code 3; the same command resumes the run."),
]
Resume = Annotated[
    bool,
    typer.Option("--resume/--fresh", help="Resume the run that --out holds, or refuse such a folder."),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hub id. Default: the default branch.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is in the cache for a Hub id.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model to load."""

    model: Model = "lqmamba-n"
    revision: Revision = None
    offline: Offline = False

    def load_options(self) -> dict[str, Any]:
        """Return the arguments of `qmamba.load`; the name is ``model``."""
        return {"model": self.model, "revision": self.revision, "local_files_only": self.offline}

    def load(self) -> Scorer:
        """Return the scorer.

        Raises:
            UnknownModelError, CheckpointError, HubError, BackendError: as `qmamba.load`.
        """
        from qmamba.scoring import load

        options = self.load_options()
        scorer = load(options.pop("model"), **options)
        note_missing_kernel(next(scorer.network.parameters()).device)
        return scorer


@dataclass(frozen=True)
class ScorerOptions(ModelOptions):
    """Which model to load, and how it scores."""

    adapter: Annotated[
        str | None,
        typer.Option("--adapter", "-a", help="Adapter: a name from `qmamba models`, a folder, or a Hub id."),
    ] = None
    device: Device = None
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Floating type; auto: bfloat16 where quick. Default: float32."),
    ] = None
    protocol: Annotated[
        ProtocolName | None,
        typer.Option(help="How images are cut into crops. Default: the model's protocol."),
    ] = None
    draft: Annotated[
        bool,
        typer.Option(
            "--draft",
            help="Decode large JPEG files at a fraction of their size: faster; scores differ slightly.",
        ),
    ] = False

    def load_options(self) -> dict[str, Any]:
        import torch

        return {
            **super().load_options(),
            "adapter": self.adapter,
            "device": self.device,
            "dtype": None if self.dtype is None else getattr(torch, self.dtype.value, self.dtype.value),
            "protocol": None if self.protocol is None else self.protocol.value,
            "draft": self.draft,
        }


@dataclass(frozen=True)
class ReadingOptions:
    """How much is read and computed at a time."""

    batch_size: Annotated[
        int, typer.Option(min=1, help="Crops per forward pass; fewer take less memory, for the same scores.")
    ] = 32
    max_pixels: MaxPixels = None

    def to_dict(self) -> dict[str, Any]:
        """Return the keyword arguments of `Scorer.iter_scores`."""
        return {"batch_size": self.batch_size, "max_pixels": self.max_pixels}
