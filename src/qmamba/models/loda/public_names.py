"""Tensor names of the public LoDa implementation, and ours."""

from __future__ import annotations

import re

# Public name → ours, by prefix; what has none of these prefixes belongs to the ViT.
_PREFIXES = (
    (re.compile(r"learner\.conv\.(\d+)\."), r"extractor.convs.\1."),
    (re.compile(r"learner\.down_proj\.(\d+)\."), r"injectors.\1.down."),
    (re.compile(r"learner\.cross_attn\.(\d+)\."), r"injectors.\1.attention."),
    (re.compile(r"learner\.up_proj\.(\d+)\."), r"injectors.\1.up."),
    (re.compile(r"learner\.scale_factor$"), "scale"),
    (re.compile(r"learner\.head\."), "head."),
    (re.compile(r"feature_model\."), "cnn."),
    (re.compile(r"(cls_token|pos_embed)$|(?=(?:patch_embed|blocks|norm)\.)"), r"vit.\1"),
)


def from_public_name(name: str) -> str | None:
    """Return our name of a tensor of the public implementation, or None where it has no such tensor.

    >>> from_public_name("learner.cross_attn.3.kv.weight")
    'injectors.3.attention.kv.weight'
    >>> from_public_name("blocks.0.mlp.fc1.bias")
    'vit.blocks.0.mlp.fc1.bias'
    """
    for prefix, ours in _PREFIXES:
        if match := prefix.match(name):
            return match.expand(ours) + name[match.end() :]
    return None
