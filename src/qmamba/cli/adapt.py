"""`qmamba adapt`: from rated photographs of another domain to an adapter's folder."""

from __future__ import annotations

import json
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from qmamba.cli._options import Progress
from qmamba.cli._shared import note, quiet_ends, tell_missing_kernel
from qmamba.cli._watch import Minutes, Resume, Watch
from qmamba.errors import AdapterError

EPILOG = """\
\b
Examples:
  qmamba adapt --data stills.csv --out runs/stills
  qmamba adapt --data stills.csv --out runs/ssf --method ssf --seed 1
  qmamba adapt --data stills.csv --out runs/p4 --option prompts=4 --option width=32
  qmamba score photo.jpg --adapter runs/stills/adapter

\b
Exit code:
  0    the adapter is there: its folder is on stdout, SRCC before and after on stderr
  2    nothing was trained: too few photographs, an unknown base, a wrong option
  3    --minutes are over; the same command goes on from there
  130  ended by Ctrl-C; the same command goes on from there
"""


class Method(str, Enum):
    """What trains."""

    style_prompt = "style-prompt"
    style_prompt_r = "style-prompt-r"
    linear_probe = "linear-probe"
    ssf = "ssf"
    conv_prompt = "conv-prompt"
    crossattn_prompt = "crossattn-prompt"
    full = "full"
    lora = "lora"


class Precision(str, Enum):
    """What products are made in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def adapt(
    data: Annotated[
        Path, typer.Option("--data", "-d", help="The manifest: a CSV file with image, mos and perhaps fold.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the adapter, the log and the state to go on from."),
    ],
    base: Annotated[
        str, typer.Option("--base", "-b", help="A name from `qmamba models`, a folder, or a Hub id.")
    ] = "lqmamba-n",
    method: Annotated[Method, typer.Option("--method", "-m", help="What trains.")] = Method.style_prompt,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the method; may be given repeatedly.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most so many.")] = 30,
    crops: Annotated[int, typer.Option(min=1, help="Crops of each photograph, the same in each epoch.")] = 5,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate. Default: the method's.")] = None,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better SRCC on the held-out part before it ends.")
    ] = 6,
    precision: Annotated[
        Precision, typer.Option(help="Of the products while training; bfloat16 is faster where it is native.")
    ] = Precision.float32,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps, …")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: one a core.")] = None,
    minutes: Minutes = None,
    resume: Resume = True,
    progress: Progress = None,
) -> None:
    """Adapt a model to another domain; docs/adapters.md describes the methods.

    The model itself stays as it is. The fold `val` of the manifest tells when to stop; where there is none, a
    fifth of the rest is drawn, all photographs of a reference together. SRCC is told on the fold `test` if
    there is one, and else on that part.
    """
    with quiet_ends():
        from qmamba.data import read_manifest
        from qmamba.train import AdaptRecipe
        from qmamba.train import adapt as train

        options = _options(option or [])
        recipe = AdaptRecipe(
            epochs=epochs, crops=crops, lr=lr, patience=patience, precision=precision.value, seed=seed
        )
        ratings = read_manifest(data)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        tell_missing_kernel(device)
        until = None if minutes is None else time.monotonic() + 60 * minutes
        with Watch(0, progress, until) as watch, watch.ends(resume), watch.ctrl_c():
            folder = train(
                base, ratings, out, method=method.value, options=options, recipe=recipe, device=device,
                resume=resume, report=watch,
            )  # fmt: skip
        _tell(folder)
        typer.echo(str(folder))


def _options(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE with a JSON value, or else a word.

    >>> _options(["prompts=4", "size=[7, 7]", "size=layer"])
    {'prompts': 4, 'size': 'layer'}
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise AdapterError(f"--option is NAME=VALUE, prompts=4 say, not {text!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _tell(folder: Path) -> None:
    from qmamba.adapters import read_adapter_config

    for where, found in read_adapter_config(folder).results.items():
        fold, _, when = where.partition(", ")
        chose = " (which also chose when to stop)" if fold == "val" and when == "after" else ""
        interval = f"{_number(found['srcc_low'])} to {_number(found['srcc_high'])}"
        note(
            f"SRCC {when:6s} {_number(found['srcc'])} ({interval}), {found['n']} photographs of {fold}{chose}"
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
