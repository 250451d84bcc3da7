"""The errors that qmamba raises. Each message is one line: what is wrong, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import Tensor

MOST_NEAR = 8


class QMambaError(Exception):
    """Base of every error that this library raises on purpose."""


class ImageError(QMambaError, ValueError):
    """An input that cannot be scored: not an image, damaged, too large, or of a wrong shape or range.

    Attributes:
        index: zero-based index of the input in the sequence that was scored; ``None`` for a single image.
        scores: (n,) float32, the scores computed before it, NaN for the rest; ``None`` for a single image.
    """

    index: int | None = None
    scores: Tensor | None = None


class MissingImageError(ImageError, FileNotFoundError):
    """A path of a file that does not exist."""


class CheckpointError(QMambaError, ValueError):
    """A checkpoint folder that is incomplete, damaged, or differs from its config."""


class AdapterError(CheckpointError):
    """An adapter that does not exist, has invalid options, or was made for another base."""


class UnknownModelError(QMambaError, ValueError):
    """A name of no model or architecture; the message lists near names."""


class CapabilityError(QMambaError):
    """Something that this architecture cannot do, such as a quality map of a network without positions."""


class ArgumentError(QMambaError, ValueError):
    """An argument out of its range or of a wrong type, such as ``batch_size=0``; no image is at fault."""


class HubError(QMambaError, OSError):
    """A Hub repository that cannot be reached, does not exist, or is not in the local cache."""


class NoRepositoryError(HubError):
    """A Hub repository that does not exist, or that this user may not see."""


class DistortionError(QMambaError, ValueError):
    """A name of no distortion, a level out of range, or pixels of a wrong type."""


class RecipeError(QMambaError, ValueError):
    """A training recipe or a data set that the trainer cannot use."""


class DataSetError(RecipeError):
    """A data set whose files are missing, unreadable, or laid out in another way than its reader expects."""


class FeaturesError(QMambaError, ValueError):
    """Features of photographs that cannot be computed, saved, read or drawn."""


class ScoresError(QMambaError, ValueError):
    """A folder of scores that cannot be written, or a run that cannot be resumed."""


class BackendError(QMambaError, RuntimeError):
    """A backend, device or package that cannot be used here; the message says why."""


def near_names(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the names that are near, or else all.

    Near are up to eight names that contain it or lie in it, and otherwise up to three that are spelt alike.

    >>> near_names("koniq", ["koniq10k", "tid2013"])
    'near names: koniq10k'
    >>> near_names("resnet50", ["lqmamba-n"])
    'names: lqmamba-n'
    """
    names, wanted = list(known), str(name).lower()
    near = [each for each in names if wanted and (wanted in each or each in wanted)]
    near = near or difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    return f"near names: {', '.join(near[:MOST_NEAR])}" if near else f"names: {', '.join(names)}"
