"""The evaluation protocol: which parts of an image the network sees, and at what size.

A protocol belongs to a checkpoint, because a score means little without it. All kinds are
deterministic: they depend on the size of the image and on the protocol's own numbers, never on global random
    state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F

from qmamba.errors import CheckpointError
from qmamba.images import MAX_PIXELS
from qmamba.images.pillow import check_size

Kind: TypeAlias = Literal["grid", "random", "whole", "scales"]
Window: TypeAlias = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""

KINDS: tuple[Kind, ...] = get_args(Kind)
# Far above any use: a stranger's checkpoint must not keep the machine busy.
MOST_CROPS, MOST_SIDES = 10_000, 16
LEAST = 64  # pixels of the shorter side of an image that is seen whole at one of `sides`


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an image is cut into the crops whose calibrated scores are averaged.

    * `grid`: ⌈H / crop⌉ rows and ⌈W / crop⌉ columns of square crops, which cover the image. While that makes
      more than `max_crops`, the larger of the two counts loses one (the rows, when they are equal). Crops
      are spread evenly from edge to edge, and overlap or leave gaps as the counts require; a single row or
      column sits in the middle.
    * `random`: `n_crops` square crops at uniformly random places, drawn anew for each image from a generator
      of its own that is seeded with `seed`. Two images of one size get the same places.
    * `whole`: the full image in one pass.
    * `scales`: the image brought to each of `sides`, that is to about side² pixels with its aspect ratio
      kept, whether it is larger or smaller. At the first of them it is cut into a grid of no more than
      `max_crops` crops, if that is not 0; at the others it is seen whole. Each scale counts the same. So it
      hardly matters at what size a picture was saved.

    An image with a side shorter than `crop` is enlarged first, see `fit_side`; for `scales` after it has been
    brought to its first size.

    Attributes:
        kind: "grid", "random", "whole" or "scales".
        crop: side of a crop in pixels, 32 to 8192.
        max_crops: the most crops of a grid, 1 to 10,000; 0 for `scales` that are all seen whole.
        n_crops: the number of random crops, 1 to 10,000.
        seed: seed of the random crops, at least 0.
        sides: 1 to 16 sizes of `scales`, each the square root of a number of pixels, 32 to 8192.

    Raises:
        CheckpointError: for an unknown kind, or a number out of its range.

    Examples:
        >>> windows(224, 500, Protocol())
        [(0, 0, 224, 224), (0, 138, 224, 224), (0, 276, 224, 224)]
    """

    kind: Kind = "grid"
    crop: int = 224
    max_crops: int = 25
    n_crops: int = 10
    seed: int = 0
    sides: tuple[int, ...] = (512, 256)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CheckpointError(f"protocol: unknown kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        crops = 0 if self.kind == "scales" else 1
        for name, least, most in (
            *(("crop", 32, 2**13), ("max_crops", crops, MOST_CROPS), ("n_crops", 1, MOST_CROPS)),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise CheckpointError(
                    f"protocol: {name} must be an integer from {least} to {most}, not {value!r}"
                )
        if not isinstance(self.sides, (tuple, list)) or not 1 <= len(self.sides) <= MOST_SIDES:
            raise CheckpointError(f"protocol: sides must list 1 to {MOST_SIDES} sizes, not {self.sides!r}")
        if any(type(side) is not int or not 32 <= side <= 2**13 for side in self.sides):
            raise CheckpointError(f"protocol: sides must be integers from 32 to 8192, not {self.sides!r}")
        object.__setattr__(self, "sides", tuple(self.sides))  # JSON knows lists only

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {**dataclasses.asdict(self), "sides": list(self.sides)}

    def as_kind(self, kind: Kind) -> Protocol:
        """Another kind with the same numbers; `max_crops` of 0 becomes the default where crops are needed.

        Examples:
            >>> Protocol("scales", max_crops=0).as_kind("grid") == Protocol("grid", sides=(512, 256))
            True
        """
        crops = self.max_crops if kind == "scales" else self.max_crops or Protocol.max_crops
        return dataclasses.replace(self, kind=kind, max_crops=crops)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Protocol:
        """The inverse of `to_dict`; CheckpointError when a field is missing or unknown.

        Examples:
            >>> Protocol.from_dict(Protocol(kind="random").to_dict())
            Protocol(kind='random', crop=224, max_crops=25, n_crops=10, seed=0, sides=(512, 256))
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, Mapping):
            raise CheckpointError(
                f"protocol: expected an object with {', '.join(sorted(known))}, not {fields!r}"
            )
        for what, names in (("unknown", set(fields) - known), ("missing", known - set(fields))):
            if names:
                raise CheckpointError(f"protocol: {what} field {', '.join(sorted(map(str, names)))}")
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class View:
    """The image at one size, and the windows of it that the network sees.

    Attributes:
        height, width: of the whole image at this size, in pixels.
        windows: in pixels of this size.
    """

    height: int
    width: int
    windows: tuple[Window, ...]

    def in_image(self, window: Window, height: int, width: int) -> Window:
        """A window in pixels of an image of this height and width, as near as whole pixels allow."""
        tall, wide = height / self.height, width / self.width
        top, left, h, w = window
        return round(top * tall), round(left * wide), max(1, round(h * tall)), max(1, round(w * wide))


def views(height: int, width: int, protocol: Protocol) -> list[View]:
    """What the network sees of an image of this size. A score is the mean of its views' means.

    Examples:
        >>> [(v.height, v.width, len(v.windows)) for v in views(3000, 4000, Protocol("scales", max_crops=4))]
        [(443, 591, 4), (222, 296, 1)]
    """
    if protocol.kind != "scales":
        height, width = _fitted(height, width, protocol.crop)
        return [View(height, width, tuple(windows(height, width, protocol)))]
    found = []
    for place, side in enumerate(protocol.sides):
        ratio = math.sqrt(side * side / (height * width))
        h, w = (max(1, round(length * ratio)) for length in (height, width))
        is_cut = place == 0 and protocol.max_crops > 0
        h, w = _fitted(h, w, protocol.crop if is_cut else LEAST)
        cut = windows(h, w, protocol) if is_cut else [(0, 0, h, w)]
        found.append(View(h, w, tuple(cut)))
    return found


def windows(height: int, width: int, protocol: Protocol) -> list[Window]:
    """The crops of an image of this size, in a fixed order; for `scales` those of the first of its sizes.

    Args:
        height: rows of pixels, at least `protocol.crop` unless the kind is "whole".
        width: columns of pixels, likewise.
        protocol: the protocol; see `Protocol` for the rules.

    Returns:
        (top, left, height, width) of each crop, in pixels: from left to right, then from top to bottom for a
        grid.

    Raises:
        ValueError: when a crop does not fit; `fit_side` prevents that.
    """
    if protocol.kind == "whole":
        return [(0, 0, height, width)]
    crop = protocol.crop
    if min(height, width) < crop:
        raise ValueError(f"a {height} × {width} image is smaller than a crop of {crop}; call fit_side first")
    if protocol.kind == "random":
        return _random_windows(height, width, protocol)
    rows, columns = _grid_counts(height, width, protocol)
    return [
        (top, left, crop, crop)
        for top in _spread(height - crop, rows)
        for left in _spread(width - crop, columns)
    ]


def _grid_counts(height: int, width: int, protocol: Protocol) -> tuple[int, int]:
    rows, columns = -(-height // protocol.crop), -(-width // protocol.crop)
    while rows * columns > protocol.max_crops:
        if rows >= columns:
            rows -= 1
        else:
            columns -= 1
    return rows, columns


def _spread(room: int, count: int) -> list[int]:
    """`count` even positions from 0 to `room`; in integers, halves rounded up, so that no machine differs."""
    if count == 1:
        return [room // 2]
    return [(2 * i * room + count - 1) // (2 * (count - 1)) for i in range(count)]


def _random_windows(height: int, width: int, protocol: Protocol) -> list[Window]:
    # On the CPU whatever the default device is: the same places on every machine.
    generator = torch.Generator("cpu").manual_seed(protocol.seed)
    tops, lefts = (
        torch.randint(side - protocol.crop + 1, (protocol.n_crops,), generator=generator, device="cpu")
        for side in (height, width)
    )
    return [
        (top, left, protocol.crop, protocol.crop)
        for top, left in zip(tops.tolist(), lefts.tolist(), strict=True)
    ]


def unit(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as float32 in [0, 1]: uint8 is divided by 255, floats keep their values."""
    return pixels.to(torch.float32) / 255 if pixels.dtype == torch.uint8 else pixels.to(torch.float32)


def fit_side(
    image: torch.Tensor, crop: int, *, max_pixels: int = MAX_PIXELS, name: str = "image"
) -> torch.Tensor:
    """Enlarge an image whose shorter side is under `crop`, so that this side becomes `crop`.

    The aspect ratio is kept, up to rounding of the longer side. Bilinear: it cannot leave the range of the
    pixels, so that no clamp is needed, which would stop the gradient.

    Args:
        image: (…, H, W), uint8, or float in [0, 1].
        crop: the least side in pixels.
        max_pixels: the most pixels, height × width, that the result may have.
        name: what an error calls the image.

    Returns:
        The image itself when both sides reach `crop`, and otherwise an enlarged float32 copy in [0, 1],
        differentiable to a float input.

    Raises:
        ImageError: when the enlarged image would exceed `max_pixels`.

    Examples:
        >>> fit_side(torch.zeros(3, 100, 150), 224).shape
        torch.Size([3, 224, 336])
    """
    height, width = image.shape[-2:]
    return resize(image, *_fitted(height, width, crop), max_pixels=max_pixels, name=name)


def _fitted(height: int, width: int, least: int) -> tuple[int, int]:
    """The size with a shorter side of at least ``least``."""
    shorter = min(height, width)
    if shorter >= least:
        return height, width
    h, w = (
        least if side == shorter else (side * least + shorter // 2) // shorter for side in (height, width)
    )
    return h, w


def resize(
    image: torch.Tensor, height: int, width: int, *, max_pixels: int = MAX_PIXELS, name: str = "image"
) -> torch.Tensor:
    """An image brought to a size; bilinear, over all pixels that fall together where it shrinks.

    Args:
        image: (…, H, W), uint8, or float in [0, 1].
        height, width: of the result.
        max_pixels: the most pixels, height × width, that an enlarged image may have.
        name: what an error calls the image.

    Returns:
        The image itself when it has that size, and otherwise a float32 copy in [0, 1], differentiable to a
        float input.

    Raises:
        ImageError: when the enlarged image would exceed `max_pixels`.
    """
    given = int(image.shape[-2]), int(image.shape[-1])
    if given == (height, width):
        return image
    if height > given[0] or width > given[1]:
        check_size(given[0], given[1], max_pixels, name)
        check_size(height, width, max_pixels, f"{name}: {given[0]} × {given[1]}, enlarged for its crops")
    planes = unit(image).reshape(1, -1, *given)
    shrinks = height < given[0] or width < given[1]
    resized = F.interpolate(
        planes, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks
    )
    return resized.reshape(*image.shape[:-2], height, width)
