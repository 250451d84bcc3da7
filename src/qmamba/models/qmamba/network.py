"""QMamba and LQMamba: a hierarchical Vision Mamba with a one-number head (QMamba, ICML 2025, Figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...ops import cross_scan_routes, local_scan_routes
from ...ops.scratch import workspace
from .layers import Block, Downsample, Stem, in_parts

Prompts: TypeAlias = Sequence[Callable[[Tensor], Tensor]] | nn.ModuleList

MIN_SIDE = 32
AT_ONCE = 4 * 224 * 224  # pixels that go through the network together on a processor
# Far above any use: a stranger's config must not keep the machine busy before it is refused.
MAX_WIDTH, MAX_BLOCKS, MAX_MLP_RATIO = 2**16, 1000, 64


class Stage(nn.Module):
    """Blocks at one resolution, then a downsampling (none after the last stage)."""

    def __init__(self, blocks: Sequence[Block], downsample: Downsample | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample if downsample is not None else nn.Identity()


class Head(nn.Module):
    """LayerNorm, mean over all positions, Linear to one number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, 1)."""
        out: Tensor = self.fc(self.norm(x).mean(dim=(1, 2)))
        return out

    def positions(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W): what each position says; its mean is what :meth:`forward` gives."""
        out: Tensor = self.fc(self.norm(x))[..., 0]
        return out


class QMamba(nn.Module):
    """The network: normalised images (B, 3, H, W), any H, W ≥ 32, to raw quality (B, 1).

    Images are normalised with ImageNet's mean and standard deviation by the caller (a
    :class:`qmamba.Scorer` does it). What the raw number means is a matter of the weights.

    Args:
        widths: channels of the stages.
        depths: blocks of the stages.
        windows: ``None`` for QMamba's cross-scan, or the window side of each stage for LQMamba's local
            scan, which also gives every block a route gate.
        mlp_ratio: hidden width of the MLPs over their width.
        drop_path: highest rate of stochastic depth; grows linearly over the blocks from 0.

    Attributes:
        out_widths: per stage the channels of its output, after the downsample.
        feature_info: per stage ``num_chs``, ``reduction`` and ``module``, as timm's users know it.
        checkpointing: keep only the blocks' inputs for the backward, which computes the rest again: more
            time, less memory, the same gradients. Set it to True or False at any time.
        arch, overrides: the registered name and the changes it was built with, set by ``create_model``.
    """

    arch: str = "custom"
    overrides: dict[str, Any]
    checkpointing: bool = False

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        windows: Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check_plan(widths, depths, windows)
        _check_rates(min(widths), mlp_ratio, drop_path)
        self.overrides = {}
        self.stem = Stem(widths[0])
        rates = torch.linspace(0.0, drop_path, sum(depths), device="cpu").tolist()
        stages = []
        for s, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            routes = cross_scan_routes() if windows is None else local_scan_routes(windows[s])
            blocks = [
                Block(width, routes, gated=windows is not None, mlp_ratio=mlp_ratio, drop_path=rates.pop(0))
                for _ in range(depth)
            ]
            last = s == len(widths) - 1
            stages.append(Stage(blocks, None if last else Downsample(width, widths[s + 1])))
        self.stages = nn.ModuleList(stages)
        self.head = Head(widths[-1])
        self.out_widths = (*widths[1:], widths[-1])
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**s, "module": f"stages.{s}.blocks"}
            for s, width in enumerate(widths)
        ]
        self.apply(_init_linear)

    def _walk(self, images: Tensor, prompts: Prompts | None = None) -> list[tuple[Tensor, Tensor]]:
        """Per stage its features (B, H, W, C) before the downsample, and after it and the stage's prompt."""
        _check_images(images)
        with _working_on(images):
            return self._stages(self._kept_small(self.stem, images), range(len(self.stages)), prompts)

    def _kept_small(self, part: nn.Module, x: Tensor) -> Tensor:
        """A part of the network, of which the backward finds the input only, if that is wanted."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            out: Tensor = part(x)
            return out
        # Stochastic depth draws again what it drew before; without it nothing is drawn.
        return checkpoint(part, x, use_reentrant=False, preserve_rng_state=self.training)  # type: ignore[no-any-return]

    def _stages(self, x: Tensor, which: range, prompts: Prompts | None) -> list[tuple[Tensor, Tensor]]:
        features = []
        for s in which:
            stage = self.stages[s]
            assert isinstance(stage, Stage)
            for block in stage.blocks:
                x = self._kept_small(block, x)
            before, x = x, stage.downsample(x)
            if prompts is not None:
                x = prompts[s](x)
            features.append((before, x))
        return features

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Features of each stage before its downsample: (B, C, H/r, W/r), r = 4, 8, 16, 32, rounded up."""
        return [before.permute(0, 3, 1, 2) for before, _ in self._walk(images)]

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """Output of each stage after its downsample: (B, C', H/r, W/r), r = 8, 16, 32, 32, rounded up."""
        return [after.permute(0, 3, 1, 2) for _, after in self._walk(images)]

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Raw quality (B, 1), and what :meth:`forward_features` gives, in one pass."""
        walked = self._walk(images)
        return self.head(walked[-1][1]), [before.permute(0, 3, 1, 2) for before, _ in walked]

    def forward(
        self, images: Tensor, prompts: Prompts | None = None, head: nn.Module | None = None
    ) -> Tensor:
        """Normalised images (B, 3, H, W) → raw quality (B, 1).

        Args:
            images: as above.
            prompts: one function a stage, applied to its output (B, H, W, C') after the downsample, which
                gives features of the same shape; C' are :attr:`out_widths`. See :mod:`qmamba.adapters`.
            head: in place of the network's own: (B, H, W, C) → (B, 1).
        """
        _check_images(images)
        head = self.head if head is None else head
        with _working_on(images):  # the same buffers for all parts
            raw = [head(self._walk(part, prompts)[-1][1]) for part in _parts(images)]
        return raw[0] if len(raw) == 1 else torch.cat(raw)

    def forward_positions(
        self, images: Tensor, prompts: Prompts | None = None, head: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` gives, (B, 1), bit for bit, and what it is the mean of.

        The head is linear behind the last LayerNorm: its number for the mean over all positions is the mean
        of its numbers for each. These are (B, h, w), with h and w the images' sides over the reduction of the
        last stage, rounded up.
        """
        _check_images(images)
        head = self.head if head is None else head
        assert isinstance(head, Head)
        raw, positions = [], []
        with _working_on(images):
            for part in _parts(images):
                x = self._walk(part, prompts)[-1][1]
                raw.append(head(x))
                positions.append(head.positions(x))
        return torch.cat(raw), torch.cat(positions)

    def forward_until(self, images: Tensor, stage: int) -> Tensor:
        """Output (B, H, W, C') of a stage after its downsample; the later ones are not computed."""
        _check_images(images)
        with _working_on(images):
            return self._stages(self.stem(images), range(stage + 1), None)[-1][1]

    def forward_after(
        self, features: Tensor, stage: int, prompts: Prompts | None = None, head: nn.Module | None = None
    ) -> Tensor:
        """The rest of :meth:`forward`, from what :meth:`forward_until` gave: that stage's prompt comes first.

        ``forward(x, p, h)`` and ``forward_after(forward_until(x, s), s, p, h)`` are the same where p does
        nothing before stage s: what lies before can then be computed once and kept.
        """
        x = features if prompts is None else prompts[stage](features)
        if stage + 1 < len(self.stages):
            with _working_on(x):
                x = self._stages(x, range(stage + 1, len(self.stages)), prompts)[-1][1]
        raw: Tensor = (self.head if head is None else head)(x)
        return raw

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that an optimiser should not decay: norms, biases, A_log and D."""
        return undecayed(self)


def undecayed(module: nn.Module) -> set[str]:
    """Names of a module's norms, biases, A_log and D, on which weight decay has no business."""
    names = {name for name, p in module.named_parameters() if p.ndim <= 1}
    return names | {n for n, _ in module.named_parameters() if n.endswith((".A_log", ".D", ".dt_bias"))}


def _working_on(x: Tensor) -> AbstractContextManager[None]:
    """Where large buffers are used again, if these features are worked on some at a time."""
    return workspace() if in_parts(x) else nullcontext()


def _parts(images: Tensor) -> Sequence[Tensor]:
    """A few images at a time on a processor when no gradient is wanted: the features of a whole batch would
    fit no cache, and fresh memory for them costs more than a small batch does."""
    if not in_parts(images):
        return (images,)
    at_once = max(1, AT_ONCE // (images.shape[2] * images.shape[3]))
    return torch.tensor_split(images, max(1, -(-images.shape[0] // at_once)))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_plan(widths: Sequence[int], depths: Sequence[int], windows: Sequence[int] | None) -> None:
    given = [widths, depths] if windows is None else [widths, depths, windows]
    if any(isinstance(v, str) or not isinstance(v, Sequence) for v in given):
        raise ValueError(
            f"widths, depths and windows are lists, one entry a stage: got {widths}, {depths}, {windows}"
        )
    if len(widths) != len(depths) or (windows is not None and len(windows) != len(widths)) or not widths:
        raise ValueError(
            f"widths, depths and windows need one entry a stage: got {widths}, {depths}, {windows}"
        )
    numbers = [*widths, *depths, *(windows or ())]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise ValueError(f"widths, depths and windows are positive integers: {widths}, {depths}, {windows}")
    if any(width % 4 for width in widths):
        raise ValueError(f"widths must be multiples of 4, for the stem and the route gate: got {widths}")
    if max(widths) > MAX_WIDTH or sum(depths) > MAX_BLOCKS:
        raise ValueError(
            f"no more than {MAX_BLOCKS} blocks, nor widths above {MAX_WIDTH}: got {widths}, {depths}"
        )


def _check_rates(width: int, mlp_ratio: float, drop_path: float) -> None:
    for name, value in (("mlp_ratio", mlp_ratio), ("drop_path", drop_path)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} is a number, not {value!r}")
    if not 0.0 <= drop_path < 1.0:
        raise ValueError(f"drop_path is a rate in [0, 1), not {drop_path}")
    if not 1 / width <= mlp_ratio <= MAX_MLP_RATIO:
        raise ValueError(f"mlp_ratio is between 1 / width and {MAX_MLP_RATIO}, not {mlp_ratio}")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"the network takes images of shape (B, 3, H, W), not {tuple(images.shape)}")
    if min(images.shape[2:]) < MIN_SIDE:
        raise ValueError(f"the network needs sides of at least {MIN_SIDE}, not {tuple(images.shape[2:])}")
