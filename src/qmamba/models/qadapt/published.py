"""What is frozen, what a training starts from, and how tensors are called in the published files."""

from __future__ import annotations

import re

from ..registry import BaseWeights, TokenizerFile

_BUNNY, _COMMIT = "BAAI/Bunny-v1_0-3B", "cc50c03885a332863af1c840239c9696a841a1d1"

# Digests enter a checkpoint when it is first saved with these files in the Hub's cache.
BASES = (
    BaseWeights(_BUNNY, _COMMIT, "model-00001-of-00002.safetensors", "", "lmm."),
    BaseWeights(_BUNNY, _COMMIT, "model-00002-of-00002.safetensors", "", "lmm."),
)
STARTS = (  # what stage 2 starts from: Q-Former, norm and queries, in the first of the files
    BaseWeights(
        "Salesforce/instructblip-vicuna-7b", "main", "model-00001-of-00004.safetensors", "", "generator."
    ),
)
TOKENIZERS = (
    TokenizerFile("language", _BUNNY, _COMMIT, "tokenizer.json"),
    TokenizerFile("instruction", "google-bert/bert-base-uncased", "main", "tokenizer.json"),
)

# Beginning of a published name → of ours. The first that fits counts.
_NAMES = (
    # Bunny
    (re.compile(r"lmm\.model\.mm_projector\.0\."), "lmm.model.multi_modal_projector.linear_1."),
    (re.compile(r"lmm\.model\.mm_projector\.2\."), "lmm.model.multi_modal_projector.linear_2."),
    (re.compile(r"lmm\.model\.vision_tower\.vision_tower\.vision_model\."), "lmm.model.vision_tower."),
    (re.compile(r"lmm\.model\.(embed_tokens|layers|final_layernorm)\."), r"lmm.model.language_model.\1."),
    # LLaVA of transformers, today's files and those before version 5
    (re.compile(r"lmm\.(?:model\.)?vision_tower\.vision_model\."), "lmm.model.vision_tower."),
    (re.compile(r"lmm\.vision_tower\."), "lmm.model.vision_tower."),
    (re.compile(r"lmm\.multi_modal_projector\."), "lmm.model.multi_modal_projector."),
    (re.compile(r"lmm\.language_model\.model\."), "lmm.model.language_model."),
    (re.compile(r"lmm\.language_model\.lm_head\."), "lmm.lm_head."),
    # InstructBLIP
    (re.compile(r"generator\.query_tokens$"), "generator.queries"),
    (re.compile(r"generator\.vision_model\.post_layernorm\."), "generator.norm."),
)


def names_of(published: str) -> tuple[str, ...]:
    """Return the names that a tensor of a base's file may have in a network, its prefix in front.

    A Linear with LoRA holds the weight that it had as ``base_layer``.

    >>> names_of("lmm.language_model.lm_head.weight")
    ('lmm.lm_head.weight', 'lmm.lm_head.base_layer.weight')
    """
    ours = published
    for beginning, new in _NAMES:
        if match := beginning.match(published):
            ours = match.expand(new) + published[match.end() :]
            break
    module, _, leaf = ours.rpartition(".")
    return ours, f"{module}.base_layer.{leaf}"


def is_stored(name: str) -> bool:
    """Return whether a checkpoint stores this tensor.

    It stores LoRA, the projector, the V-T Generator with its whole Q-Former, and the T-V Prompter. Of the
    Q-Former only the cross-attention is trained; to store the rest, too, spares its users a download of
    another large model. All else is in the base.
    """
    if not name.startswith("lmm."):
        return True
    return ".lora_" in name or ".multi_modal_projector." in name
