"""`qmamba compare --by-folder`: folders of images compared, as text."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmamba.cli._options import Seed
from qmamba.cli._rows import csv_field
from qmamba.cli._shared import columns, note, printable
from qmamba.errors import ArgumentError

if TYPE_CHECKING:
    from qmamba.analysis import PairedComparison

FORMATS = ("table", "csv", "latex", "json")


@dataclass(frozen=True)
class FolderOptions:
    """Whether folders are compared, and how."""

    by_folder: Annotated[
        bool,
        typer.Option("--by-folder", help="Compare folders: images paired by name, means, differences."),
    ] = False
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="With --by-folder: folder to compare with. Default: the first one."
        ),
    ] = None
    resamples: Annotated[
        int, typer.Option(min=100, help="With --by-folder: draws for intervals and p-values.")
    ] = 10_000
    seed: Seed = 0


def named_folders(paths: Sequence[str]) -> dict[str, Path]:
    """Return folders by their names: the last part of each path, or whole paths where that is not unique.

    Raises:
        ArgumentError: a folder is given twice.
    """
    names = [Path(os.path.abspath(path)).name or path for path in paths]  # noqa: PTH100 - keeps links
    if len(set(names)) < len(names):
        names = [str(Path(path)) for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"{name}: given twice; give each folder once")
    return dict(zip(names, map(Path, paths), strict=True))


def chosen(against: str | None, folders: dict[str, Path]) -> str | None:
    """Return the name of the folder that the others are compared with, given by name or by path.

    Raises:
        ArgumentError: it is none of the folders.
    """
    if against is None or against in folders:
        return against
    for name, folder in folders.items():
        if folder == Path(against):
            return name
    raise ArgumentError(f"--against must be one of {', '.join(folders)}, got {against}")


def note_left_out(found: PairedComparison) -> bool:
    """Write the images that were left out to stderr; return whether there are any."""
    for image in found.unmatched:
        note(f"{image.name} is left out: there is none in {', '.join(image.absent)}")
    for _, error in found.failed:
        note(f"{error}; its name is left out in all folders")
    return bool(found.unmatched or found.failed)


def render(form: str, found: PairedComparison) -> str:
    """Return a comparison as text in one of `FORMATS`."""
    if form == "json":
        return json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n"
    return {"table": _table, "csv": _csv, "latex": _latex}[form](found)


def _table(found: PairedComparison) -> str:
    interval = f"{100 * found.level:g} % interval"
    rows = [("  mean", interval, "   diff", interval, "     p", "folder")]
    for m in found.methods:
        mean = (f"{m.mean:.4f}", f"{m.low:.4f} to {m.high:.4f}")
        if m.difference is None or m.p_value is None:
            rows.append((*mean, "      -", "-", "     -", printable(m.name)))
        else:
            ends = f"{m.difference_low:+.4f} to {m.difference_high:+.4f}"
            rows.append((*mean, f"{m.difference:+.4f}", ends, f"{m.p_value:.4f}", printable(m.name)))
    return f"{columns(rows)}\n{found.images} images; differences from {printable(found.against)}\n"


def _csv(found: PairedComparison) -> str:
    names = [field.name for field in fields(found.methods[0])]
    lines = [",".join(["folder", *names[1:], "images"])]
    for method in found.methods:
        name, *numbers = asdict(method).values()
        texts = ["" if number is None else f"{number:.6f}" for number in numbers]
        lines.append(",".join([csv_field(name), *texts, str(found.images)]))
    return "\n".join(lines) + "\n"


def _latex(found: PairedComparison) -> str:
    interval = f"{100 * found.level:g}\\,\\%"
    lines = [
        f"% {found.images} images; differences from {printable(found.against)}",
        r"\begin{tabular}{lrrr}",
        r"\hline",
        rf"Method & Score [{interval}] & Difference [{interval}] & $p$ \\",
        r"\hline",
    ]
    for m in found.methods:
        cells = [_escaped(printable(m.name)), f"{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]", "--", "--"]
        if m.difference is not None and m.p_value is not None:
            cells[2] = f"${m.difference:+.3f}$ [${m.difference_low:+.3f}$, ${m.difference_high:+.3f}$]"
            cells[3] = "$<$ 0.001" if m.p_value < 0.001 else f"{m.p_value:.3f}"
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(named.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
