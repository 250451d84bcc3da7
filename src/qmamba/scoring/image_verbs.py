"""The part of a scorer that reads images: one, or many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from qmamba.checkpoints import ModelConfig
from qmamba.errors import BackendError, ImageError
from qmamba.images import Decoded
from qmamba.images.pillow import Least
from qmamba.protocol import least_size
from qmamba.scoring.explanation import Explainer, Explanation
from qmamba.scoring.faults import FaultProbe
from qmamba.scoring.parallel import each
from qmamba.scoring.pipeline import pixel_limit
from qmamba.scoring.stream import decoded

if TYPE_CHECKING:
    from qmamba.scoring.scorer import Scorer

A = TypeVar("A")
T = TypeVar("T")


class ImageVerbs(nn.Module):
    """The part of a scorer that reads images.

    Attributes:
        draft: whether large JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, where that is still
            twice as large as what the protocol looks at. It takes less time, and scores change a little.
        one_at_a_time: whether images are worked on one after the other on a CPU too, with all threads.
    """

    config: ModelConfig
    network: nn.Module
    draft = False
    one_at_a_time = False

    def decoded(self, image: Any, max_pixels: int | None = None) -> Decoded:
        """Decode an image as `score` does, see `qmamba.images.decode_for`."""
        return decoded(image, pixel_limit(1, max_pixels), self._least())

    def each(
        self, images: Any, work: Callable[[Decoded], T], *, max_pixels: int | None = None, workers: int = 1
    ) -> Iterator[T | ImageError]:
        """Decode images, and yield what a function returns for each, in order; on a CPU several at once.

        The ImageError of an image that cannot be decoded or worked on is yielded in place of a result.

        Args:
            images, max_pixels, workers: as for `Scorer.iter_scores`.
            work: called with an image, in any thread.
        """
        limit = pixel_limit(1, max_pixels, workers)
        return self._each(images, repeat(None), lambda image, _: work(image), limit, workers)

    def explain(
        self,
        image: Any,
        *,
        batch_size: int = 32,
        max_pixels: int | None = None,
        probe: FaultProbe | None = None,
    ) -> Explanation:
        """Return what is known about an image's score: its fault, where it is worst, and what was measured.

        A fault is named by a linear probe on the network's features that belongs to the weights, and only
        where the probe is sure; docs/reasons.md says how often it is right. Other weights have no probe
        unless one is given: then only the score and what is measured of the pixels are told.

        Args:
            image: one image of any kind that `qmamba.images.decode` takes.
            batch_size: crops per forward pass.
            max_pixels: as for `score`.
            probe: that belongs to these weights, from `qmamba.scoring.faults.load_probe`; by default the one
                that ships.

        Returns:
            The explanation; `str` of it is a sentence.

        Raises:
            ImageError: the image cannot be scored.
            CheckpointError: the probe belongs to other weights.
            ArgumentError: an option of a wrong type or out of range.

        Examples:
            >>> import qmamba
            >>> found = qmamba.load("lqmamba-n").explain(torch.zeros(3, 300, 400))
            >>> found.measured.notes()[0]
            '100% of the pixels are black'
        """
        look = Explainer(cast("Scorer", self), batch_size=batch_size, max_pixels=max_pixels, probe=probe)
        return look(self.decoded(image, max_pixels))[0]

    def _each(
        self, images: Any, extras: Iterator[A], work: Callable[[Decoded, A], T], limit: int, workers: int = 1
    ) -> Iterator[T | ImageError]:
        return each(
            self, images, extras, work, device=self._weight().device, workers=workers, max_pixels=limit,
            least=self._least(),
        )  # fmt: skip

    def _least(self) -> Least | None:
        return partial(least_size, protocol=self.config.protocol) if self.draft else None

    def _weight(self) -> torch.Tensor:
        """Return a parameter, which has the device and the type of all.

        Raises:
            BackendError: it is on the device "meta".
        """
        weight = next(self.network.parameters())
        if weight.device.type == "meta":
            raise BackendError("a scorer on the device 'meta' has no weights: load it on another")
        return weight
