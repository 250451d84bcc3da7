"""The same network on a CPU, in less time and memory.

:func:`run` computes what ``part(x)`` does, for a stem, a block, a downsampling or the statistics of features.
Without gradients it works on some rows or positions at a time, so that intermediate results stay in a cache
and large images need little memory, and in place where a tensor is used nowhere else. :func:`in_batches`
gives the network a few images at a time. Both take the plain path where a part has hooks, parametrizations or
replaced modules, and under tracers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import linear, mlp
from ...ops.backend import watched
from ...ops.hooks import any_hooked, untouched
from ...ops.scratch import Scratch, workspace
from .heads import EPS, statistics
from .layers import MLP, Block, Downsample, DropPath, Stem
from .ss2d import SS2D, Linear, RouteGate

PIXELS = 4 * 224 * 224  # of the images that go through the network together
ELEMENTS = 2**18  # of the features that go through a position-wise part together
SCANNED = 2**20  # elements that are convolved or scanned together in place

KINDS = frozenset(
    (Stem, Block, Downsample, SS2D, RouteGate, MLP, DropPath, Linear, nn.Linear, nn.LayerNorm, nn.Conv2d)
)


def bounded(x: Tensor) -> bool:
    """Return whether x may be worked on in parts: on a CPU, without gradients and tracers."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not watched()


def working(x: Tensor) -> AbstractContextManager[None]:
    """Return a context that keeps large buffers from one part to the next, where x is worked on in parts."""
    return workspace() if bounded(x) else nullcontext()


def in_batches(
    function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, *parts: object
) -> tuple[Tensor, ...]:
    """Return ``function(images)``, computed for a few images at a time where that is allowed.

    The features of a whole batch would fit no cache, and fresh memory for them costs more than a small batch.

    Args:
        function: of images (b, 3, H, W), to tensors whose first dimension is b.
        images: (B, 3, H, W).
        parts: what the function calls; a hook on a module among them sees whole batches.
    """
    if not bounded(images):
        return function(images)
    with workspace():  # the same buffers for all
        at_once = max(1, PIXELS // (images.shape[2] * images.shape[3]))
        count = max(1, -(-images.shape[0] // at_once))
        if count == 1 or any_hooked(*parts):
            return function(images)
        found = [function(few) for few in torch.tensor_split(images, count)]
        return tuple(torch.cat(tensors) for tensors in zip(*found, strict=True))


def run(part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``part(x)``."""
    if x.device.type != "cpu" or watched():
        return part(x)
    if part is statistics:
        return part(x) if torch.is_grad_enabled() else _statistics(x)
    if not isinstance(part, (Stem, Block, Downsample)) or not untouched(part, KINDS):
        return part(x)
    gradients = torch.is_grad_enabled()
    if isinstance(part, Downsample) and _is_strided(part.conv):
        return _downsample(part, x)
    if isinstance(part, Block) and gradients:
        return _block_with_gradients(part, x)
    if isinstance(part, Block) and not part.drop_path.training and _is_depthwise(part.ss2d.conv):
        return _block(part, x)
    if isinstance(part, Stem) and not gradients and _is_strided(part.conv1) and _is_strided(part.conv2):
        return _stem(part, x)
    out: Tensor = part(x)
    return out


# The parts


def _stem(stem: Stem, image: Tensor) -> Tensor:
    """Compute some rows at a time: intermediate results are eight times as large as the image."""
    parts = round(image.numel() * stem.conv1.out_channels / 12 / ELEMENTS)
    if parts <= 1:
        return stem(image)  # type: ignore[no-any-return]
    half = -(-image.shape[2] // 2)
    height = -(-half // 2)
    count = -(-height // parts)
    strips = []
    for first in range(0, height, count):
        last = min(first + count, height)
        middle, padding2 = _rows_behind(first, last, half)
        rows, padding1 = _rows_behind(*middle, image.shape[2])
        x = F.pad(image[:, :, slice(*rows)], (0, 0, *padding1))  # (B, 3, h, W)
        x = _conv_rows(stem.conv1, x.contiguous(memory_format=torch.channels_last))
        x = _gelu_(stem.norm1(x.permute(0, 2, 3, 1)))
        x = _conv_rows(stem.conv2, F.pad(x, (0, 0, 0, 0, *padding2)).permute(0, 3, 1, 2))
        strips.append(stem.norm2(x.permute(0, 2, 3, 1)))
    return torch.cat(strips, 1)


def _block(block: Block, x: Tensor) -> Tensor:
    """Compute a block without gradients: all but convolution and scan act on every position by itself."""

    def before(x: Tensor) -> Tensor:
        y: Tensor = block.ss2d.in_proj(block.norm1(x))
        return y

    def after(x: Tensor, y: Tensor) -> Tensor:
        x = _plus(block.ss2d.out_proj(block.ss2d.norm(y)), x)
        return _plus(block.mlp.fc2(_gelu_(block.mlp.fc1(block.norm2(x)))), x)

    inside = _by_positions(before, x, scratch="inside")
    return _by_positions(after, x, _mix_in_place(block.ss2d, inside))


def _block_with_gradients(block: Block, x: Tensor) -> Tensor:
    """Compute a block with an MLP that keeps half as much for its backward."""
    x = x + block.drop_path(block.ss2d(block.norm1(x)))
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    branch = mlp(block.norm2(x), fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    out: Tensor = x + block.drop_path(branch)
    return out


def _downsample(downsample: Downsample, x: Tensor) -> Tensor:
    """Compute the convolution as a matrix product over patches where that is quicker.

    On a CPU a convolution rearranges its weights in every call, which costs more than rearranging the
    features where these have fewer elements.
    """
    conv = downsample.conv
    positions = x.shape[0] * -(-x.shape[1] // 2) * -(-x.shape[2] // 2)
    if positions > conv.out_channels:
        return downsample(x)  # type: ignore[no-any-return]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, 3, 2).unfold(2, 3, 2)  # (B, ⌈H/2⌉, ⌈W/2⌉, C, 3, 3)
    out: Tensor = downsample.norm(linear(patches.flatten(3), conv.weight.flatten(1), conv.bias))
    return out


def _statistics(x: Tensor) -> Tensor:
    """Compute :func:`statistics` with sums over some rows at a time, the same number for any batch."""
    rows = max(1, ELEMENTS // (x.shape[2] * x.shape[3]))
    if rows >= x.shape[1]:
        return statistics(x)
    dtype, count = torch.promote_types(x.dtype, torch.float32), x.shape[1] * x.shape[2]
    mean, variance = (x.new_zeros(x.shape[0], x.shape[3], dtype=dtype) for _ in range(2))
    for part in torch.split(x, rows, dim=1):
        mean += part.to(dtype).sum(dim=(1, 2)) / count
    for part in torch.split(x, rows, dim=1):
        variance += (part.to(dtype) - mean[:, None, None]).square_().sum(dim=(1, 2)) / count
    return torch.stack([mean, (variance + EPS).sqrt()], dim=1)


# Steps of the parts


def _mix_in_place(ss2d: SS2D, x: Tensor) -> Tensor:
    """Convolve and scan (B, H, W, D) a few images at a time, and overwrite it.

    The result lies in memory that is reused: it is valid until the next call in this thread.
    """
    out = Scratch(x)("mixed", x.shape)
    images = max(1, SCANNED // x[0].numel())
    for few, result in zip(torch.split(x, images), torch.split(out, images), strict=True):
        _conv_in_place(ss2d.conv, few)
        ss2d.scan(few, out=result)
    return out


def _conv_in_place(conv: nn.Conv2d, x: Tensor) -> None:
    """Depth-wise convolution and SiLU of (B, H, W, D), some rows at a time."""
    height = x.shape[1]
    count = max(1, SCANNED // x[:, 0].numel())
    above = torch.zeros_like(x[:, :1])
    for top in range(0, height, count):
        rows = x[:, top : top + count]
        below = x[:, top + count : top + count + 1] if top + count < height else torch.zeros_like(above)
        strip = torch.cat([above, rows, below], 1).permute(0, 3, 1, 2)
        above = rows[:, -1:].clone()
        y = F.conv2d(strip, conv.weight, conv.bias, padding=(0, 1), groups=conv.groups)
        rows.copy_(F.silu(y, inplace=True).permute(0, 2, 3, 1))


def _by_positions(function: Callable[..., Tensor], *features: Tensor, scratch: str | None = None) -> Tensor:
    """Return a function of features (…, C) that acts on every position by itself, some at a time.

    With ``scratch`` the result may lie in memory of that name that is used again.
    """
    x = features[0]
    total = x[..., 0].numel()
    parts_wanted = round(total * x.shape[-1] / ELEMENTS)
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


def _rows_behind(first: int, last: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return which rows of ``height`` a 3 × 3 convolution with stride 2 makes rows first … last - 1 from.

    Also return how many rows of zeros pad them above and below.
    """
    top, bottom = 2 * first - 1, 2 * last
    start, stop = max(top, 0), min(bottom, height)
    return (start, stop), (start - top, bottom - stop)


def _conv_rows(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 3 × 3 convolution with stride 2 of (B, C, H, W) that has all the rows it needs."""
    return F.conv2d(x, conv.weight, conv.bias, stride=2, padding=(0, 1))


def _gelu_(x: Tensor) -> Tensor:
    out: Tensor = torch.ops.aten.gelu_(x)
    return out


def _plus(branch: Tensor, x: Tensor) -> Tensor:
    """Return a residual sum in the memory of its branch, unless autocast has made that narrower."""
    return branch.add_(x) if branch.dtype == x.dtype else branch + x


def _is_strided(conv: nn.Conv2d) -> bool:
    return _is_3x3(conv) and conv.stride == (2, 2) and conv.groups == 1


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return _is_3x3(conv) and conv.stride == (1, 1) and conv.groups == conv.in_channels == conv.out_channels


def _is_3x3(conv: nn.Conv2d) -> bool:
    square, padded, dense = conv.kernel_size == (3, 3), conv.padding == (1, 1), conv.dilation == (1, 1)
    return square and padded and dense and conv.padding_mode == "zeros"
