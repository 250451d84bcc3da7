"""The V-T Generator: an instruction-aware Q-Former reads an image into text space (Q-Adapt)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Visual features (B, N, D) and an instruction (B, I) to text queries T (B, Q, D).

    A = LN(Linear(V)), without the first patch; the Q-Former of InstructBLIP reads the queries and the
    instruction together, and its query rows attend to A in every second layer; its first Q rows return to
    the visual width.

    Args:
        width: D.
        queries: Q, learned, without positions.
        qformer: changes to ``InstructBlipQFormerConfig``, whose defaults are the published sizes.
        keep_first_patch: whether A has the first patch.
    """

    def __init__(
        self, width: int, queries: int, qformer: Mapping[str, Any], *, keep_first_patch: bool = False
    ) -> None:
        from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

        super().__init__()
        config = InstructBlipQFormerConfig(**{"vocab_size": 30523, **qformer})  # BERT's, and [DEC]
        self.keep_first_patch = keep_first_patch
        self.project = nn.Linear(width, config.encoder_hidden_size)
        self.norm = nn.LayerNorm(config.encoder_hidden_size)
        self.queries = nn.Parameter(torch.empty(1, queries, config.hidden_size))
        self.qformer = InstructBlipQFormerModel(config)
        self.out = nn.Linear(config.hidden_size, width)
        nn.init.normal_(self.queries, std=config.initializer_range)

    def forward(self, visual: Tensor, instruction: Tensor, mask: Tensor) -> Tensor:
        """Return T (B, Q, D).

        Args:
            visual: V (B, N, D).
            instruction: (B, I) int64, tokens of BERT.
            mask: (B, I), 1 for a token and 0 for padding.
        """
        seen = visual if self.keep_first_patch else visual[:, 1:]
        seen = self.norm(self.project(seen))  # A (B, N - 1, 1408)
        queries = self.queries.expand(len(visual), -1, -1)  # (B, Q, 768)
        joint_mask = torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1)  # (B, Q + I)
        rows = self.qformer(
            input_ids=instruction, attention_mask=joint_mask, query_embeds=queries,
            encoder_hidden_states=seen,
        ).last_hidden_state  # fmt: skip
        out: Tensor = self.out(rows[:, : queries.shape[1]])  # (B, Q, 768) → (B, Q, D)
        return out
