"""Scores as a column of a Hugging Face data set: ``ds.map(add_scores)``."""

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
    """The score of each image of a row, or of a batch of rows, for `datasets.Dataset.map`.

    Options go by ``ds.map(add_scores, fn_kwargs={"image": "photo"})``. With or without ``batched=True``, and
    with any ``num_proc``, the scores are the same. An image may be what the feature `datasets.Image` gives,
    decoded or not, a path, or whatever else `qmamba.images.decode` takes.

    An image that cannot be scored does not end the map, nor cost the others of its batch their scores: its
    own is NaN, and the reason is beside it.

    Args:
        rows: a row, or columns of several.
        image: name of the column with the images.
        score: name of the new column, a float in [0, 1], higher is better.
        error: name of another, which says why there is no score, "" where there is one. None for none.
        model: a scorer, or what `qmamba.load` takes. A name is loaded once in every process, and lets
            `datasets` know the map again the next time.

    Returns:
        The new columns.

    Raises:
        KeyError: no such column.
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
    """The images of a batch, or that of a row and True."""
    try:
        images = rows[column]
    except Exception:
        # `datasets` decodes what it is asked for, and one bad file fails a batch: ask for the files.
        if not hasattr(rows, "pa_table"):
            raise
        images = rows.pa_table[column].to_pylist()
        single = type(rows).__name__ == "LazyRow"
    else:
        if getattr(images, "ndim", 0) == 4:  # images of one size, as tensor and numpy formats stack them
            images, single = list(images), False
        else:
            images, single = ([images], True) if isinstance(images, Mapping) else as_list(images)
    return [_file(image) for image in images], single


def _file(image: Any) -> Any:
    """What an image of `datasets` that is not decoded stands for."""
    if not isinstance(image, Mapping):
        return image
    data = image.get("bytes")
    return image.get("path") if data is None else data
