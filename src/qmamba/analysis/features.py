"""Features of a network's stages, pooled over positions and crops of photographs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..checkpoints.safetensors_file import replace_file
from ..errors import FeaturesError, ImageError
from ..images import Decoded
from ..models.capabilities import StageFeatures, require
from ..scoring import Scorer

if TYPE_CHECKING:
    from ..data import Rated

_LABELS = ("image", "mos", "distortion", "reference")


@dataclass(frozen=True)
class Features:
    """Pooled features of photographs, and their labels.

    Attributes:
        stages: per stage (n, C) float32: the mean over positions of its output before the downsample, and the
            weighted mean over the crops of the model's protocol.
        image: (n,) paths.
        mos: (n,) float64.
        distortion, reference: (n,) strings, "" where unknown.
    """

    stages: tuple[npt.NDArray[np.float32], ...]
    image: npt.NDArray[np.str_]
    mos: npt.NDArray[np.float64]
    distortion: npt.NDArray[np.str_]
    reference: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.image)


def features_of(scorer: Scorer, image: Any) -> list[torch.Tensor]:
    """Return the pooled features of one image, per stage (C,) float32 on the CPU; adapters have no effect.

    Args:
        scorer: whose network and protocol are used.
        image: any kind that :func:`qmamba.images.decode` takes.

    Raises:
        ImageError: the image cannot be decoded.
        CapabilityError: the network does not give features of its stages.
    """
    return _pooled(scorer, scorer.decoded(image))


def _pooled(scorer: Scorer, image: Decoded) -> list[torch.Tensor]:
    network = require(scorer.network, StageFeatures, "features of stages")

    def pooled(images: torch.Tensor) -> list[torch.Tensor]:
        return [stage.float().mean(dim=(2, 3)).cpu() for stage in network.forward_features(images)[1]]

    looked = scorer.look(pooled, image.pixels, image.name, size=(image.height, image.width))
    parts, stages = zip(*looked, strict=True)
    weights = torch.tensor([part.weight for part in parts for _ in part.windows], device="cpu")
    return [weights @ torch.cat(crops) for crops in zip(*stages, strict=True)]


def extract(
    scorer: Scorer,
    ratings: Sequence[Rated],
    *,
    failed: Callable[[ImageError], None] | None = None,
    done: Callable[[], object] | None = None,
) -> Features:
    """Return the pooled features of rated photographs, in their order.

    Args:
        scorer: whose network and protocol are used.
        ratings: the photographs.
        failed: called with the error of each photograph that cannot be decoded, which is left out; without it
            the error is raised.
        done: called after each photograph.

    Raises:
        ImageError: a photograph cannot be decoded, and there is no ``failed``.
        FeaturesError: no photograph could be decoded.
        CapabilityError: the network does not give features of its stages.
    """
    kept, rows = [], []
    found = scorer.each([rated.path for rated in ratings], partial(_pooled, scorer))
    for rated, row in zip(ratings, found, strict=True):
        if not isinstance(row, ImageError):
            rows.append(row)
            kept.append(rated)
        elif failed is None:
            raise row
        else:
            failed(row)
        if done is not None:
            done()
    if not kept:
        raise FeaturesError("no photograph could be read, so there are no features")
    return Features(
        tuple(torch.stack(stage).numpy() for stage in zip(*rows, strict=True)),
        np.array([str(r.path) for r in kept]),
        np.array([r.mos for r in kept]),
        np.array([r.distortion for r in kept]),
        np.array([r.reference for r in kept]),
    )


def check_path(path: Path) -> None:
    """Refuse a file that :func:`save_features` cannot write.

    Raises:
        FeaturesError: neither ``.npz`` nor ``.parquet``, or pandas or pyarrow is not installed.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise FeaturesError(f"features must be saved as .npz or .parquet, got {path.name!r}")
    if path.suffix == ".parquet":
        _pandas()


def save_features(path: Path, features: Features) -> None:
    """Write features completely or not at all.

    ``.npz`` holds ``stage1`` to ``stage4`` (n, C) and the labels (n,); ``.parquet`` has a row per photograph,
    with columns ``stage1_0000`` and so on.

    Raises:
        FeaturesError: as :func:`check_path`.
    """
    check_path(path)
    labels = {name: getattr(features, name) for name in _LABELS}
    stages = {f"stage{i}": values for i, values in enumerate(features.stages, start=1)}
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {**labels, **stages}
        np.savez(buffer, **arrays)
    else:
        columns = {
            f"{name}_{c:04d}": values[:, c] for name, values in stages.items() for c in range(values.shape[1])
        }
        _pandas().DataFrame({**labels, **columns}).to_parquet(buffer, index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())


def load_features(path: Path) -> Features:
    """Return what :func:`save_features` wrote; no pickle is read.

    Raises:
        FeaturesError: no such file, or not one of features.
    """
    check_path(path)
    if not path.is_file():
        raise FeaturesError(f"{path}: no such file; `qmamba features` writes it")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        else:
            table = _pandas().read_parquet(path)
            found = {name: table[name].to_numpy() for name in _LABELS}
            names = sorted({column.split("_")[0] for column in table.columns} - set(_LABELS))
            for name in names:
                columns = sorted(column for column in table.columns if column.startswith(f"{name}_"))
                found[name] = table[columns].to_numpy(dtype=np.float32)
        stages = tuple(found[name] for name in sorted(found) if name.startswith("stage"))
        strings = {name: np.asarray(found[name], dtype=str) for name in _LABELS if name != "mos"}
        return Features(stages, mos=np.asarray(found["mos"], dtype=np.float64), **strings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeaturesError(f"{path}: not a file of `qmamba features` ({error})") from error


def _pandas() -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401  (what pandas writes parquet with)
    except ImportError as error:
        raise FeaturesError(
            "parquet needs pandas and pyarrow: pip install 'qmamba[parquet]', or write a .npz file"
        ) from error
    return pandas
