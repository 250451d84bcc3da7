"""The errors that qmamba raises on purpose. Each message is one line: what is wrong, and how to mend it."""

from __future__ import annotations

from torch import Tensor


class QMambaError(Exception):
    """Base of every error raised on purpose by this library."""


class ImageError(QMambaError, ValueError):
    """An input that cannot be scored: not an image, damaged, too large, of a wrong shape or range.

    Attributes:
        index: place of the input in the sequence that was scored; ``None`` for a single image.
        scores: (n,) float32 scores computed before it, NaN for the rest; ``None`` for a single image.
    """

    index: int | None = None
    scores: Tensor | None = None


class MissingImageError(ImageError, FileNotFoundError):
    """A path that names no file."""


class CheckpointError(QMambaError, ValueError):
    """A checkpoint folder that is incomplete, damaged, or not the one that its config describes."""


class AdapterError(CheckpointError):
    """An adapter that nothing answers to, has options it cannot have, or was made for another base."""


class UnknownModelError(QMambaError, ValueError):
    """A model or architecture name that nothing answers to; the message lists near names."""


class CapabilityError(QMambaError):
    """Something that this architecture cannot do, such as a quality map of a network without positions."""


class ArgumentError(QMambaError, ValueError):
    """An argument out of its range or of a wrong type, such as ``batch_size=0``; no image is at fault."""


class HubError(QMambaError, OSError):
    """A Hub repository that cannot be reached, is not there, or is not in the local cache."""


class DistortionError(QMambaError, ValueError):
    """A distortion that nothing is called, a level out of range, or pixels that it does not take."""


class RecipeError(QMambaError, ValueError):
    """A training recipe or a data set that does not fit what the trainer expects."""


class DataSetError(RecipeError):
    """A data set whose files are not there, cannot be read, or are not laid out as its reader expects."""


class FeaturesError(QMambaError, ValueError):
    """Features of photographs that cannot be had, kept, read or drawn."""


class ScoresError(QMambaError, ValueError):
    """A folder of scores that cannot be written, or whose run cannot be gone on with."""


class BackendError(QMambaError, RuntimeError):
    """A scan backend that was asked for by name and cannot be used here; the message says why."""
