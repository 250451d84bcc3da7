"""LoDa: a frozen ViT and a frozen ResNet joined by injectors that are trained (LoDa, CVPR 2024, Figure 2)."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .learner import CosineHead, Extractor, Injector
from .resnet import ResNet
from .sizes import Sizes
from .vit import VisionTransformer

STAGES = 4  # the ViT's blocks, in equal parts, as those of other networks


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
        checkpointing: keep only the tokens before each block for the backward pass, which computes the rest
            again: more time, less memory, the same gradients. Set it to True or False at any time.
        arch, overrides: the registered name and the changes it was built with, set by ``create_model``.
    """

    arch: str = "custom"
    overrides: dict[str, Any]
    checkpointing: bool = False

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

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels; no others are taken."""
        return self.sizes.image_size, self.sizes.image_size

    def distortion_tokens(self, images: Tensor) -> Tensor:
        """F_msd, the multi-scale distortion tokens: (B, 3, S, S) → (B, 4·grid², latent)."""
        out: Tensor = self.extractor(self.cnn(images))
        return out

    def _walk(self, images: Tensor, keep: Collection[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Return the class feature (B, width), and tokens (B, 1 + patches, width) after blocks to keep."""
        self._check_images(images)
        distortion = self.distortion_tokens(images)
        z = self.vit.embed(images)  # (B, 1 + patches, width)
        kept = []
        for i in range(len(self.injectors)):
            if self.checkpointing and torch.is_grad_enabled():
                # Nothing is drawn here, but an adapter inside a block may draw its dropout.
                z = checkpoint(
                    self._step, i, z, distortion, use_reentrant=False, preserve_rng_state=self.training
                )
            else:
                z = self._step(i, z, distortion)
            if i in keep:
                kept.append(z)
        return self.vit.norm(z)[:, 0], kept

    def _step(self, i: int, z: Tensor, distortion: Tensor) -> Tensor:
        """Injector i, then block i of the ViT: (B, 1 + patches, width) → the same shape."""
        z = z + self.scale[i] * self.injectors[i](z, distortion)  # equation 3
        out: Tensor = self.vit.blocks[i](z)
        return out

    def class_feature(self, images: Tensor) -> Tensor:
        """Return the class token behind the last LayerNorm: (B, 3, S, S) → (B, width)."""
        return self._walk(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) → raw quality (B, 1)."""
        out: Tensor = self.head(self.dropout(self.class_feature(images)))
        return out

    def forward_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return raw quality (B, 1), and the ViT's patch tokens after each quarter of its blocks.

        They are (B, width, S/patch, S/patch) each, for normalised images (B, 3, S, S).
        """
        feature, kept = self._walk(images, keep=self._last_blocks)
        side = self.sizes.image_size // self.sizes.patch_size
        maps = [rearrange(z[:, 1:], "b (h w) c -> b c h w", h=side) for z in kept]
        return self.head(self.dropout(feature)), maps

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
