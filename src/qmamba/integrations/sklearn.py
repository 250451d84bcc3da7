"""A transformer for scikit-learn's pipelines: ``pip install "qmamba[integrations]"``."""

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
    """Images in, their scores out: a column for a pipeline. There is nothing to fit.

    Args:
        model: a scorer, or what `qmamba.load` takes. A name is loaded once in every process, and keeps copies
            and pickles of a pipeline small.
        on_error: "raise", or "nan" for images that cannot be scored.
        batch_size: as for `Scorer.score`.
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
        """Nothing."""
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Scores of n images.

        Args:
            X: a list, a pandas or numpy column, or a table of one column, of paths or of whatever else
                `Scorer.score` takes.

        Returns:
            (n, 1), float32, in [0, 1], higher is better.

        Raises:
            ImageError: a table of several columns, or with on_error="raise" an image that cannot be scored.
            QMambaError: as `qmamba.load`.
        """
        images = as_list(_column(X))[0]
        scores = shared(self.model).score(images, on_error=self.on_error, batch_size=self.batch_size)
        return np.asarray(scores)[:, None]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The name of the column."""
        return np.asarray(["qmamba_score"], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        return tags


def _column(X: Any) -> Any:
    """The only column of a table; whatever is no table as it is."""
    if hasattr(X, "columns") or (isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OUST"):
        if X.shape[1] != 1:
            raise ImageError(f"X has {X.shape[1]} columns: pass the one that has the images")
        return X.iloc[:, 0] if hasattr(X, "iloc") else np.asarray(X)[:, 0]
    return X
