"""LoDa: a frozen ViT and a frozen ResNet joined by injectors that are trained (LoDa, CVPR 2024, Figure 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .learner import CosineHead, Extractor, Injector
from .resnet import ResNet
from .sizes import Sizes
from .vit import VisionTransformer


class LoDa(nn.Module):
    """The network: normalised images (B, 3, S, S) to raw quality (B, 1) in [-1, 1], S = ``image_size``.

    Images are normalised with ImageNet's mean and standard deviation by the caller, for both towers alike.
    ``vit`` and ``cnn`` are frozen: their parameters do not require gradients. All else is trained.

    Args:
        sizes: every size; by default those of the paper.

    Attributes:
        vit, cnn: the frozen towers, with timm's tensor names inside.
        extractor, injectors, scale, head: the trained parts; ``scale`` is (depth, width), one s_i a row.
    """

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
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

    def distortion_tokens(self, images: Tensor) -> Tensor:
        """F_msd, the multi-scale distortion tokens: (B, 3, S, S) → (B, 4·grid², latent)."""
        out: Tensor = self.extractor(self.cnn(images))
        return out

    def class_feature(self, images: Tensor) -> Tensor:
        """The class token behind the last LayerNorm: (B, 3, S, S) → (B, width)."""
        self._check_images(images)
        distortion = self.distortion_tokens(images)
        z = self.vit.embed(images)  # (B, 1 + patches, width)
        for scale, injector, block in zip(self.scale, self.injectors, self.vit.blocks, strict=True):
            z = z + scale * injector(z, distortion)  # equation 3
            z = block(z)
        out: Tensor = self.vit.norm(z)[:, 0]
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) → raw quality (B, 1)."""
        out: Tensor = self.head(self.dropout(self.class_feature(images)))
        return out

    def train(self, mode: bool = True) -> LoDa:
        """Set training mode, as ``nn.Module.train``; ``cnn_bn="frozen"`` keeps the CNN in evaluation mode."""
        super().train(mode)
        if self.sizes.cnn_bn == "frozen":
            self.cnn.eval()
        return self

    def _check_images(self, images: Tensor) -> None:
        side = self.sizes.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise ValueError(
                f"images must be (B, 3, {side}, {side}), got {tuple(images.shape)}; crop or resize them, or "
                "build the network with another image_size"
            )
