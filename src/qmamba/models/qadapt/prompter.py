"""The T-V Prompter: what a text says of an image becomes a prompt for every visual token (Q-Adapt)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Prompter(nn.Module):
    """Visual features (B, N, D) and text queries (B, Q, D) to a visual prompt (B, N, D).

    S = MHA(V, T, T) with one head; g = σ(w₂ · ReLU(W₁ · LN[V; S])), one gate per visual token;
    P = LN((1 - g) · V + g · S).

    Args:
        width: D.
        hidden: width of the gate's hidden layer.
        dropout: of that layer, in training.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads=1, batch_first=True)
        self.gate_norm = nn.LayerNorm(2 * width)
        self.gate_in = nn.Linear(2 * width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.gate_out = nn.Linear(hidden, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """Return P (B, N, D) for V (B, N, D) and T (B, Q, D)."""
        attended, _ = self.attention(visual, text, text, need_weights=False)  # S (B, N, D)
        both = self.gate_norm(torch.cat([visual, attended], dim=-1))  # (B, N, 2D)
        gate = torch.sigmoid(self.gate_out(self.dropout(torch.relu(self.gate_in(both)))))  # g (B, N, 1)
        out: Tensor = self.norm((1 - gate) * visual + gate * attended)
        return out
