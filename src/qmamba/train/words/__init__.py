"""Training of networks that answer in words, on conversations about the quality of photographs."""

from __future__ import annotations

from .conversations import Conversation, Turn, read_conversations
from .recipe import WordsRecipe
from .task import train_words

__all__ = ["Conversation", "Turn", "WordsRecipe", "read_conversations", "train_words"]
