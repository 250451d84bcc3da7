"""The evaluation protocol: which parts of an image the network sees, and at what size.

A protocol belongs to a checkpoint, because a score means little without it. All kinds are deterministic: they
depend on the size of the image and on the protocol's own numbers, never on global random state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch

from qmamba.errors import ArgumentError, CheckpointError, ImageError

Kind: TypeAlias = Literal["grid", "random", "whole", "scales"]
Window: TypeAlias = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""

KINDS: tuple[Kind, ...] = get_args(Kind)
# Far above any use: an untrusted checkpoint must not tie up the machine.
MOST_CROPS, MOST_SIDES = 10_000, 16
LEAST = 64  # minimum of the shorter side, in pixels, of an image that is seen whole at one of `sides`
MAX_ASPECT = 50
"""Maximum ratio of an image's longer side to its shorter side; it bounds the cost of a score."""
MARGIN = 2
"""An image is decoded to at least this many times the height and width of its largest view."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an image is cut into the crops whose calibrated scores are averaged.

    * `grid`: ⌈H / crop⌉ rows and ⌈W / crop⌉ columns of square crops, which cover the image. While these are
      more than `max_crops`, the larger of the two counts is reduced by one (the rows, when they are equal).
      Crops are spread evenly from edge to edge, and overlap or leave gaps as the counts require; a single
      row or column is centred.
    * `random`: `n_crops` square crops at uniformly random positions, from a generator that is seeded with
      `seed` for each image. Two images of the same size have the same crops.
    * `whole`: the full image in one pass.
    * `scales`: the image resized to each of `sides`, that is to about side² pixels at its aspect ratio,
      whether it is larger or smaller. At the first of them it is cut into a grid of at most `max_crops`
      crops, unless that is 0; at the others it is seen whole. All scales have the same weight. So a score
      hardly depends on the size at which a picture was saved.

    An image whose shorter side is under `crop` is enlarged first, so that this side becomes `crop`; for
    `scales` after it has been brought to its first size.

    Attributes:
        kind: "grid", "random", "whole" or "scales".
        crop: side of a crop in pixels, 32 to 8192.
        max_crops: maximum number of crops of a grid, 1 to 10,000; 0 for `scales` that are all seen whole.
        n_crops: the number of random crops, 1 to 10,000.
        seed: seed of the random crops, at least 0.
        sides: 1 to 16 sizes of `scales`, each the square root of a number of pixels, 32 to 8192.

    Raises:
        ArgumentError: an unknown kind, or a number out of its range.

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
            raise ArgumentError(f"protocol: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        crops = 0 if self.kind == "scales" else 1
        for name, minimum, maximum in (
            *(("crop", 32, 2**13), ("max_crops", crops, MOST_CROPS), ("n_crops", 1, MOST_CROPS)),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not minimum <= value <= maximum:
                raise ArgumentError(
                    f"protocol: {name} must be an integer from {minimum} to {maximum}, got {value!r}"
                )
        if not isinstance(self.sides, (tuple, list)) or not 1 <= len(self.sides) <= MOST_SIDES:
            raise ArgumentError(f"protocol: sides must list 1 to {MOST_SIDES} sizes, got {self.sides!r}")
        if any(type(side) is not int or not 32 <= side <= 2**13 for side in self.sides):
            raise ArgumentError(f"protocol: sides must be integers from 32 to 8192, got {self.sides!r}")
        object.__setattr__(self, "sides", tuple(self.sides))  # JSON knows lists only

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return {**dataclasses.asdict(self), "sides": list(self.sides)}

    def as_kind(self, kind: Kind) -> Protocol:
        """Return another kind with the same numbers; `max_crops=0` becomes the default where it must be > 0.

        Examples:
            >>> Protocol("scales", max_crops=0).as_kind("grid") == Protocol("grid", sides=(512, 256))
            True
        """
        crops = self.max_crops if kind == "scales" else self.max_crops or Protocol.max_crops
        return dataclasses.replace(self, kind=kind, max_crops=crops)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Protocol:
        """Return the inverse of `to_dict`; CheckpointError when a field is missing, unknown or wrong.

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
        try:
            return cls(**fields)
        except ArgumentError as error:
            raise CheckpointError(str(error)) from error


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
        """Return a window in pixels of an image of this height and width, rounded to whole pixels."""
        tall, wide = height / self.height, width / self.width
        top, left, h, w = window
        return round(top * tall), round(left * wide), max(1, round(h * tall)), max(1, round(w * wide))


def check_aspect(height: int, width: int, name: str) -> None:
    """Raise ImageError for an image that is too thin to score.

    Its shorter side would be enlarged to what the network needs, and its longer side with it: a line of 1000
    pixels would cost as much as 25 images of 448 × 448.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(
            f"{name}: {height} × {width} is too thin to score: the longer side must be at most {MAX_ASPECT} "
            "times the shorter; crop it to the part to score"
        )


def views(height: int, width: int, protocol: Protocol) -> list[View]:
    """Return what the network sees of an image of this size; a score is the mean of its views' means.

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


def least_size(height: int, width: int, protocol: Protocol) -> tuple[int, int]:
    """Return the minimum height and width to which an image may be reduced before it is resized to its views.

    That is `MARGIN` times the largest view for `scales`, whose views are resized, and the image's own size
    for other kinds.

    Examples:
        >>> least_size(3000, 4000, Protocol("scales", max_crops=0, sides=(448, 480)))
        (832, 1108)
    """
    if protocol.kind != "scales":
        return height, width
    seen = views(height, width, protocol)
    return MARGIN * max(view.height for view in seen), MARGIN * max(view.width for view in seen)


def windows(height: int, width: int, protocol: Protocol) -> list[Window]:
    """Return the crops of an image of this size, in a fixed order; for `scales` those of its first size.

    Args:
        height: rows of pixels, at least `protocol.crop` unless the kind is "whole".
        width: columns of pixels, with the same minimum.
        protocol: see `Protocol` for the rules.

    Returns:
        (top, left, height, width) of each crop, in pixels: from left to right, then from top to bottom for a
        grid.

    Raises:
        ValueError: a crop does not fit; the sizes of `views` are large enough.
    """
    if protocol.kind == "whole":
        return [(0, 0, height, width)]
    crop = protocol.crop
    if min(height, width) < crop:
        raise ValueError(
            f"a {height} × {width} image is smaller than a crop of {crop}; use the size of its view"
        )
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
    """Return `count` even positions from 0 to `room`; in integers, halves rounded up: equal everywhere."""
    if count == 1:
        return [room // 2]
    return [(2 * i * room + count - 1) // (2 * (count - 1)) for i in range(count)]


def _random_windows(height: int, width: int, protocol: Protocol) -> list[Window]:
    # On the CPU whatever the default device is: the same crops on every machine.
    generator = torch.Generator("cpu").manual_seed(protocol.seed)
    tops, lefts = (
        torch.randint(side - protocol.crop + 1, (protocol.n_crops,), generator=generator, device="cpu")
        for side in (height, width)
    )
    return [
        (top, left, protocol.crop, protocol.crop)
        for top, left in zip(tops.tolist(), lefts.tolist(), strict=True)
    ]


def _fitted(height: int, width: int, least: int) -> tuple[int, int]:
    """Return the size, enlarged to a shorter side of at least `least`."""
    shorter = min(height, width)
    if shorter >= least:
        return height, width
    h, w = (
        least if side == shorter else (side * least + shorter // 2) // shorter for side in (height, width)
    )
    return h, w
