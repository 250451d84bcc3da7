"""A scikit-learn transformer: ``pip install "qmamba[integrations]"``."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..errors import ImageError
from ..images import as_list
from ..scoring import DEFAULT_MODEL
from ._scorers import Model, missing, shared

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError as error:
    raise missing("scikit-learn") from error

__all__ = ["QualityScore"]


class QualityScore(TransformerMixin, BaseEstimator):
    """Transform images to a column of scores, in scikit-learn pipelines. Fitting does nothing.

    Args:
        model: a scorer, or anything that `qmamba.load` takes. A name is loaded once per process, and keeps
            clones and pickles of a pipeline small.
        on_error: "raise", or "nan" to give images that cannot be scored NaN.
        batch_size: see `Scorer.score`.
    """

    def __init__(
        self,
        model: Model = DEFAULT_MODEL,
        *,
        on_error: Literal["raise", "nan"] = "raise",
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.on_error = on_error
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> QualityScore:
        """Do nothing; return the transformer."""
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Score n images.

        Args:
            X: paths or other images that `Scorer.score` takes, as a list, a pandas or NumPy column, or a
                table of one column.

        Returns:
            (n, 1), float32, in [0, 1], higher is better.

        Raises:
            ImageError: X has several columns, or, with on_error="raise", an image cannot be scored.
            QMambaError: as `qmamba.load`.
        """
        images = as_list(_column(X))[0]
        scores = shared(self.model).score(images, on_error=self.on_error, batch_size=self.batch_size)
        return np.asarray(scores)[:, None]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the name of the column of scores."""
        return np.asarray(["qmamba_score"], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        return tags


def _column(X: Any) -> Any:
    """Return the only column of a table, and any other input unchanged."""
    if hasattr(X, "columns") or (isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OUST"):
        if X.shape[1] != 1:
            raise ImageError(f"X must have one column, got {X.shape[1]}; pass the column of images")
        return X.iloc[:, 0] if hasattr(X, "iloc") else np.asarray(X)[:, 0]
    return X
