"""`qmamba quantize`: a model in 8, 4 or 2 bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._command import with_groups
from qmamba.cli._options import Force, Seed
from qmamba.cli._progress import bar_of
from qmamba.cli._ratings import source_of
from qmamba.cli._shared import note
from qmamba.cli._watch import RunOptions
from qmamba.errors import ArgumentError, QMambaError

if TYPE_CHECKING:
    from qmamba.data import Rated
    from qmamba.quantization import Quantization
    from qmamba.scoring.quantizing import QuantizationReport

EPILOG = """\
\b
Examples:
  qmamba quantize lqmamba-n --bits 8 --weights-only --out small
  qmamba quantize lqmamba-n --bits 4 --weights-only --data holiday --out smaller
  qmamba quantize lqmamba-n --bits 8 --data holiday --out w8a8
  qmamba quantize lqmamba-n --bits 4 --method rfa+dls --data photos.csv --minutes 60 --out runs/w4a4

\b
Exit code:
  0    the checkpoint is written: its folder is on stdout, agreement with the float model on stderr
  2    nothing was written: no photographs, an unknown model, a folder that holds a checkpoint
  3    the time limit of --minutes is reached; the same command resumes the run
  130  stopped by Ctrl-C; the same command resumes a training
"""


class Bits(str, Enum):
    """Bits of a code."""

    eight = "8"
    four = "4"
    two = "2"


class Method(str, Enum):
    """Methods of quantization."""

    ptq_mse = "ptq-mse"
    ptq_minmax = "ptq-minmax"
    lsq = "lsq"
    rfa = "rfa"
    rfa_dls = "rfa+dls"


@dataclass(frozen=True)
class QuantizationOptions:
    """What is quantized, and how."""

    bits: Annotated[Bits, typer.Option(help="Bits of each weight, and of each activation.")] = Bits.eight
    activation_bits: Annotated[
        Bits | None, typer.Option(help="Bits of each activation, if they are others. Default: as --bits.")
    ] = None
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Leave activations in float: a small file, the same speed.")
    ] = False
    method: Annotated[
        Method,
        typer.Option(
            help="Method: ptq-mse and ptq-minmax only calibrate; lsq, rfa and rfa+dls then train, which "
            "takes the extra `train`."
        ),
    ] = Method.ptq_mse
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Modules that stay in float; repeatable. Default: stem* and head*."
        ),
    ] = None

    def config(self) -> Quantization:
        """Return the configuration.

        Raises:
            ArgumentError: options that exclude each other.
        """
        from qmamba.quantization import Quantization

        if self.weights_only and self.activation_bits is not None:
            raise ArgumentError("--activation-bits must not be given with --weights-only; leave one out")
        bits = int(self.bits.value)
        of_activations = int((self.activation_bits or self.bits).value)
        keep: dict[str, Any] = {} if self.keep is None else {"keep": tuple(self.keep)}
        return Quantization(
            weights=bits, activations=None if self.weights_only else of_activations,
            method=self.method.value, **keep,
        )  # fmt: skip


@with_groups
def quantize(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Model: a name from `qmamba models`, a folder, or a Hub id."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write.")],
    options: QuantizationOptions,
    run: RunOptions,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="Photographs: a folder, searched with its sub-folders, or rated images as in other "
            "commands; methods that train also learn the ratings.",
        ),
    ] = None,
    crops: Annotated[int, typer.Option(min=1, help="Crops that activations are calibrated on.")] = 128,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a training, with a method that trains. Default: 500.")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Quantize a model to 8, 4 or 2 bits; docs/quantization.md describes the methods.

    The file is a quarter, an eighth or a sixteenth of the float32 model's. Scores are computed in float, from
    weights and activations that are rounded to their codes. Methods that train write OUT/checkpoint.
    """
    from qmamba.checkpoints import CONFIG_FILE

    config = options.config()
    if (out / CONFIG_FILE).exists() and not force:
        raise QMambaError(f"{out}: holds a checkpoint; give --force to overwrite it")
    photographs = [] if data is None else _photographs(data)
    if not photographs and (config.is_trained or config.activations is not None):
        raise ArgumentError("--data must name photographs to calibrate on; or give --weights-only")
    if config.is_trained:
        folder = _train(model, photographs, out, config, run, crops, steps, seed)
    else:
        if steps is not None or run.minutes is not None:
            raise ArgumentError("--steps and --minutes are for methods that train: lsq, rfa, rfa+dls")
        folder = _calibrate(model, photographs, out, config, run, crops)
    _tell(folder)
    typer.echo(str(folder))


def _photographs(data: str) -> list[Rated | Path]:
    """Return the images in a folder, or rated images.

    Raises:
        ArgumentError: the folder holds no images.
        DataSetError: a data set that cannot be read.
    """
    if not Path(data).is_dir():
        return list(source_of(data).read())
    from qmamba.images.find import find_images

    found: list[Rated | Path] = list(find_images([data], recursive=True).files)
    if not found:
        raise ArgumentError(f"{data}: no images in this folder; give one that holds photographs")
    return found


def _calibrate(
    model: str,
    photographs: list[Rated | Path],
    out: Path,
    config: Quantization,
    run: RunOptions,
    crops: int,
) -> Path:
    """Quantize without training, compare scores, and write the checkpoint."""
    from qmamba.data import Rated
    from qmamba.scoring import Scorer, load
    from qmamba.scoring.quantizing import CHECKED, agreement, evenly, quantize
    from qmamba.train.quantizing import write_report

    scorer = load(model, device=run.prepare())
    paths = [each.path if isinstance(each, Rated) else each for each in photographs]
    shown = evenly(paths, CHECKED)
    rest = [path for path in paths if path not in set(shown)]
    learnt = (rest if len(rest) >= len(shown) else paths) if config.activations is not None else []
    total = len(evenly(learnt, crops)) + len(shown)
    with bar_of(total, run.progress, unit=" photographs") as bar:
        made, report = quantize(scorer, config, learnt, crops=crops, done=bar.update)
        results = agreement(scorer, made, shown, done=bar.update)
    for line in report.unreadable:
        note(f"{line}; it is left out")
    Scorer(made.network, made.config.replace(results=results)).save_pretrained(out)
    write_report(out, report)
    _note_float(report)
    return out


def _train(
    model: str,
    photographs: list[Rated | Path],
    out: Path,
    config: Quantization,
    run: RunOptions,
    crops: int,
    steps: int | None,
    seed: int,
) -> Path:
    from qmamba.train.quantizing import QuantizeRecipe, quantize

    given: dict[str, Any] = {} if steps is None else {"steps": steps}
    recipe = QuantizeRecipe(calibration_crops=crops, seed=seed, **given)
    device = run.prepare()
    with run.watch(recipe.steps) as watch, watch.ends(run.resume):
        return quantize(
            model, photographs, out, config, recipe=recipe, device=device, resume=run.resume, report=watch
        )


def _note_float(report: QuantizationReport) -> None:
    for name, why in report.in_float.items():
        if "kept in float" not in why:
            note(f"{name} stays in float: {why}")


def _tell(folder: Path) -> None:
    """Write size and agreement with the float model to stderr."""
    from qmamba.checkpoints import read_config

    config = read_config(folder)
    note(f"{config.weights_bytes / 2**20:.2f} MiB of weights")
    for where, found in config.results.items():
        note(f"{where}: {json.dumps(found)}")
