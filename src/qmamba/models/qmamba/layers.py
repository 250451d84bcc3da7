"""The parts of a backbone around SS2D: stem, MLP, drop-path, block and downsampling. All but the stem and
the downsampling's convolutions work on channels-last features (B, H, W, C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import Route, linear, mlp
from ...ops.scratch import Scratch
from .ss2d import SS2D, Linear

POSITIONS = 2**18  # numbers in the features that a processor takes through a position-wise part together


def conv_nhwc(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution on (B, H, W, C). The permutations are views: channels stay last in memory."""
    y: Tensor = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return y


def rows_behind(first: int, last: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of ``height`` rows those that rows first … last - 1 of a 3 × 3 convolution with stride 2 are made from,
    and how many rows of zeros are to be put above and below them."""
    top, bottom = 2 * first - 1, 2 * last
    start, stop = max(top, 0), min(bottom, height)
    return (start, stop), (start - top, bottom - stop)


def conv_rows(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3 × 3 convolution with stride 2 of (B, C, H, W) that has all the rows it needs."""
    return F.conv2d(x, conv.weight, conv.bias, stride=2, padding=(0, 1))


def gelu(x: Tensor) -> Tensor:
    """GELU of a tensor that nobody else has: in place, unless a backward will want it as it was."""
    out: Tensor = F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)
    return out


def plus(branch: Tensor, x: Tensor) -> Tensor:
    """A residual sum that no gradient is wanted of, in the memory of its branch (autocast's is narrower)."""
    return branch.add_(x) if branch.dtype == x.dtype else branch + x


def in_parts(x: Tensor) -> bool:
    """Whether images or positions may be done some at a time: on a processor, where no gradient is wanted."""
    return x.device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def by_positions(function: Callable[..., Tensor], *features: Tensor, scratch: str | None = None) -> Tensor:
    """A function of features (…, C) that acts on every position by itself, some positions at a time: what is
    made on the way stays in a cache, and large images need little memory. The result may lie in memory of
    that name that is used again."""
    x = features[0]
    total = x[..., 0].numel()
    parts_wanted = round(total * x.shape[-1] / POSITIONS)
    if parts_wanted <= 1:
        return function(*features)
    count = -(-total // parts_wanted)
    parts = zip(*(torch.split(f.flatten(0, -2), count) for f in features), strict=True)
    first = function(*next(parts))
    shape = (total, first.shape[-1])
    out = first.new_empty(shape) if scratch is None else Scratch(first)(scratch, shape)
    out[:count] = first
    for i, part in enumerate(parts, 1):
        out[i * count : (i + 1) * count] = function(*part)
    return out.view(*x.shape[:-1], -1)


class Stem(nn.Module):
    """Image (B, 3, H, W) → features (B, ⌈H/4⌉, ⌈W/4⌉, C): two strided convolutions with LayerNorms."""

    def __init__(self, width: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        parts = round(image.numel() * self.conv1.out_channels / 12 / POSITIONS)
        if parts > 1 and in_parts(image):
            return self._by_rows(image, parts)
        x = self.conv1(image.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        x = gelu(self.norm1(x))
        out: Tensor = self.norm2(conv_nhwc(self.conv2, x))
        return out

    def _by_rows(self, image: Tensor, parts: int) -> Tensor:
        """The same for some rows at a time: what is made on the way is eight times as large as the image."""
        half = -(-image.shape[2] // 2)
        height = -(-half // 2)
        count = -(-height // parts)
        made = []
        for first in range(0, height, count):
            last = min(first + count, height)
            middle, padding = rows_behind(first, last, half)
            given, padding1 = rows_behind(*middle, image.shape[2])
            strip = F.pad(image[:, :, slice(*given)], (0, 0, *padding1))
            x = conv_rows(self.conv1, strip.contiguous(memory_format=torch.channels_last))
            x = gelu(self.norm1(x.permute(0, 2, 3, 1)))
            x = conv_rows(self.conv2, F.pad(x, (0, 0, 0, 0, *padding)).permute(0, 3, 1, 2))
            made.append(self.norm2(x.permute(0, 2, 3, 1)))
        return torch.cat(made, 1)


def conv_as_product(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3 × 3 convolution with stride 2 on (B, H, W, C) as one matrix product over its patches."""
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, 3, 2).unfold(2, 3, 2)  # (B, ⌈H/2⌉, ⌈W/2⌉, C, 3, 3)
    return linear(patches.flatten(3), conv.weight.flatten(1), conv.bias)


class Downsample(nn.Module):
    """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C'): a strided convolution and a LayerNorm."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out_width, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        # A convolution rearranges its weights, in every call on a processor. That costs more than to
        # rearrange the features, where these are the fewer.
        positions = x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
        eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
        few = eager and positions <= self.conv.out_channels
        out: Tensor = self.norm((conv_as_product if few else conv_nhwc)(self.conv, x))
        return out


def untouched(module: nn.Module) -> bool:
    """Whether this is a Linear of ours that nobody has hooks on or put something around (LoRA, say)."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) is Linear and not any(hooks) and "forward" not in vars(module)


class MLP(nn.Module):
    """Linear, GELU, Linear over the channels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and untouched(self.fc1) and untouched(self.fc2):
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        out: Tensor = self.fc2(gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Skip a residual branch for some images of a batch while training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Block(nn.Module):
    """``x + SS2D(LN(x))``, then ``x + MLP(LN(x))``."""

    def __init__(
        self, width: int, routes: Sequence[Route], *, gated: bool, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.ss2d = SS2D(width, routes, gated=gated)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(mlp_ratio * width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if in_parts(x) and not self.training:
            inside = by_positions(lambda x: self.ss2d.in_proj(self.norm1(x)), x, scratch="inside")
            return by_positions(self._rest, x, self.ss2d.mix_in_place(inside))
        x = x + self.drop_path(self.ss2d(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _rest(self, x: Tensor, inside: Tensor) -> Tensor:
        """What comes after the scan, for any positions (…, C) and (…, D)."""
        x = plus(self.ss2d.out_proj(self.ss2d.norm(inside)), x)
        return plus(self.mlp(self.norm2(x)), x)
