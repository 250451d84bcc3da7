"""Every size of Q-Adapt, with the published values as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The published base, as a LLaVA-shaped config of transformers: SigLIP so400m/14 at 384 pixels, whose features
# are taken after layer 26 of 27 and without the last norm, and Phi-2.
BUNNY: dict[str, Any] = {
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
        "vision_use_head": False,
    },
    "text_config": {
        "model_type": "phi", "vocab_size": 50295, "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 32, "num_attention_heads": 32, "partial_rotary_factor": 0.4,
        "max_position_embeddings": 2048, "bos_token_id": 50256, "eos_token_id": 50256,
    },
    "vision_feature_layer": -2, "vision_feature_select_strategy": "full", "image_seq_length": 729,
}  # fmt: skip
KNOWN_BASES: dict[str, dict[str, Any]] = {"bunny-v1.0-3b": BUNNY}
MAX_SIZE = 2**16  # far above any use: a stranger's config must not keep the machine busy


@dataclass(frozen=True)
class Sizes:
    """Sizes of a Q-Adapt network.

    Args:
        base: the large multi-modal model: "bunny-v1.0-3b", or the dictionary of a ``LlavaConfig`` of
            transformers with at least ``vision_config`` and ``text_config``.
        stage: 1 for LoRA alone; 2 for the visual prompt that follows the instruction, as well.
        rank, alpha, dropout: of LoRA on every Linear of the language model's blocks; rank 0 is without LoRA.
        lora_vision: whether the vision tower's blocks have LoRA, too.
        queries: learned queries of the V-T Generator.
        qformer: changes to ``InstructBlipQFormerConfig``.
        keep_first_patch: whether the V-T Generator sees the first patch; the published one leaves it out.
        hidden: width of the gate's hidden layer in the T-V Prompter.
        prompt_dropout: of that layer, in training.
        prompt_scale: weight of the visual prompt beside the visual features.
        instruction_tokens: maximum length of an instruction, which is truncated on the left.

    Raises:
        ValueError: a value of a wrong type or out of range, or an unknown base.
    """

    base: str | Mapping[str, Any] = "bunny-v1.0-3b"
    stage: int = 2
    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    lora_vision: bool = False
    queries: int = 32
    qformer: Mapping[str, Any] = field(default_factory=dict)
    keep_first_patch: bool = False
    hidden: int = 2048
    prompt_dropout: float = 0.1
    prompt_scale: float = 0.1
    instruction_tokens: int = 256

    def __post_init__(self) -> None:
        if self.stage not in (1, 2) or isinstance(self.stage, bool):
            raise ValueError(f"stage must be 1 or 2, got {self.stage!r}")
        for name, low in (
            ("rank", 0),
            ("alpha", 1),
            ("queries", 1),
            ("hidden", 1),
            ("instruction_tokens", 3),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= MAX_SIZE:
                raise ValueError(f"{name} must be an integer from {low} to {MAX_SIZE}, got {value!r}")
        for name, high in (("dropout", 1), ("prompt_dropout", 1), ("prompt_scale", 100)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < high:
                raise ValueError(f"{name} must be a number of at least 0 and below {high}, got {value!r}")
        for name in ("lora_vision", "keep_first_patch"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if not isinstance(self.qformer, Mapping):
            raise ValueError(f"qformer must be a dictionary of a Q-Former's config, got {self.qformer!r}")
        self._check_base()

    def _check_base(self) -> None:
        if isinstance(self.base, str) and self.base not in KNOWN_BASES:
            known = ", ".join(KNOWN_BASES)
            raise ValueError(
                f"base must be one of {known}, or a LLaVA config's dictionary, got {self.base!r}"
            )
        parts = ("vision_config", "text_config")
        if not isinstance(self.base, (str, Mapping)) or not all(
            isinstance(self.llava.get(part), Mapping) for part in parts
        ):
            raise ValueError("base must be a dictionary with vision_config and text_config, as LlavaConfig's")

    @property
    def llava(self) -> dict[str, Any]:
        """The base's config as ``LlavaConfig`` takes it."""
        return dict(KNOWN_BASES[self.base] if isinstance(self.base, str) else self.base)
