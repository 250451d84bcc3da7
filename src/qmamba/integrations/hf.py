"""Add scores as a column of a Hugging Face dataset: ``with_scores(ds)``, or ``ds.map(add_scores)``."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial, wraps
from typing import Any

from ..errors import ImageError
from ..images import as_list
from ..scoring import DEFAULT_MODEL
from ._scorers import Model, shared

__all__ = ["add_scores", "with_scores"]


def with_scores(
    dataset: Any,
    *,
    image: str = "image",
    score: str = "score",
    error: str | None = "score_error",
    model: Model = DEFAULT_MODEL,
    **options: Any,
) -> Any:
    """Return a dataset with the scores of its images as a new column.

    This is ``dataset.map(add_scores)`` for numpy and torch formats too: there `datasets` decodes images
    before any function sees them, so that one damaged image stops the map. Decoding is disabled while images
    are scored, and restored in the result, except in a stream: its rows are not decoded again, since a
    damaged image would stop their reader. ``stream.cast_column("image", datasets.Image())`` does it.

    Args:
        dataset: a `datasets.Dataset` or `datasets.IterableDataset`.
        image, score, error, model: as for `add_scores`.
        **options: of the data set's `map`, such as ``batched=True``.

    Returns:
        The data set with the new columns.

    Raises:
        KeyError: no such column.
        QMambaError: as `qmamba.load`.
    """
    function = partial(add_scores, image=image, score=score, error=error, model=model)
    features = dataset.features
    if features is None:  # of a stream that has declared none: nothing is decoded
        return dataset.map(function, **options)
    if image not in features:
        raise _no_column(image)
    given, raw = features[image], _undecoded(features[image])
    if raw != given:
        dataset = dataset.cast_column(image, raw)
    if not hasattr(dataset, "num_rows") and "features" not in options:  # a stream infers no types
        options["features"] = _with_columns(
            dataset.features, raw, score, error, options.get("remove_columns")
        )
        return dataset.map(function, **options)
    scored = dataset.map(function, **options)
    return scored.cast_column(image, given) if raw != given and image in scored.column_names else scored


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
    `datasets.Image`, decoded or not, a path, or anything else that `qmamba.images.decode` takes. A row that
    holds a list of images gets a list of scores.

    An image that cannot be scored neither stops the map nor affects the rest of its batch: its score is NaN,
    and the reason is in the column ``error``. In a stream (`datasets.IterableDataset`) too: there, ``map`` of
    this function is `with_scores`. A dataset in numpy or torch format decodes its images before this function
    is called, and stops at a damaged one: use `with_scores` there.

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
        raise _no_column(image)
    cells, is_row = _cells(rows, image)
    flat = [each for cell in cells for each in (cell if _is_several(cell) else [cell])]
    found = [result for _, result in shared(model).iter_scores(flat)]
    scores = [math.nan if isinstance(result, ImageError) else result for result in found]
    columns = {score: _regrouped(scores, cells)}
    if error is not None:
        reasons = [str(result) if isinstance(result, ImageError) else "" for result in found]
        columns[error] = _regrouped(reasons, cells)
    return {name: values[0] for name, values in columns.items()} if is_row else columns


def _no_column(image: str) -> KeyError:
    return KeyError(f"no column {image!r}; name the one that has the images: fn_kwargs={{'image': ...}}")


def _cells(rows: Mapping[str, Any], column: str) -> tuple[list[Any], bool]:
    """Return a column's cells, an image or several each, and whether they are the only cell of a row."""
    kind = type(rows).__name__
    try:
        value = rows[column]
    except Exception:
        # `datasets` decodes on access, and one bad file fails the batch: read the undecoded files instead.
        if not hasattr(rows, "pa_table"):
            raise
        return rows.pa_table[column].to_pylist(), kind == "LazyRow"
    if kind == "LazyRow":
        return [value], True
    if getattr(value, "ndim", 0) >= 4:  # images of one size, as tensor and numpy formats stack them
        return list(value), False
    if isinstance(value, Mapping):
        return [value], True
    return as_list(value)


def _is_several(cell: Any) -> bool:
    """Return whether a cell holds a list of images: a list, a stack of arrays, or an array of objects."""
    dimensions = getattr(cell, "ndim", 0)
    return isinstance(cell, (list, tuple)) or dimensions == 4 or (dimensions == 1 and cell.dtype == object)


def _regrouped(values: list[Any], cells: list[Any]) -> list[Any]:
    """Return one value for each cell, or a list for a cell of several images."""
    remaining = iter(values)
    return [
        [next(remaining) for _ in range(len(cell))] if _is_several(cell) else next(remaining)
        for cell in cells
    ]


def _undecoded(feature: Any) -> Any:
    """Return the feature of a column with decoding off, also within lists."""
    if isinstance(feature, list):
        return [_undecoded(feature[0])]
    changed = copy.copy(feature)
    if type(feature).__name__ == "Image":
        changed.decode = False
    elif hasattr(feature, "feature"):
        changed.feature = _undecoded(feature.feature)
    return changed


def _with_columns(
    features: Any, image: Any, score: str, error: str | None, removed: str | list[str] | None
) -> Any:
    """Return the features of a data set with those of the new columns, and without the removed ones."""
    from datasets import Value

    def like(feature: Any, kind: str) -> Any:
        if isinstance(feature, list):
            return [like(feature[0], kind)]
        if not hasattr(feature, "feature"):
            return Value(kind)
        changed = copy.copy(feature)
        changed.feature = like(feature.feature, kind)
        return changed

    new = features.copy()
    for name in [removed] if isinstance(removed, str) else removed or []:
        del new[name]
    new[score] = like(image, "float64")
    if error is not None:
        new[error] = like(image, "string")
    return new


def _map_streams_undecoded() -> None:
    """Make ``IterableDataset.map(add_scores)`` score images as they are stored; other maps are unchanged.

    A stream decodes its images before a mapped function sees them, and `datasets` has no option of `map` that
    stops it, nor a way for a function to ask: one damaged image would end the stream.
    """
    try:
        from datasets import IterableDataset
    except ImportError:
        return
    plain = IterableDataset.map

    @wraps(plain)
    def map(stream: Any, function: Any = None, *args: Any, **options: Any) -> Any:
        called = function.func if isinstance(function, partial) else function
        if called is not add_scores or args or stream.features is None:
            return plain(stream, function, *args, **options)
        given = {} if called is function else function.keywords
        given = {**given, **(options.get("fn_kwargs") or {})}
        feature = stream.features.get(given.get("image", "image"))
        if feature is None or feature == _undecoded(feature):
            return plain(stream, function, **options)
        return with_scores(stream, **{**options, "fn_kwargs": None}, **given)

    IterableDataset.map = map


_map_streams_undecoded()
