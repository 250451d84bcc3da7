"""The base: a LLaVA-shaped model of transformers, with LoRA by peft inside its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BackendError

ADAPTER = "default"  # peft's name for the only LoRA


def check_packages() -> None:
    """Refuse to go further without transformers and peft.

    Raises:
        BackendError: one of them is not installed, or too old.
    """
    try:
        import peft
        import transformers
    except ImportError as error:
        raise BackendError(f"q-adapt needs transformers and peft ({error}): {_INSTALL}") from error
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise BackendError(
            f"q-adapt needs transformers 5 or later, got {transformers.__version__}: {_INSTALL}"
        )
    assert peft is not None


_INSTALL = 'pip install "qmamba[explain]"'


def build_lmm(llava: Mapping[str, Any]) -> Any:
    """Return a ``LlavaForConditionalGeneration`` without what lies behind the features that it uses.

    The blocks of the vision tower behind the chosen one, its last norm and its pooling head change nothing,
    and published files may lack them.

    Args:
        llava: as ``LlavaConfig`` takes it.

    Raises:
        ValueError: no such config, several layers of features, or embeddings that are tied.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {**llava["vision_config"]}
    config = LlavaConfig(**{**llava, "vision_config": vision})
    if config.tie_word_embeddings:
        raise ValueError("base must not tie its word embeddings; set tie_word_embeddings to false")
    if not isinstance(config.vision_feature_layer, int):
        raise ValueError(f"vision_feature_layer must be one integer, got {config.vision_feature_layer!r}")
    lmm = LlavaForConditionalGeneration(config)
    if config.text_config.model_type == "phi":  # its output layer has a bias, which LLaVA's class leaves out
        lmm.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size)
        nn.init.zeros_(lmm.lm_head.bias)
    _cut(lmm, config)
    return lmm


def _cut(lmm: Any, config: Any) -> None:
    tower = lmm.model.vision_tower
    blocks = config.vision_config.num_hidden_layers
    chosen = config.vision_feature_layer
    if not -blocks - 1 <= chosen <= blocks:
        raise ValueError(f"vision_feature_layer must be from {-blocks - 1} to {blocks}, got {chosen}")
    config.vision_feature_layer = chosen % (blocks + 1)  # hidden state 0 goes into the first block
    encoder = getattr(tower, "encoder", None)
    if encoder is not None and hasattr(encoder, "layers"):
        encoder.layers = encoder.layers[: config.vision_feature_layer]
    if hasattr(tower, "post_layernorm"):
        tower.post_layernorm = nn.Identity()
    if getattr(tower, "use_head", False):
        tower.use_head = False
        del tower.head


def add_lora(lmm: Any, *, rank: int, alpha: int, dropout: float, vision: bool) -> None:
    """Put LoRA on every Linear of the language model's blocks: of Phi q, k, v, dense, fc1 and fc2.

    Args:
        lmm: of :func:`build_lmm`, changed in place.
        rank, alpha, dropout: of LoRA, without bias.
        vision: whether the vision tower's blocks have it, too.
    """
    from peft import LoraConfig, inject_adapter_in_model

    blocks = ("model.language_model.layers.", *(("model.vision_tower.",) if vision else ()))
    targets = [
        name
        for name, module in lmm.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(blocks)
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=targets)
    inject_adapter_in_model(config, lmm, adapter_name=ADAPTER)


def lora_layers(lmm: nn.Module) -> Iterator[Any]:
    """Yield peft's layers, which can merge their update into the weight and take it out again."""
    for module in lmm.modules():
        if hasattr(module, "lora_A") and hasattr(module, "merge"):
            yield module


def visual_features(lmm: Any, images: Tensor) -> Tensor:
    """Return V (B, N, D), the hidden state of the vision tower that the projector takes, of (B, 3, S, S)."""
    tower = lmm.model.vision_tower
    if lmm.config.vision_config.model_type == "siglip_vision_model":
        # What transformers does, up to the block where the tower was cut. Collecting hidden states would put
        # hooks on all blocks, with which no module can be pickled.
        embedded = tower.embeddings(images.to(tower.embeddings.patch_embedding.weight.dtype))
        features: Tensor = tower.encoder(inputs_embeds=embedded).last_hidden_state
    else:
        seen = tower(images, output_hidden_states=True)
        features = seen.hidden_states[lmm.config.vision_feature_layer]
    return features[:, 1:] if lmm.config.vision_feature_select_strategy == "default" else features


def set_checkpointing(lmm: Any, wanted: bool) -> None:
    """Have the blocks compute their activations again in the backward pass, or keep them."""
    name = (
        "activation_checkpointing"
        if hasattr(lmm, "activation_checkpointing_enable")
        else "gradient_checkpointing"
    )
    if wanted:  # the methods were renamed within transformers 5
        getattr(lmm, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(lmm, f"{name}_disable")()


def own_buffers(network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield the buffers that no state dict holds: module, name, tensor. Constants such as frequencies."""
    for module in network.modules():
        for name in module._non_persistent_buffers_set:
            if (buffer := module._buffers.get(name)) is not None:
                yield module, name, buffer


def make_constants_real(network: nn.Module) -> None:
    """Compute, on the CPU, the constants of a network that was built on the device "meta".

    No file holds them. A module of transformers that has any computes them from its config.
    """
    fresh: dict[nn.Module, Any] = {}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        for module, name, buffer in list(own_buffers(network)):
            if buffer.is_meta:
                config: Any = module.config
                fresh.setdefault(module, type(module)(config))
                module._buffers[name] = fresh[module]._buffers[name]


@contextmanager
def constants_kept(network: nn.Module) -> Iterator[None]:
    """Keep the type of floating constants within a change of a network's type; they follow its device."""
    before = [each for each in own_buffers(network) if each[2].is_floating_point()]
    yield
    for module, name, buffer in before:
        changed = module._buffers[name]
        assert changed is not None
        module._buffers[name] = buffer if changed.device == buffer.device else buffer.to(changed.device)
