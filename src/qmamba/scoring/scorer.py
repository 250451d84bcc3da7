"""The `Scorer` module: a trained network with all that turns images into scores."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, BinaryIO, overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from qmamba.adapters.host import AdapterVerbs, Loaded
from qmamba.checkpoints import ModelConfig
from qmamba.errors import BackendError, ImageError
from qmamba.images import as_list, decode, iterate, label
from qmamba.ops.precision import without_autocast
from qmamba.protocol import Protocol, Window, resize, unit, views
from qmamba.scoring.pipeline import (
    Column,
    CropScores,
    Decoded,
    ScoreOptions,
    as_given,
    check_batch,
    decode_ahead,
    located,
    parts_of,
    pixel_limit,
    with_bar,
)
from qmamba.scoring.quality_map import QualityMap, assembled, local_values, mappable

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Scorer(AdapterVerbs):
    """A trained network with all that turns images into scores: crops, normalisation, calibration.

    Get one from `load`. The parameters are frozen, and the module stays in evaluation mode, whatever an outer
    module's `.train()` or `.requires_grad_()` says; gradients flow to the images. It works on the device, and
    in the floating type, that its parameters have.

    Adapters for other domains go by `load_adapter`, `set_adapter`, `disable_adapter` and `delete_adapter`.

    Args:
        network: (N, 3, H, W) normalised images to (N, 1) raw quality, as `create_model` builds it. It is
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
    def name(self) -> str:
        """Name of the checkpoint."""
        return self.config.name

    @property
    def protocol(self) -> Protocol:
        """Which parts of an image are looked at."""
        return self.config.protocol

    @property
    def lower_better(self) -> bool:
        """False: a higher score means a better photograph."""
        return self.config.lower_better

    @property
    def score_range(self) -> tuple[float, float]:
        """Least and greatest possible score."""
        low, high = self.config.score_range
        return low, high

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of the data sets that the weights have seen."""
        return self.config.trained_on

    def extra_repr(self) -> str:
        return f"name={self.name!r}, protocol={self.protocol.kind!r}"

    # Tensors to scores

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores of a batch, differentiable to its pixels.

        Args:
            batch: (B, 3, H, W), any floating type, values in [0, 1], on the device of the parameters. Values
                up to 0.5 outside that range are taken as they are, since restoration networks overshoot.

        Returns:
            (B,), float32, in `score_range`.

        Raises:
            ImageError: for another shape or type, or values that are NaN or far outside [0, 1]. (Under
                torch.compile and torch.export values are not looked at.)
        """
        check_batch(batch)
        if any(parameter.requires_grad for parameter in self.parameters()):
            self.requires_grad_(False)  # `.requires_grad_()` of an outer module asks none of its parts
        if batch.shape[0] == 0:
            return batch.to(torch.float32).sum((1, 2, 3))
        batch = batch.to(torch.float32)
        means, chosen = [], self._chosen()
        for view in views(batch.shape[-2], batch.shape[-1], self.protocol):
            whole = resize(batch, view.height, view.width, name="batch")
            crops = torch.stack([_cut(whole, box) for box in view.windows], dim=1)
            means.append(self._rate(crops.flatten(0, 1), chosen).view(-1, len(view.windows)).mean(dim=1))
        return torch.stack(means).mean(dim=0)

    def _rate(self, crops: torch.Tensor, chosen: Loaded | None) -> torch.Tensor:
        """(N, 3, h, w) float32 in [0, 1], to N float32 scores, calibrated as the adapter or the model is."""
        images = self._normalised(crops)
        raw: torch.Tensor = self.network(images) if chosen is None else chosen.adapter(self.network, images)
        return self._calibration_of(chosen)(raw[:, 0].to(torch.float32))

    def _normalised(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 3, h, w) float32 in [0, 1], as the network takes them."""
        weights = next(self.network.parameters())
        mean, std = (
            crops.new_tensor(numbers).view(1, 3, 1, 1)
            for numbers in (self.config.preprocessing.mean, self.config.preprocessing.std)
        )
        return ((crops - mean) / std).to(weights.dtype)

    def _rate_positions(
        self, crops: torch.Tensor, chosen: Loaded | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `_rate` gives, and (N, h, w): the value of each of the network's positions, of that mean."""
        images, network = self._normalised(crops), mappable(self.network)
        raw, said = (
            network.forward_positions(images) if chosen is None else chosen.adapter.positions(network, images)
        )
        return local_values(raw[:, 0].to(torch.float32), said, self._calibration_of(chosen))

    @torch.inference_mode()
    def crop_scores(self, image: Any, *, batch_size: int = 32, max_pixels: int | None = None) -> CropScores:
        """The parts that an image's score is made of: Σ weight · score.

        Args:
            image: one image of any kind that `qmamba.images.decode` takes.
            batch_size: crops per forward pass.
            max_pixels: as for `score`.

        Returns:
            Where each crop lies in the image, its score and its weight.

        Raises:
            ImageError: when the image cannot be scored.
        """
        limit = pixel_limit(batch_size, max_pixels)
        pixels = decode(image, max_pixels=limit)
        return self._crop_scores(pixels, label(image), self._chosen(), batch_size, limit)

    @torch.inference_mode()
    def quality_map(self, image: Any, *, batch_size: int = 32, max_pixels: int | None = None) -> QualityMap:
        """Where an image's score comes from: what each position of the network adds to it.

        The parts sum to the score exactly, for every protocol and adapter. A part is a contribution and no
        rating of its window by itself: the network mixes all positions before they speak, see `QualityMap`.

        Args:
            image: one image of any kind that `qmamba.images.decode` takes.
            batch_size: crops per forward pass.
            max_pixels: as for `score`.

        Returns:
            The map. Its `score` has the bits that `score` gives with the same `batch_size`.

        Raises:
            ImageError: when the image cannot be scored.
            BackendError: the network is none that `create_model` builds.

        Examples:
            >>> import qmamba
            >>> found = qmamba.load("lqmamba-n").quality_map(torch.full((3, 300, 400), 0.5))
            >>> bool(abs((found.scores * found.shares).sum() - found.score) < 1e-5)
            True
            >>> found.image(300, 400).shape
            (300, 400)
        """
        limit = pixel_limit(batch_size, max_pixels)
        mappable(self.network)
        pixels, chosen = decode(image, max_pixels=limit), self._chosen()
        height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
        scores: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        with without_autocast(self._device()):
            for crops in self._crops(pixels, label(image), batch_size, limit):
                rated, local = self._rate_positions(crops, chosen)
                scores.append(rated)
                values += local.cpu().unbind(0)
        seen = views(height, width, self.protocol)
        return assembled(height, width, seen, values, parts_of(seen, scores, height, width).mean)

    def _crop_scores(
        self, pixels: torch.Tensor, name: str, chosen: Loaded | None, batch_size: int, max_pixels: int
    ) -> CropScores:
        height, width = pixels.shape[-2:]
        # Crops of one image, no autocast: nothing but the image and the weights decides a score's bits.
        with without_autocast(self._device()):
            crops = self._crops(pixels, name, batch_size, max_pixels)
            scores = [self._rate(some, chosen) for some in crops]
        return parts_of(views(height, width, self.protocol), scores, height, width)

    def _crops(
        self, pixels: torch.Tensor, name: str, batch_size: int, max_pixels: int
    ) -> Iterator[torch.Tensor]:
        """What the network sees of an image, (N, 3, h, w) float32, in the order of its views' windows."""
        device = self._device()
        for view in views(pixels.shape[-2], pixels.shape[-1], self.protocol):
            whole = resize(pixels, view.height, view.width, max_pixels=max_pixels, name=name)
            for start in range(0, len(view.windows), batch_size):
                boxes = view.windows[start : start + batch_size]
                yield unit(torch.stack([_cut(whole, box) for box in boxes]).to(device))

    def inputs(self, pixels: torch.Tensor, name: str, batch_size: int) -> Iterator[torch.Tensor]:
        """What the network is given of decoded pixels (3, H, W): their crops, normalised, N at a time."""
        for crops in self._crops(pixels, name, batch_size, pixel_limit(batch_size, None)):
            yield self._normalised(crops)

    def _device(self) -> torch.device:
        device = next(self.network.parameters()).device
        if device.type == "meta":
            raise BackendError("a scorer on the device 'meta' has no weights: load it on another")
        return device

    # Images to scores

    @overload
    def score(
        self,
        images: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
        **options: Unpack[ScoreOptions],
    ) -> float: ...
    @overload
    def score(self, images: np.ndarray | torch.Tensor | Column, **options: Unpack[ScoreOptions]) -> Any: ...
    @overload
    def score(self, images: Iterable[Any], **options: Unpack[ScoreOptions]) -> torch.Tensor: ...

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
            images: a path, bytes, file object, Pillow image, numpy array (H, W[, C]) or tensor (C, H, W); or
                a sequence of these: list, tuple, iterator, pandas or numpy column, tensor (B, C, H, W).
                Kinds and sizes may be mixed. `qmamba.images.decode` describes each kind.
            on_error: "raise", or "nan" to score what can be scored and give NaN for the rest.
            batch_size: crops per forward pass, at least 1. Fewer take less memory; scores move by under 1e-6.
            progress: show a bar on stderr.
            max_pixels: refuse images of more pixels, also after enlargement; 50,000,000 by default.
            return_std: say also how far the scores of an image's parts lie apart, as a standard deviation: a
                photograph that is sharp in one corner only has a large one.
            adapters: which adapter scores each image, one name an image, None for the model alone; by default
                the active one scores all.

        Returns:
            A float for a single image. For a sequence of n a tensor (n,), float32 on the CPU; for a pandas
            Series a Series with its index. All in `score_range`, higher is better. With `return_std` a pair
            of these: scores, deviations.

        Raises:
            ImageError: (MissingImageError for a path that names no file) with on_error="raise", at the first
                image that cannot be scored. For a sequence the message begins with the input's index, which
                the error carries as `.index`; `.scores` holds a tensor (n,) with what was computed before it,
                and NaN for the rest.
            AdapterError: a name that no adapter has, or another number of names than of images.
        """
        if on_error not in ("raise", "nan"):
            raise ImageError(f'on_error must be "raise" or "nan", not {on_error!r}')
        items, single = as_list(images)
        found = torch.full((2, len(items)), math.nan, dtype=torch.float32, device="cpu")
        limit, chosen = pixel_limit(batch_size, max_pixels), self._chosen_for(len(items), adapters)
        results = self._stream(decode_ahead(iter(items), limit), chosen, batch_size, limit)
        for index, result in with_bar(results, len(items)) if progress else results:
            if not isinstance(result, ImageError):
                found[0, index], found[1, index] = result.mean, result.std
            elif on_error == "raise":
                raise result if single else located(result, index, found[0])
        scores, deviations = (float(row[0]) if single else as_given(row, images) for row in found)
        return (scores, deviations) if return_std else scores

    def iter_scores(
        self, images: Any, *, batch_size: int = 32, max_pixels: int | None = None, workers: int = 1
    ) -> Iterator[tuple[int, float | ImageError]]:
        """Score images one by one, in order, and yield each result as soon as it is there.

        The next images are decoded in other threads meanwhile. An iterator is read no more than `workers`
        images ahead, so it may be endless.

        Args:
            images: as for `score`; a single image counts as a sequence of one.
            batch_size: as for `score`.
            max_pixels: as for `score`.
            workers: threads that decode; as many images are held decoded.

        Yields:
            (index, score), with an ImageError in place of the score of an image that cannot be scored.
        """
        limit = pixel_limit(batch_size, max_pixels, workers)
        ahead = decode_ahead(iterate(images)[0], limit, workers)
        results = self._stream(ahead, repeat(self._chosen()), batch_size, limit)
        return ((i, parts if isinstance(parts, ImageError) else parts.mean) for i, parts in results)

    def _stream(
        self, images: Iterator[Decoded | ImageError], chosen: Iterable[Loaded | None], batch: int, limit: int
    ) -> Iterator[tuple[int, CropScores | ImageError]]:
        # zip asks the images first: what ends is their number
        for index, (decoded, its) in enumerate(zip(images, chosen, strict=False)):
            yield index, self._score_or_error(decoded, its, batch, limit)

    @torch.inference_mode()
    def _score_or_error(
        self, decoded: Decoded | ImageError, chosen: Loaded | None, batch_size: int, max_pixels: int
    ) -> CropScores | ImageError:
        if isinstance(decoded, ImageError):
            return decoded
        try:
            return self._crop_scores(*decoded, chosen, batch_size, max_pixels)
        except ImageError as error:
            return error

    # Saving

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None
    ) -> ModelConfig:
        """Write a checkpoint folder that `load` reads: config.json, model.safetensors, README.md.

        Adapters are not in it: they have folders of their own.

        Args:
            folder: where to; it is made if need be.
            dtype: float32, float16 or bfloat16 for the stored weights; by default as they were stored before.

        Returns:
            The config as written, with this scorer's protocol.

        Raises:
            CheckpointError: when the weights do not fit that type, or the folder cannot be written.
        """
        from qmamba.checkpoints import save_checkpoint

        return save_checkpoint(folder, self.network, self.config, dtype=dtype)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | bool | None = None,
        commit_message: str = "Upload a qmamba checkpoint",
        revision: str | None = None,
    ) -> str:
        """Upload this scorer as a checkpoint to the Hub repository "user/repository", made if need be.

        The options are those of `qmamba.checkpoints.hub.push`: whether a new repository is private, a token
        in place of the one that is logged in, the first line of the commit, the branch to commit to.

        Returns:
            The address of the commit.

        Raises:
            HubError: when the upload fails.
        """
        from qmamba.checkpoints.hub import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            upload = partial(push, folder, repo_id, private=private, token=token)
            return upload(commit_message=commit_message, revision=revision)


def _cut(pixels: torch.Tensor, box: Window) -> torch.Tensor:
    top, left, height, width = box
    return pixels[..., top : top + height, left : left + width]
