"""Add scores as a column of a Hugging Face dataset: ``ds.map(add_scores)``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ImageError
from ..images import as_list
from ..scoring import DEFAULT_MODEL
from ._scorers import Model, shared

__all__ = ["add_scores"]


def add_scores(
    rows: Mapping[str, Any],
    *,
    image: str = "image",
    score: str = "score",
    error: str | None = "score_error",
    model: Model = DEFAULT_MODEL,
) -> dict[str, Any]:
    """Score each image of a row, or of a batch of rows, for `datasets.Dataset.map`.

    Pass options as ``ds.map(add_scores, fn_kwargs={"image": "photo"})``. The scores are the same with or
    without ``batched=True``, and for any ``num_proc``. An image may be a value of the feature
    `datasets.Image`, decoded or not, a path, or anything else that `qmamba.images.decode` takes.

    An image that cannot be scored neither stops the map nor affects the rest of its batch: its score is NaN,
    and the reason is in the column ``error``.

    Args:
        rows: one row, or the columns of a batch.
        image: name of the column of images.
        score: name of the new column of scores, floats in [0, 1], higher is better.
        error: name of the new column of reasons for missing scores, "" where there is a score; None adds no
            such column.
        model: a scorer, or anything that `qmamba.load` takes. A name is loaded once per process, and lets
            `datasets` cache the map.

    Returns:
        The new columns.

    Raises:
        KeyError: there is no column of this name.
        QMambaError: as `qmamba.load`.
    """
    if image not in rows:
        raise KeyError(f"no column {image!r}; name the one that has the images: fn_kwargs={{'image': ...}}")
    images, single = _images(rows, image)
    found = [result for _, result in shared(model).iter_scores(images)]
    scores = [math.nan if isinstance(result, ImageError) else result for result in found]
    columns: dict[str, list[Any]] = {score: scores}
    if error is not None:
        columns[error] = [str(result) if isinstance(result, ImageError) else "" for result in found]
    return {name: values[0] for name, values in columns.items()} if single else columns


def _images(rows: Mapping[str, Any], column: str) -> tuple[list[Any], bool]:
    """Return the images of the rows, and whether `rows` is a single row."""
    try:
        images = rows[column]
    except Exception:
        # `datasets` decodes on access, and one bad file fails the batch: read the undecoded files instead.
        if not hasattr(rows, "pa_table"):
            raise
        images = rows.pa_table[column].to_pylist()
        single = type(rows).__name__ == "LazyRow"
    else:
        if getattr(images, "ndim", 0) == 4:  # the tensor and numpy formats stack images of one size
            images, single = list(images), False
        else:
            images, single = ([images], True) if isinstance(images, Mapping) else as_list(images)
    return [_file(image) for image in images], single


def _file(image: Any) -> Any:
    """Return the bytes or the path of an undecoded image of `datasets`."""
    if not isinstance(image, Mapping):
        return image
    data = image.get("bytes")
    return image.get("path") if data is None else data
