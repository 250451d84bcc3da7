"""What surrounds the network in `qmamba.scoring`: checks, decoding ahead, errors that say where."""

from __future__ import annotations

import math
import numbers
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypedDict

import torch

from qmamba.errors import ImageError
from qmamba.images import MAX_PIXELS, decode, label
from qmamba.protocol import View, Window

Decoded: TypeAlias = tuple[torch.Tensor, str]
"""The pixels of an image, and what messages call it."""

LOWEST, HIGHEST = -0.5, 1.5  # beyond these a batch is not in [0, 1] by mistake, not by overshoot


class CropScores(NamedTuple):
    """The parts of an image's score.

    Attributes:
        windows: (top, left, height, width) of each crop, in pixels of the image.
        scores: (n,) float32 on the CPU, calibrated.
        weights: (n,) float32, what each part counts; they sum to 1.
    """

    windows: list[Window]
    scores: torch.Tensor
    weights: torch.Tensor

    @property
    def mean(self) -> float:
        """The image's score."""
        return float((self.weights * self.scores).sum())

    @property
    def std(self) -> float:
        """How far the parts lie apart: the weighted standard deviation; 0 for a single part."""
        centred = self.scores - (self.weights * self.scores).sum()
        return float((self.weights * centred.square()).sum().sqrt())


class Column(Protocol):
    """A pandas Series, which need not be installed to be spoken of."""

    @property
    def iloc(self) -> Any: ...


def parts_of(seen: Sequence[View], scores: Sequence[torch.Tensor], height: int, width: int) -> CropScores:
    """The parts of an image of this size, from the scores of its views' crops in their order."""
    return CropScores(
        [view.in_image(box, height, width) for view in seen for box in view.windows],
        torch.cat(list(scores)).cpu(),
        torch.tensor(
            [1 / (len(seen) * len(view.windows)) for view in seen for _ in view.windows],
            dtype=torch.float32,
            device="cpu",
        ),
    )


class ScoreOptions(TypedDict, total=False):
    """Options of `Scorer.score`, which documents them."""

    on_error: Literal["raise", "nan"]
    batch_size: int
    progress: bool
    max_pixels: int | None
    return_std: bool
    adapters: Sequence[str | None] | None


def pixel_limit(batch_size: int, max_pixels: int | None, workers: int = 1) -> int:
    """Check the numbers; the limit, which is the default one for None."""
    for name, value in (("batch_size", batch_size), ("max_pixels", max_pixels), ("workers", workers)):
        if value is not None and (
            not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1
        ):
            raise ImageError(f"{name} must be an integer of at least 1, not {value!r}")
    return MAX_PIXELS if max_pixels is None else max_pixels


def check_batch(batch: torch.Tensor) -> None:
    """Refuse what is not a batch of images; cheap, and silent while a compiler traces."""
    if not isinstance(batch, torch.Tensor) or batch.ndim != 4 or batch.shape[1] != 3:
        given = f"shape {tuple(batch.shape)}" if isinstance(batch, torch.Tensor) else type(batch).__name__
        raise ImageError(f"batch: expected a tensor (B, 3, H, W), not {given}; use .score() for other inputs")
    if batch.layout != torch.strided:
        raise ImageError(f"batch: only dense tensors hold images, not {batch.layout}; call .to_dense()")
    if not batch.dtype.is_floating_point:
        raise ImageError(
            f"batch: expected floats in [0, 1], not {batch.dtype}; divide by 255, or use .score()"
        )
    if batch.numel() == 0 or batch.is_meta or torch.compiler.is_compiling():
        return
    low, high = (float(bound) for bound in batch.detach().aminmax())
    if not (low >= LOWEST and high <= HIGHEST):
        what = "NaN" if math.isnan(low) else f"values from {low:.4g} to {high:.4g}"
        raise ImageError(f"batch: {what} in place of values in [0, 1]; rescale it, and do not normalise it")


def decode_ahead(images: Iterator[Any], max_pixels: int, workers: int = 1) -> Iterator[Decoded | ImageError]:
    """Decode images in order in other threads, one each ahead of what is asked for; errors come as values."""
    with ThreadPoolExecutor(workers, thread_name_prefix="qmamba-decode") as pool:

        def submit() -> Future[Decoded | ImageError] | None:
            try:
                return pool.submit(_decode, next(images), max_pixels)
            except StopIteration:
                return None
            except Exception as error:
                # The caller's iterator has failed: raised in its turn, so that the image before is still
                # scored.
                failed: Future[Decoded | ImageError] = Future()
                failed.set_exception(error)
                return failed

        # Not the pool's own map, which would read an endless iterator to its end.
        ahead: deque[Future[Decoded | ImageError] | None] = deque(submit() for _ in range(workers))
        while (first := ahead.popleft()) is not None:
            decoded = first.result()
            ahead.append(submit())
            yield decoded


def _decode(image: Any, max_pixels: int) -> Decoded | ImageError:
    try:
        return decode(image, max_pixels=max_pixels), label(image)
    except ImageError as error:
        return error
    except MemoryError:  # of one image: the next may be smaller
        return ImageError(f"{label(image)}: not enough memory to decode it; shrink it or lower max_pixels")


def located(error: ImageError, index: int, scores: torch.Tensor) -> ImageError:
    """The same error, saying which input it is about, with the scores computed so far."""
    found = type(error)(f"input {index}: {error}")
    found.__cause__ = error
    found.__dict__.update(index=index, scores=scores)
    return found


def as_given(scores: torch.Tensor, images: Any) -> Any:
    """The scores, as a Series with the index of the images if these are a Series: pandas aligns by it."""
    pandas: Any = sys.modules.get("pandas")  # who has a Series has imported it
    if pandas is None or not isinstance(images, pandas.Series):
        return scores
    return pandas.Series(scores.numpy(), index=images.index)


def outcome(result: float | ImageError) -> tuple[float | None, str | None]:
    """A result as rows have it: its score and its error, of which one is None."""
    if not isinstance(result, ImageError):
        if math.isfinite(result):
            return float(result), None
        result = senseless(result)
    return None, str(result)


def senseless(score: float) -> ImageError:
    """The error for an image whose score is no number."""
    return ImageError(f"the model gave {score}: its weights may be damaged")


def with_bar(results: Iterator[Any], total: int) -> Iterator[Any]:
    """The same results, with a bar on stderr."""
    from tqdm import tqdm

    return iter(tqdm(results, total=total, unit=" images"))
