"""QMamba and LQMamba: a hierarchical Vision Mamba with a one-number head (QMamba, ICML 2025, Figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import CapabilityError
from ...ops import cross_scan_routes, local_scan_routes
from ...ops.hooks import hooked
from . import cpu
from .heads import MeanHead, StatisticsHead, statistics
from .layers import Block, Downsample, Stem

Prompts: TypeAlias = Sequence[Callable[[Tensor], Tensor]] | nn.ModuleList

MIN_SIDE = 32
HEADS = ("mean", "statistics")
# Far above any use: an untrusted config is refused before it costs time or memory.
MAX_WIDTH, MAX_BLOCKS, MAX_MLP_RATIO = 2**16, 1000, 64


class Stage(nn.Module):
    """Blocks at one resolution, then a downsampling (none after the last stage)."""

    def __init__(self, blocks: Sequence[Block], downsample: Downsample | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample if downsample is not None else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, H, W, C) before the downsample, and after it (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        features = self.blocks(x)
        return features, self.downsample(features)


class QMamba(nn.Module):
    """Normalised images (B, 3, H, W), any H, W ≥ 32, to raw quality (B, 1).

    The caller normalises the images with ImageNet's mean and standard deviation (a :class:`qmamba.Scorer`
    does it). The scale of raw quality depends on the weights.

    Args:
        widths: channels of the stages.
        depths: blocks of the stages.
        windows: ``None`` for QMamba's cross-scan, or the window side of each stage for LQMamba's local
            scan, which also gives every block a route gate.
        mlp_ratio: hidden width of the MLPs over their width.
        drop_path: maximum rate of stochastic depth; it grows linearly over the blocks from 0.
        head: ``"mean"``, the paper's, or ``"statistics"``: a linear function of the means and deviations of
            the features of all stages, see :class:`qmamba.models.qmamba.heads.StatisticsHead`.

    Attributes:
        out_widths: channels of each stage's output, after the downsample.
        feature_info: ``num_chs``, ``reduction`` and ``module`` of each stage, as in timm.
        lora_targets: names of the Linears that low-rank updates act on: those of the blocks.
        checkpointing: keep only the blocks' inputs for the backward, which recomputes the rest: more time,
            less memory, the same gradients. It can be set at any time.
        arch, overrides: the registered name and the keyword arguments given, set by ``create_model``.
    """

    arch: str = "custom"
    overrides: dict[str, Any]
    checkpointing: bool = False
    # Without the route gate's Linears: an operator reads their weights and never calls them.
    lora_targets = r".*\.(in_proj|x_proj|out_proj|fc1|fc2)"

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        windows: Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        head: str = "mean",
    ) -> None:
        super().__init__()
        _check_plan(widths, depths, windows)
        _check_rates(min(widths), mlp_ratio, drop_path)
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
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
        self.head = MeanHead(widths[-1]) if head == "mean" else StatisticsHead(widths)
        self.out_widths = (*widths[1:], widths[-1])
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**s, "module": f"stages.{s}.blocks"}
            for s, width in enumerate(widths)
        ]
        self.apply(_init_linear)

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        prompts: Prompts | None = None,
        head: nn.Module | None = None,
        *,
        start: int | None = None,
    ) -> Tensor:
        """Return the raw quality (B, 1) of normalised images (B, 3, H, W).

        Args:
            images: as above; with ``start``, what :meth:`forward_until` returned for that stage.
            prompts: one function a stage, applied to its output (B, H, W, C') after the downsample, which
                returns features of the same shape; C' are :attr:`out_widths`. See :mod:`qmamba.adapters`.
            head: in place of the network's own: (B, H, W, C) → (B, 1), or a :class:`StatisticsHead`.
            start: zero-based index of the stage whose prompt comes first. ``network(x, p, h)`` and
                ``network(network.forward_until(x, s), p, h, start=s)`` are the same where p does nothing
                before stage s.

        Raises:
            ValueError: images of another shape, or smaller than 32×32.
        """
        head = self.head if head is None else head
        if start is not None:
            x, *found = images
            with cpu.working(x):
                x = x if prompts is None else prompts[start](x)
                return self._finish(x, start + 1, found, prompts, head)
        assert isinstance(images, Tensor)
        _check_images(images)

        def raw(images: Tensor) -> tuple[Tensor]:
            return (self._finish(self._run(self.stem, images), 0, (), prompts, head),)

        return cpu.in_batches(raw, images, self, prompts, head)[0]

    def forward_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return raw quality (B, 1), and each stage's features before its downsample.

        They are (B, C, ⌈H/r⌉, ⌈W/r⌉), r = 4, 8, 16, 32, for images (B, 3, H, W).

        Raises:
            ValueError: as :meth:`forward`.
        """
        _check_images(images)
        with cpu.working(images):
            features = self._features(images, None)
            raw: Tensor = self.head(self._input_of(self.head, features))
        return raw, [rearrange(x, "b h w c -> b c h w") for x in features]

    def forward_positions(
        self, images: Tensor, prompts: Prompts | None = None, head: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what :meth:`forward` does, (B, 1), bit for bit, and the values that it is the mean of.

        These are (B, h, w): one for each position of the last stage, h and w being ⌈H/32⌉ and ⌈W/32⌉. The
        mean head is linear behind its LayerNorm; see :meth:`StatisticsHead.positions` for the other.

        Raises:
            ValueError: as :meth:`forward`.
            CapabilityError: the head does not give values of positions.
        """
        _check_images(images)
        head = self.head if head is None else head
        if not isinstance(head, (MeanHead, StatisticsHead)):
            raise CapabilityError(f"a head of class {type(head).__name__} does not give values of positions")

        def raw_and_positions(images: Tensor) -> tuple[Tensor, Tensor]:
            features = self._features(images, prompts)
            given = self._input_of(head, features)
            positions = (given,) if isinstance(head, MeanHead) else (features, given)
            return head(given), head.positions(*positions)

        raw, positions = cpu.in_batches(raw_and_positions, images, self, prompts, head)
        return raw, positions

    def forward_until(self, images: Tensor, stage: int) -> tuple[Tensor, ...]:
        """Compute what lies before the prompt of a stage (zero-based index), for :meth:`forward`.

        Returns:
            The output (B, H, W, C') of that stage after its downsample. With ``head="statistics"`` also what
            this head reads of the stages so far, (B, 2, C) each.
        """
        _check_images(images)
        found: list[Tensor] = []
        with cpu.working(images):
            x = self._run(self.stem, images)
            for s in range(stage + 1):
                features, x = self._stage(s, x, None)
                if self._reads(self.head, s):
                    found.append(self._run(statistics, features))
        return (x, *found)

    def read_statistics(self, mean: Tensor, scale: Tensor, weight: Tensor, bias: float) -> None:
        """Write a linear function of the stages' statistics into the head, see :class:`StatisticsHead`.

        Args:
            mean, scale, weight: (2 · ΣC,), stage by stage those of the means and then of the deviations.
            bias: raw quality where the statistics are ``mean``.

        Raises:
            CapabilityError: the head reads something else.
        """
        if not isinstance(self.head, StatisticsHead):
            raise CapabilityError(
                f"a head of class {type(self.head).__name__} reads no statistics; build the network with "
                "head='statistics'"
            )
        self.head.write(mean, scale, weight, bias)

    def _stage(self, s: int, x: Tensor, prompts: Prompts | None) -> tuple[Tensor, Tensor]:
        """Return a stage's features (B, H, W, C) before its downsample, and after it and the prompt."""
        stage = self.stages[s]
        if type(stage) is not Stage or type(stage.blocks) is not nn.Sequential or hooked(stage, stage.blocks):
            features, x = stage(x)
        else:
            for block in stage.blocks:
                x = self._run(block, x)
            features, x = x, cpu.run(stage.downsample, x)
        return features, x if prompts is None else prompts[s](x)

    def _finish(
        self, x: Tensor, first: int, found: Sequence[Tensor], prompts: Prompts | None, head: nn.Module
    ) -> Tensor:
        """Return raw quality (B, 1) from the input of stage ``first`` and the statistics of those before."""
        found = list(found)
        for s in range(first, len(self.stages)):
            features, x = self._stage(s, x, prompts)
            if self._reads(head, s):
                found.append(self._run(statistics, features))
        raw: Tensor = head([*found, self._run(statistics, x)] if isinstance(head, StatisticsHead) else x)
        return raw

    def _reads(self, head: nn.Module, s: int) -> bool:
        """Return whether a head reads a stage before its downsample; the last is read after its prompt."""
        return isinstance(head, StatisticsHead) and s < len(self.stages) - 1

    def _features(self, images: Tensor, prompts: Prompts | None) -> list[Tensor]:
        """Return what heads read: (B, H, W, C) of each stage before its downsample, of the last after it."""
        walked = []
        x = self._run(self.stem, images)
        for s in range(len(self.stages)):
            features, x = self._stage(s, x, prompts)
            walked.append(features)
        return [*walked[:-1], x]

    def _input_of(self, head: nn.Module, features: Sequence[Tensor]) -> Any:
        """Return the argument of a head: the last features, or the statistics of all."""
        statistical = isinstance(head, StatisticsHead)
        return [self._run(statistics, x) for x in features] if statistical else features[-1]

    def _run(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return ``part(x)``; with activation checkpointing, only its input is kept for the backward."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return cpu.run(part, x)
        # Stochastic depth draws again what it drew before; without it nothing is drawn.
        return checkpoint(cpu.run, part, x, use_reentrant=False, preserve_rng_state=self.training)  # type: ignore[no-any-return]

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay: norms, biases, A_log and D."""
        return undecayed(self)


def undecayed(module: nn.Module) -> set[str]:
    """Return the names of a module's norms, biases, A_log and D, which should not decay."""
    names = {name for name, p in module.named_parameters() if p.ndim <= 1}
    return names | {n for n, _ in module.named_parameters() if n.endswith((".A_log", ".D", ".dt_bias"))}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_plan(widths: Sequence[int], depths: Sequence[int], windows: Sequence[int] | None) -> None:
    given = [widths, depths] if windows is None else [widths, depths, windows]
    if any(isinstance(v, str) or not isinstance(v, Sequence) for v in given):
        raise ValueError(
            "widths, depths and windows must be lists with one entry per stage, "
            f"got {widths}, {depths}, {windows}"
        )
    if len(widths) != len(depths) or (windows is not None and len(windows) != len(widths)) or not widths:
        raise ValueError(
            f"widths, depths and windows must have one entry per stage, got {widths}, {depths}, {windows}"
        )
    numbers = [*widths, *depths, *(windows or ())]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise ValueError(
            f"widths, depths and windows must be positive integers, got {widths}, {depths}, {windows}"
        )
    if any(width % 4 for width in widths):
        raise ValueError(f"widths must be multiples of 4, for the stem and the route gate, got {widths}")
    if max(widths) > MAX_WIDTH or sum(depths) > MAX_BLOCKS:
        raise ValueError(
            f"depths must add up to at most {MAX_BLOCKS}, and widths be at most {MAX_WIDTH}, "
            f"got {depths} and {widths}"
        )


def _check_rates(width: int, mlp_ratio: float, drop_path: float) -> None:
    for name, value in (("mlp_ratio", mlp_ratio), ("drop_path", drop_path)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} must be a number, got {value!r}")
    if not 0.0 <= drop_path < 1.0:
        raise ValueError(f"drop_path must be in [0, 1), got {drop_path}")
    if not 1 / width <= mlp_ratio <= MAX_MLP_RATIO:
        raise ValueError(f"mlp_ratio must be between 1 / width and {MAX_MLP_RATIO}, got {mlp_ratio}")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
    if min(images.shape[2:]) < MIN_SIDE:
        raise ValueError(f"images must have sides of at least {MIN_SIDE}, got {tuple(images.shape[2:])}")
