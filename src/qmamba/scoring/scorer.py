"""The `Scorer` module: a trained network with all that turns images into scores."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from itertools import repeat
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from qmamba.adapters.host import AdapterVerbs, Loaded
from qmamba.calibration import Scale
from qmamba.checkpoints import ModelConfig
from qmamba.checkpoints.host import CheckpointVerbs
from qmamba.errors import AdapterError, ArgumentError, ImageError
from qmamba.images import Decoded, iterate
from qmamba.ops.fork import use_one_thread_in_forked_child
from qmamba.protocol import Protocol, Window
from qmamba.scoring.image_verbs import ImageVerbs
from qmamba.scoring.own_type import OwnType
from qmamba.scoring.pickling import reduce_to_one_buffer
from qmamba.scoring.pipeline import (
    Crops,
    CropScores,
    RawParts,
    crops,
    pixel_limit,
    quality,
    raw_parts,
    windows_and_weights,
)
from qmamba.scoring.quality_map import QualityMap, assembled, local_values, mappable
from qmamba.scoring.stream import (
    Column,
    ScoreOptions,
    as_given,
    as_tensor,
    check_batch,
    located,
    with_bar,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class Scorer(OwnType, ImageVerbs, AdapterVerbs, CheckpointVerbs):
    """A trained network with all that turns images into scores: crops, normalisation, calibration.

    Get one from `load`. The parameters are frozen, and the module stays in evaluation mode, whatever an outer
    module's `.train()` or `.requires_grad_()` says; gradients flow to the images. It works on the device, and
    in the floating type, that its parameters have; an outer module's `.half()` does not change that type.

    Adapters for other domains are handled by `load_adapter`, `set_adapter`, `disable_adapter` and
    `delete_adapter`.

    Args:
        network: normalised images (N, 3, H, W) to raw quality (N, 1), as `create_model` builds it. It is
            frozen in place.
        config: preprocessing, protocol, calibration, and what is known about the weights.
    """

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        super().__init__(network.requires_grad_(False), config)
        self.eval()

    def train(self, mode: bool = True) -> Scorer:
        """Stay in evaluation mode: a score must not depend on what else is being trained."""
        super().train(False)
        return self

    @property
    def protocol(self) -> Protocol:
        """Which parts of an image are looked at."""
        return self.config.protocol

    @property
    def lower_better(self) -> bool:
        """Whether a lower score means a better photograph; False unless the checkpoint says otherwise."""
        return self.config.lower_better

    @property
    def score_range(self) -> tuple[float, float]:
        """Lowest and highest possible score."""
        low, high = self.config.score_range
        return low, high

    @property
    def scale(self) -> Scale:
        """From raw quality to scores: the calibration in use, in the range and direction of the model."""
        return self._scale_of(self._chosen())

    def _scale_of(self, chosen: Loaded | None) -> Scale:
        return Scale(self._calibration_of(chosen), *self.score_range, self.lower_better)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, protocol={self.protocol.kind!r}"

    # Tensors to scores

    def forward(self, batch: Tensor) -> Tensor:
        """Return the scores of a batch, differentiable with respect to its pixels.

        Args:
            batch: (B, 3, H, W), any floating type, values in [0, 1], on the device of the parameters. Values
                up to 0.5 outside that range are taken as they are, since restoration networks overshoot.

        Returns:
            (B,), float32, in `score_range`.

        Raises:
            ImageError: another shape or type, or values that are NaN or far outside [0, 1]. (Under
                torch.compile and torch.export values are not looked at.)
        """
        check_batch(batch)
        if not torch.compiler.is_compiling():
            use_one_thread_in_forked_child()
        if any(parameter.requires_grad for parameter in self.parameters()):
            self.requires_grad_(False)  # an outer module's `.requires_grad_()` has not called ours
        if batch.shape[0] == 0:
            return batch.to(torch.float32).sum((1, 2, 3))
        chosen = self._chosen()
        rate, scale = self._rater(chosen), self._scale_of(chosen)
        weight, means = self._weight(), []
        for part, images in crops(batch.to(torch.float32), self.protocol, name="batch"):
            flat = self.config.preprocessing(images.flatten(0, 1))  # (B·n, 3, h, w)
            scores = scale(rate(flat.to(weight.dtype)))
            means.append(scores.view(-1, len(part.windows)).mean(dim=1))
        return torch.stack(means).mean(dim=0)

    def _rater(self, chosen: Loaded | None) -> Callable[[Tensor], Tensor]:
        """Return a function from normalised images (N, 3, h, w) to raw quality (N,) float32."""
        run = self.network if chosen is None else partial(chosen.adapter, self.network)
        return lambda images: quality(run(images), self.config.output)

    # Images to parts of scores

    def raw_parts(self, image: Any, *, batch_size: int = 32, max_pixels: int | None = None) -> RawParts:
        """Return raw quality and weight of each part of an image, before calibration.

        Arguments and errors are those of `crop_scores`.
        """
        limit = pixel_limit(batch_size, max_pixels)
        rate = self._rater(self._chosen())
        return RawParts(*self._parts(rate, self.decoded(image, limit), batch_size, limit))

    def crop_scores(self, image: Any, *, batch_size: int = 32, max_pixels: int | None = None) -> CropScores:
        """Return the parts of an image's score, which is Σ weight · score.

        Args:
            image: one image of any kind that `qmamba.images.decode` takes, or what `decoded` returned for it.
            batch_size: crops per forward pass.
            max_pixels: as for `score`.

        Returns:
            Where each crop lies in the image, its score and its weight.

        Raises:
            ImageError: the image cannot be scored.
            ArgumentError: an option of a wrong type or out of range.
        """
        limit = pixel_limit(batch_size, max_pixels)
        found = image if isinstance(image, Decoded) else self.decoded(image, limit)
        return self._crop_scores(found, self._chosen(), batch_size, limit)

    def _crop_scores(
        self, image: Decoded, chosen: Loaded | None, batch_size: int, max_pixels: int
    ) -> CropScores:
        rate, scale = self._rater(chosen), self._scale_of(chosen)
        return CropScores(*self._parts(lambda images: scale(rate(images)), image, batch_size, max_pixels))

    def _parts(
        self, rate: Callable[[Tensor], Tensor], image: Decoded, batch_size: int, max_pixels: int
    ) -> tuple[list[Window], Tensor, Tensor]:
        """Return the windows of an image's crops, what `rate` returns for them, and their weights."""
        pixels, name, size = image.pixels, image.name, (image.height, image.width)
        look = self.look(rate, pixels, name, size=size, batch_size=batch_size, max_pixels=max_pixels)
        parts, rated = zip(*look, strict=True)
        windows, weights = windows_and_weights(parts, image.height, image.width)
        return windows, torch.cat(rated).cpu(), weights

    def look(
        self,
        network: Callable[[Tensor], T],
        pixels: Tensor,
        name: str,
        *,
        size: tuple[int, int] | None = None,
        batch_size: int = 32,
        max_pixels: int | None = None,
    ) -> Iterator[tuple[Crops, T]]:
        """Yield an image's crops by this scorer's protocol, and what a function returns for them.

        Args:
            network: takes normalised images (n, 3, h, w); see `qmamba.scoring.pipeline.raw_parts`.
            pixels: (3, H, W), as `qmamba.images.decode` returns them.
            name: what an error calls the image.
            size: original height and width of an image that was downsampled while it was decoded.
            batch_size, max_pixels: as for `score`.
        """
        return raw_parts(
            network, pixels, self.protocol, self.config.preprocessing, weight=self._weight(),
            batch_size=batch_size, max_pixels=pixel_limit(batch_size, max_pixels), name=name, size=size,
        )  # fmt: skip

    def quality_map(self, image: Any, *, batch_size: int = 32, max_pixels: int | None = None) -> QualityMap:
        """Return where an image's score comes from: what each position of the network adds to it.

        The parts sum to the score exactly, for every protocol and adapter. A part is a contribution, not
        a rating of its window by itself: the network mixes all positions before its head, see `QualityMap`.

        Args:
            image: one image of any kind that `qmamba.images.decode` takes, or what `decoded` returned for it.
            batch_size: crops per forward pass.
            max_pixels: as for `score`.

        Returns:
            The map. Its `score` has the bits that `score` gives with the same `batch_size`.

        Raises:
            ImageError: the image cannot be scored.
            CapabilityError: the network does not give values of its positions.
            ArgumentError: an option of a wrong type or out of range.

        Examples:
            >>> import qmamba
            >>> found = qmamba.load("lqmamba-n").quality_map(torch.full((3, 300, 400), 0.5))
            >>> bool(abs((found.scores * found.shares).sum() - found.score) < 1e-5)
            True
            >>> found.image(300, 400).shape
            (300, 400)
        """
        limit, chosen = pixel_limit(batch_size, max_pixels), self._chosen()
        network, scale = mappable(self.network, self.config), self._scale_of(chosen)
        run = network.forward_positions if chosen is None else partial(chosen.adapter.positions, self.base())
        pixels, name, height, width = image if isinstance(image, Decoded) else self.decoded(image, limit)
        looked = self.look(
            lambda images: local_values(*run(images), scale),
            pixels, name, size=(height, width), batch_size=batch_size, max_pixels=limit,
        )  # fmt: skip
        low, high = self.score_range
        return assembled(height, width, list(looked), high - low)

    # Images to scores

    @overload
    def score(
        self,
        images: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
        **options: Unpack[ScoreOptions],
    ) -> float: ...
    @overload
    def score(self, images: np.ndarray | Tensor | Column, **options: Unpack[ScoreOptions]) -> Any: ...
    @overload
    def score(self, images: Iterable[Any], **options: Unpack[ScoreOptions]) -> Tensor: ...

    def score(
        self,
        images: Any,
        *,
        on_error: str = "raise",
        batch_size: int = 32,
        progress: bool = False,
        max_pixels: int | None = None,
        return_std: bool = False,
        adapters: Sequence[str | None] | None = None,
    ) -> Any:
        """Score one image, or each of a sequence.

        Args:
            images: a path, bytes, file object, Pillow image, RGB array (H, W[, C]) or tensor (C, H, W); or
                a sequence of these: list, tuple, iterator, pandas or numpy column, tensor (B, C, H, W).
                Kinds and sizes may be mixed. `qmamba.images.decode` describes each kind. An iterator is read
                while its images are scored, and may yield the same object or buffer again.
            on_error: "raise", or "nan" to score what can be scored and give NaN for the rest.
            batch_size: crops per forward pass, at least 1. Fewer take less memory; scores move by under 1e-6.
            progress: show a bar on stderr.
            max_pixels: refuse images of more pixels, also after enlargement; 50,000,000 by default.
            return_std: return also the standard deviation of the scores of an image's parts: large for a
                photograph that is sharp in one corner only.
            adapters: which adapter scores each image, one name an image, None for the model alone; by default
                the active one scores all.

        Returns:
            A float for a single image. For a sequence of n a tensor (n,), float32 on the CPU; for a pandas
            Series a Series with its index. All in `score_range`; higher is better unless `lower_better`. With
            `return_std` a pair of these: scores, deviations.

        Raises:
            ImageError: (MissingImageError for a path that names no file) with on_error="raise", at the first
                image that cannot be scored. For a sequence the message begins with the input's index, which
                the error carries as `.index`; `.scores` holds a tensor (n,) with the scores computed before
                it, and NaN for the rest. Of an iterator, whose rest is not read, n counts up to this image.
            AdapterError: a name that no adapter has, or another number of names than of images.
            ArgumentError: an option of a wrong type or out of range.
        """
        if on_error not in ("raise", "nan"):
            raise ArgumentError(f'on_error must be "raise" or "nan", got {on_error!r}')
        limit = pixel_limit(batch_size, max_pixels)
        single = iterate(images)[1]
        count = 1 if single else len(images) if isinstance(images, Sized) else None
        work = partial(self._crop_scores, batch_size=batch_size, max_pixels=limit)
        results = self._each(images, self._chosen_for(count, adapters), work, limit)
        means: list[float] = []
        deviations: list[float] = []
        for index, result in enumerate(with_bar(results, count) if progress else results):
            if not isinstance(result, ImageError):
                means.append(result.mean)
                deviations.append(result.std)
            elif on_error == "nan":
                means.append(math.nan)
                deviations.append(math.nan)
            else:
                rest = [math.nan] * ((count or index + 1) - index)
                raise result if single else located(result, index, as_tensor(means + rest))
        if adapters is not None and len(adapters) != len(means):
            raise AdapterError(
                f"adapters must have a name for each of {len(means)} images, got {len(adapters)}"
            )
        found = [
            values[0] if single else as_given(as_tensor(values), images) for values in (means, deviations)
        ]
        return (found[0], found[1]) if return_std else found[0]

    def iter_scores(
        self, images: Any, *, batch_size: int = 32, max_pixels: int | None = None, workers: int = 1
    ) -> Iterator[tuple[int, float | ImageError]]:
        """Score images in order, and yield each result as soon as it is ready.

        On a CPU as many images are scored at once as torch has threads, with one thread each; elsewhere the
        next images are decoded meanwhile. An iterator may be endless: no more images are read ahead than
        there are threads, and `workers` more.

        Args:
            images: as for `score`; a single image counts as a sequence of one.
            batch_size: as for `score`.
            max_pixels: as for `score`.
            workers: threads that decode while one thread or a GPU scores; as many images are held decoded.

        Yields:
            (index, score), with an ImageError in place of the score of an image that cannot be scored.

        Raises:
            ArgumentError: an option of a wrong type or out of range.
        """
        results = self.iter_crop_scores(images, batch_size=batch_size, max_pixels=max_pixels, workers=workers)
        return ((i, r if isinstance(r, ImageError) else r.mean) for i, r in enumerate(results))

    def iter_crop_scores(
        self, images: Any, *, batch_size: int = 32, max_pixels: int | None = None, workers: int = 1
    ) -> Iterator[CropScores | ImageError]:
        """Yield what `crop_scores` returns for each of a sequence; arguments as for `iter_scores`."""
        limit = pixel_limit(batch_size, max_pixels, workers)
        work = partial(self._crop_scores, batch_size=batch_size, max_pixels=limit)
        return self._each(images, repeat(self._chosen()), work, limit, workers)


ForkingPickler.register(Scorer, reduce_to_one_buffer)
