"""A random large multi-modal model of a few thousand parameters, with its tokenizers, in a Hub cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qmamba.checkpoints import ModelConfig, default_config, save_checkpoint
from qmamba.checkpoints.bases import load_bases
from qmamba.models import BaseWeights, TokenizerFile, create_model

LLAVA: dict[str, Any] = {
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        "vision_use_head": False,
    },
    "text_config": {
        "model_type": "phi", "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": 1,
    },
    "vision_feature_layer": -2, "vision_feature_select_strategy": "full", "image_seq_length": 4,
    "image_token_index": 63,
}  # fmt: skip
QFORMER: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "encoder_hidden_size": 24,
}  # fmt: skip
TINY: dict[str, Any] = {
    "base": LLAVA, "rank": 4, "alpha": 8, "queries": 5, "qformer": QFORMER, "hidden": 16,
    "instruction_tokens": 12,
}  # fmt: skip
WORDS = [
    *("[UNK]", "<|endoftext|>", " good", " poor", " excellent", " fair", " bad", " The", " quality", " of"),
    *(" the", " image", " is", "\n", ":", ".", "?", " USER", "USER", " ASSISTANT", "Is", " it", " sharp"),
    *(" blurred", " noisy", " dark", "A", "B", "C", "D", " A", " B", " C", " D", "Rate", "Describe"),
    *(" photo", " and", " not"),
]
INSTRUCTION_WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "is", "it", "sharp", "blurred", "noisy", "dark", "the", "image"),
    *("of", "quality", "rate", "?", "."),
)
REPO, COMMIT = "tests/tiny-lmm", hashlib.sha1(b"tiny").hexdigest()
BASES = tuple(BaseWeights(REPO, COMMIT, f"model-0000{i}-of-00002.safetensors", "", "lmm.") for i in (1, 2))
TOKENIZERS = (
    TokenizerFile("language", REPO, COMMIT, "tokenizer.json"),
    TokenizerFile("instruction", REPO, COMMIT, "instruction.json"),
)


def language_tokenizer() -> Any:
    """Return a tokenizer of words with their leading spaces; its other tokens are " w0", " w1", …"""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = [*WORDS, *(f" w{i}" for i in range(64 - len(WORDS)))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|\s|[^\s\w]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def instruction_tokenizer() -> Any:
    """Return a tokenizer in the manner of BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(INSTRUCTION_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def plain_lmm(seed: int = 0) -> Any:
    """Return the base as transformers builds it, all of its blocks there, with random weights."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lmm = LlavaForConditionalGeneration(LlavaConfig(**LLAVA))
        lmm.lm_head = nn.Linear(48, 64)
        for parameter in lmm.parameters():
            nn.init.normal_(parameter, std=0.2)
        for module in lmm.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
    return lmm.eval()


def tiny_network(seed: int = 0, **changes: Any) -> Any:
    """Return a network on `plain_lmm`, whose prompts are large enough to be seen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = create_model("q-adapt", **{**TINY, **changes})
        for name, parameter in network.named_parameters():
            if ".lora_B." in name or (name.startswith(("generator.", "prompter.")) and parameter.ndim > 1):
                nn.init.normal_(parameter, std=0.2)
        take_base(network, plain_lmm())
    return network.eval()


def take_base(network: Any, lmm: Any) -> None:
    """Give a network the weights of a base of transformers."""
    own = network.state_dict()
    for name, tensor in lmm.state_dict().items():
        module, _, leaf = f"lmm.{name}".rpartition(".")
        for key in (f"{module}.{leaf}", f"{module}.base_layer.{leaf}"):
            if key in own:
                own[key].copy_(tensor)


def legacy(name: str) -> str:
    """Return the name of a tensor in LLaVA files before transformers 5."""
    for ours, theirs in (
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


def bunny(name: str) -> str:
    """Return the name of a tensor in Bunny's files."""
    for ours, theirs in (
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: Any = legacy) -> Path:
    """Return a Hub cache that holds the base in two files and the tokenizers; the network is off."""
    from huggingface_hub import constants
    from safetensors.torch import save_file

    cache = tmp_path / "cache"
    folder = cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    state = {renamed(name): tensor.contiguous() for name, tensor in plain_lmm().state_dict().items()}
    names = sorted(state)
    for base, part in zip(BASES, (names[::2], names[1::2]), strict=True):
        save_file({name: state[name] for name in part}, folder / base.filename)
    language_tokenizer().save(str(folder / "tokenizer.json"))
    instruction_tokenizer().save(str(folder / "instruction.json"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def write_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> ModelConfig:
    """Write a checkpoint of `tiny_network`; the cache must be there."""
    network = tiny_network(seed, **changes)
    load_bases(network, BASES)
    config = default_config(network, "tiny-words", bases=BASES, tokenizers=TOKENIZERS)
    return save_checkpoint(folder, network, config, dtype=torch.float32)
