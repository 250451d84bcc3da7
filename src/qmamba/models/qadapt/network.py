"""Q-Adapt: a frozen large multi-modal model, with LoRA, and a visual prompt that follows the instruction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..capabilities import IMAGE
from ..dialogue import Dialogue
from .generator import Generator
from .lmm import (
    ADAPTER,
    add_lora,
    build_lmm,
    check_packages,
    constants_kept,
    lora_layers,
    make_constants_real,
    set_checkpointing,
    visual_features,
)
from .prompter import Prompter
from .sizes import Sizes

PROJECTOR = "lmm.model.multi_modal_projector."


class QAdapt(nn.Module):
    """The network: images, and text around them, to logits of the next token.

    Text comes as tokens (B, L) int64, in which :data:`qmamba.models.capabilities.IMAGE` stands for a visual
    token, ``image_tokens`` of them for an image. Images are (B, 3, S, S), normalised.

    In stage 2 the visual features V (B, N, D) become V' = V + scale · P before they are projected into
    language space, where P = Prompter(V, Generator(V, instruction)); of several instructions to an image
    (its human turns), the mean of their P counts.

    Args:
        sizes: every size.

    Attributes:
        lmm: the frozen base, a ``LlavaForConditionalGeneration``, with LoRA inside and its own projector.
        generator, prompter: of stage 2; absent in stage 1.
        dialogue: the template of its conversations.
        arch, overrides: the registered name and the changes it was built with, set by ``create_model``.

    Raises:
        BackendError: transformers or peft is not installed.
    """

    arch: str = "custom"
    overrides: dict[str, Any]
    dialogue = Dialogue()

    def __init__(self, sizes: Sizes) -> None:
        check_packages()
        super().__init__()
        self.overrides, self.sizes, self._checkpointing = {}, sizes, False
        self.lmm = build_lmm(sizes.llava)
        if sizes.rank:
            add_lora(
                self.lmm, rank=sizes.rank, alpha=sizes.alpha, dropout=sizes.dropout, vision=sizes.lora_vision
            )
        config = self.lmm.config
        width = config.vision_config.hidden_size
        if sizes.stage == 2:
            self.generator = Generator(
                width, sizes.queries, sizes.qformer, keep_first_patch=sizes.keep_first_patch
            )
            self.prompter = Prompter(width, sizes.hidden, sizes.prompt_dropout)
        make_constants_real(self)
        self._freeze()

    # What is trained

    def trains(self, name: str) -> bool:
        """Return whether a stage trains the parameter of a name.

        Stage 1 trains LoRA and the projector. Stage 2 trains the Q-Former's cross-attention, all else of
        generator and prompter, and the projector.
        """
        if name.startswith(PROJECTOR):
            return True
        if self.sizes.stage == 1:
            return ".lora_" in name
        if name.startswith("generator.qformer."):
            return ".crossattention." in name
        return name.startswith(("generator.", "prompter."))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters of what this stage trains."""
        return ((name, p) for name, p in self.named_parameters() if self.trains(name))

    def lr_scales(self) -> dict[str, float]:
        """Return factors of the learning rate by name of a parameter: a tenth for the projector's."""
        return {name: 0.1 for name, _ in self.trained() if name.startswith(PROJECTOR)}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that an optimiser should not decay: norms and biases."""
        return {name for name, p in self.trained() if p.ndim <= 1}

    def draw(self) -> None:
        """Draw the weights that are on the device "meta" and that no base holds, on the CPU.

        All but the base: LoRA, the projector, generator and prompter.
        """
        sizes, width = self.sizes, self.lmm.config.vision_config.hidden_size
        with torch.device("cpu"):
            for layer in lora_layers(self.lmm):
                for half in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
                    half.to_empty(device="cpu")
                layer.reset_lora_parameters(ADAPTER, init_lora_weights=True)
            projector = self.lmm.model.multi_modal_projector
            for linear in (projector.linear_1, projector.linear_2):
                linear.to_empty(device="cpu").reset_parameters()
            if sizes.stage == 2:
                self.generator = Generator(
                    width, sizes.queries, sizes.qformer, keep_first_patch=sizes.keep_first_patch
                )
                self.prompter = Prompter(width, sizes.hidden, sizes.prompt_dropout)
        self._freeze()

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.trains(name))

    def merge_lora(self) -> None:
        """Add LoRA's updates to the frozen weights, which takes less time; the tensors of LoRA stay."""
        for layer in lora_layers(self.lmm):
            if not layer.merged:
                layer.merge()

    def unmerge_lora(self) -> None:
        """Take LoRA's updates out of the frozen weights again, up to rounding."""
        for layer in lora_layers(self.lmm):
            if layer.merged:
                layer.unmerge()

    # What it looks like to others

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels; no others are taken."""
        side = self.lmm.config.vision_config.image_size
        return side, side

    @property
    def image_tokens(self) -> int:
        """Number of visual tokens of an image."""
        vision = self.lmm.config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2)

    @property
    def instruction_tokens(self) -> int:
        """Maximum length of an instruction in tokens; 0 where instructions are not read."""
        return self.sizes.instruction_tokens if self.sizes.stage == 2 else 0

    @property
    def text_tokens(self) -> int:
        """Maximum length of a text in tokens, with those of the image."""
        return int(self.lmm.config.text_config.max_position_embeddings)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass, for less memory."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        if bool(wanted) != self._checkpointing:
            set_checkpointing(self.lmm, bool(wanted))
        self._checkpointing = bool(wanted)

    # The forward pass

    def prompt(self, visual: Tensor, instructions: Tensor, mask: Tensor, owners: Tensor) -> Tensor:
        """Return P (B, N, D), the mean over an image's instructions.

        Args:
            visual: V (B, N, D).
            instructions: (T, I) int64, tokens of BERT.
            mask: (T, I), 1 for a token and 0 for padding.
            owners: (T,) int64, which image each is for; every image has at least one.
        """
        turns = visual[owners]  # (T, N, D)
        prompts = self.prompter(turns, self.generator(turns, instructions, mask))
        total = torch.zeros_like(visual, dtype=prompts.dtype).index_add(0, owners, prompts)
        counts = torch.bincount(owners, minlength=len(visual)).to(total.dtype)
        return total / counts[:, None, None]

    def look(self, images: Tensor, instructions: Tensor, mask: Tensor, owners: Tensor) -> Tensor:
        """Return the visual tokens (B, N, W) in language space of images (B, 3, S, S); see :meth:`prompt`."""
        visual = visual_features(self.lmm, images)  # V (B, N, D)
        if self.sizes.stage == 2:
            visual = visual + self.sizes.prompt_scale * self.prompt(visual, instructions, mask, owners)
        out: Tensor = self.lmm.model.multi_modal_projector(visual)
        return out

    def embed(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Return text (B, L) with visual tokens (B, N, W) in their places: (B, L, W).

        Raises:
            ValueError: another number of places than of visual tokens.
        """
        places = tokens == IMAGE
        if int(places.sum()) != seen.shape[0] * seen.shape[1]:
            raise ValueError(
                f"text must have {seen.shape[1]} places for each image, got {int(places.sum())} for "
                f"{seen.shape[0]} images"
            )
        words = self.lmm.get_input_embeddings()(tokens.masked_fill(places, 0))
        out: Tensor = words.masked_scatter(places[..., None], seen.to(words.dtype))
        return out

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        instructions: Tensor,
        instruction_mask: Tensor,
        owners: Tensor,
    ) -> Tensor:
        """Return logits (B, L, vocabulary) of the token after each.

        Args:
            images: (B, 3, S, S), normalised.
            tokens: (B, L) int64, with places for the visual tokens.
            mask: (B, L), 1 for a token and 0 for padding at the end; None where nothing is padded.
            instructions, instruction_mask, owners: see :meth:`prompt`; unused in stage 1.
        """
        seen = self.look(images, instructions, instruction_mask, owners)
        out: Tensor = self.lmm.lm_head(self._hidden(tokens, mask, seen))
        return out

    def _hidden(self, tokens: Tensor, mask: Tensor | None, seen: Tensor) -> Tensor:
        words = self.embed(tokens, seen)  # (B, L, W)
        model = self.lmm.model.language_model
        hidden: Tensor = model(inputs_embeds=words, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden

    def loss(
        self,
        images: Tensor,
        tokens: Tensor,
        mask: Tensor,
        labels: Tensor,
        *,
        instructions: Tensor,
        instruction_mask: Tensor,
        owners: Tensor,
    ) -> Tensor:
        """Return the cross-entropy of the labels (B, L), -100 for none, mean over them; a scalar.

        Logits are computed where there is a label only: those of all places would take more memory than the
        rest of the network.
        """
        hidden = self._hidden(tokens, mask, self.look(images, instructions, instruction_mask, owners))
        following = labels[:, 1:]
        learned = following != -100
        logits = self.lmm.lm_head(hidden[:, :-1][learned])  # (labels, vocabulary)
        return F.cross_entropy(logits.float(), following[learned])

    def continued(
        self,
        images: Tensor,
        tokens: Tensor,
        *,
        instructions: Tensor,
        instruction_mask: Tensor,
        owners: Tensor,
    ) -> Callable[[Tensor | None], Tensor]:
        """Return a function that reads text on, token by token; arguments as for :meth:`forward`.

        Its argument is the next token (B, 1), None at the first call; it returns the logits (B, vocabulary)
        of the token after it. What has been read is kept, and not computed again.
        """
        from transformers import DynamicCache

        model = self.lmm.model.language_model
        cache = DynamicCache(config=self.lmm.config.text_config)
        parameters = inspect.signature(model.forward).parameters
        keyword = "cache" if "cache" in parameters else "past_key_values"  # renamed within transformers 5
        first = self.embed(tokens, self.look(images, instructions, instruction_mask, owners))

        def step(token: Tensor | None) -> Tensor:
            words = first if token is None else self.lmm.get_input_embeddings()(token)
            hidden = model(inputs_embeds=words, use_cache=True, **{keyword: cache})
            out: Tensor = self.lmm.lm_head(hidden.last_hidden_state[:, -1])
            return out

        return step

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QAdapt:
        with constants_kept(self):  # frequencies of rotary positions must stay float32
            return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
