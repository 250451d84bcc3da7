"""LoDa: a frozen ViT and a frozen ResNet joined by injectors that are trained (LoDa, CVPR 2024, Figure 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .learner import CosineHead, Extractor, Injector
from .resnet import ResNet
from .sizes import Sizes
from .vit import VisionTransformer

STAGES = 4  # the ViT's blocks, in equal parts, as those of other networks
Prompts: TypeAlias = Sequence[Callable[[Tensor], Tensor]] | nn.ModuleList
"""One function a stage, see :meth:`LoDa.forward`."""


class LoDa(nn.Module):
    """The network: normalised images (B, 3, S, S) to raw quality (B, 1) in [-1, 1], S = ``image_size``.

    Images are normalised with ImageNet's mean and standard deviation by the caller, for both towers alike.
    ``vit`` and ``cnn`` are frozen: their parameters do not require gradients. All else is trained.

    Args:
        sizes: every size; by default those of the paper.

    Attributes:
        vit, cnn: the frozen towers, with timm's tensor names inside.
        extractor, injectors, scale, head: the trained parts; ``scale`` is (depth, width), one s_i a row.
        feature_info: ``num_chs``, ``reduction`` and ``module`` of each of :meth:`forward_features`.
        out_widths: channels of each stage's tokens, for adapters.
        lora_targets: names of the Linears that low-rank updates act on: those of the ViT's blocks.
        checkpointing: keep only the tokens before each block for the backward pass, which computes the rest
            again: more time, less memory, the same gradients. Set it to True or False at any time.
        arch, overrides: the registered name and the changes it was built with, set by ``create_model``.
    """

    arch: str = "custom"
    overrides: dict[str, Any]
    checkpointing: bool = False
    lora_targets = r"vit\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.overrides = {}
        self.sizes = sizes = Sizes() if sizes is None else sizes
        self.vit = VisionTransformer(
            image_size=sizes.image_size, patch_size=sizes.patch_size, width=sizes.width, depth=sizes.depth,
            heads=sizes.heads, mlp_ratio=sizes.mlp_ratio,
        )  # fmt: skip
        self.cnn = ResNet(stem=sizes.cnn_stem, channels=sizes.cnn_channels, depths=sizes.cnn_depths)
        self.vit.requires_grad_(False)
        self.cnn.requires_grad_(False)
        self.extractor = Extractor(self.cnn.out_channels, sizes.latent, sizes.grid)
        self.injectors = nn.ModuleList(
            Injector(sizes.width, sizes.latent, sizes.cross_heads) for _ in range(sizes.depth)
        )
        self.scale = nn.Parameter(torch.empty(sizes.depth, sizes.width))
        self.dropout = nn.Dropout(sizes.dropout)
        self.head = CosineHead(sizes.width)
        nn.init.trunc_normal_(self.scale, std=0.02)
        stages = min(STAGES, sizes.depth)
        self._last_blocks = [math.ceil(s * sizes.depth / stages) - 1 for s in range(1, stages + 1)]
        self.feature_info = [
            {"num_chs": sizes.width, "reduction": sizes.patch_size, "module": f"vit.blocks.{last}"}
            for last in self._last_blocks
        ]
        self.out_widths = (sizes.width,) * stages
        self._side = sizes.image_size // sizes.patch_size  # of the grid of patches

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels; no others are taken."""
        return self.sizes.image_size, self.sizes.image_size

    def distortion_tokens(self, images: Tensor) -> Tensor:
        """F_msd, the multi-scale distortion tokens: (B, 3, S, S) → (B, 4·grid², latent)."""
        out: Tensor = self.extractor(self.cnn(images))
        return out

    def _walk(
        self, images: Tensor | Sequence[Tensor], prompts: Prompts | None = None, start: int | None = None
    ) -> list[Tensor]:
        """Return the ViT's tokens (B, 1 + patches, width) after each stage and its prompt, from ``start`` on.

        After the last prompt there is the class token alone, (B, 1, width).
        """
        if start is None:
            assert isinstance(images, Tensor)
            z, distortion = self._begin(images)
            walked, first = [], 0
        else:
            z, *kept = images
            z = self._prompted(start, z, prompts)
            # Behind the last stage nothing reads the distortion tokens.
            distortion = kept[0] if kept else z
            walked, first = [z], start + 1
        for s in range(first, len(self._last_blocks)):
            z = self._prompted(s, self._stage(s, z, distortion), prompts)
            walked.append(z)
        return walked

    def _begin(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens before the first injector (B, 1 + patches, width), and F_msd."""
        self._check_images(images)
        return self.vit.embed(images), self.distortion_tokens(images)

    def _stage(self, s: int, z: Tensor, distortion: Tensor) -> Tensor:
        """Compute the blocks of a stage: (B, 1 + patches, width) → the same shape."""
        first = self._last_blocks[s - 1] + 1 if s else 0
        for i in range(first, self._last_blocks[s] + 1):
            if self.checkpointing and torch.is_grad_enabled():
                # Nothing is drawn here, but an adapter inside a block may draw its dropout.
                z = checkpoint(
                    self._step, i, z, distortion, use_reentrant=False, preserve_rng_state=self.training
                )
            else:
                z = self._step(i, z, distortion)
        return z

    def _step(self, i: int, z: Tensor, distortion: Tensor) -> Tensor:
        """Injector i, then block i of the ViT: (B, 1 + patches, width) → the same shape."""
        z = z + self.scale[i] * self.injectors[i](z, distortion)  # equation 3
        out: Tensor = self.vit.blocks[i](z)
        return out

    def _prompted(self, s: int, z: Tensor, prompts: Prompts | None) -> Tensor:
        """Apply the prompt of a stage to its patch tokens; that of the last to the class token."""
        if prompts is None:
            return z
        if s == len(self._last_blocks) - 1:
            return prompts[s](z[:, None, :1])[:, 0]  # (B, 1, 1, width) → (B, 1, width)
        patches = rearrange(z[:, 1:], "b (h w) c -> b h w c", h=self._side)
        return torch.cat([z[:, :1], rearrange(prompts[s](patches), "b h w c -> b (h w) c")], dim=1)

    def _read(self, z: Tensor) -> Tensor:
        """Return c, the class token behind the last LayerNorm: (B, 1 or more, width) → (B, width)."""
        out: Tensor = self.vit.norm(z[:, 0])
        return out

    def class_feature(self, images: Tensor) -> Tensor:
        """Return the class token behind the last LayerNorm: (B, 3, S, S) → (B, width)."""
        return self._read(self._walk(images)[-1])

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        prompts: Prompts | None = None,
        head: nn.Module | None = None,
        *,
        start: int | None = None,
    ) -> Tensor:
        """Normalised images (B, 3, S, S) → raw quality (B, 1).

        Args:
            images: as above; with ``start``, what :meth:`forward_until` returned for that stage.
            prompts: of an adapter, one function a stage: (B, h, w, width) → the same shape. They are applied
                to the patch tokens, after the last stage to the class token, (B, 1, 1, width).
            head: in place of the network's own: (B, width) → (B, 1).
            start: zero-based index of the stage whose prompt comes first.
        """
        head = self.head if head is None else head
        feature = self._read(self._walk(images, prompts, start)[-1])
        out: Tensor = head(self.dropout(feature))
        return out

    def forward_until(self, images: Tensor, stage: int) -> tuple[Tensor, ...]:
        """Compute what lies before the prompt of a stage (zero-based index), for :meth:`forward`.

        Returns:
            The tokens (B, 1 + patches, width) and F_msd (B, 4·grid², latent); for the last stage the class
            token alone, (B, 1, width).
        """
        z, distortion = self._begin(images)
        for s in range(stage + 1):
            z = self._stage(s, z, distortion)
        return (z[:, :1],) if stage == len(self._last_blocks) - 1 else (z, distortion)

    def forward_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return raw quality (B, 1), and the ViT's patch tokens after each quarter of its blocks.

        They are (B, width, S/patch, S/patch) each, for normalised images (B, 3, S, S).
        """
        walked = self._walk(images)
        maps = [rearrange(z[:, 1:], "b (h w) c -> b c h w", h=self._side) for z in walked]
        return self.head(self.dropout(self._read(walked[-1]))), maps

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that an optimiser should not decay: none, as in the published training."""
        return set()

    def multiply_adds(self, images: Tensor) -> int:
        """Return the multiply-adds of QKᵀ and of the mean of V in the cross-attentions."""
        queries, distortion = self.vit.pos_embed.shape[1], len(self.extractor.convs) * self.sizes.grid**2
        return images.shape[0] * self.sizes.depth * 2 * queries * distortion * self.sizes.latent

    def train(self, mode: bool = True) -> LoDa:
        """Set training mode, as ``nn.Module.train``; ``cnn_bn="frozen"`` keeps the CNN in evaluation mode."""
        super().train(mode)
        if self.sizes.cnn_bn == "frozen":
            self.cnn.eval()
        return self

    def _check_images(self, images: Tensor) -> None:
        height, width = self.input_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise ValueError(
                f"images must be (B, 3, {height}, {width}), got {tuple(images.shape)}; crop or resize them, "
                "or build the network with another image_size"
            )


def is_stored(name: str) -> bool:
    """Return whether a checkpoint stores this tensor.

    It stores all that is trained, and the CNN's batch-norm statistics. The rest is in the base models.
    """
    if name.startswith("cnn."):
        return name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))
    return not name.startswith("vit.")
