"""What a scorer does with checkpoints: save them, and push them to the Hub."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import torch
from torch import nn

from qmamba.checkpoints.config import ModelConfig
from qmamba.checkpoints.folder import push_checkpoint, save_checkpoint
from qmamba.checkpoints.hub import PushOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CheckpointVerbs(nn.Module):
    """The part of a scorer that is written to checkpoints.

    Attributes:
        network: the network.
        config: everything else in its checkpoint.
    """

    network: nn.Module
    config: ModelConfig

    @property
    def name(self) -> str:
        """Name of the checkpoint."""
        return self.config.name

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of the data sets that the weights have seen."""
        return self.config.trained_on

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None
    ) -> ModelConfig:
        """Write a checkpoint folder that `load` reads: config.json, model.safetensors, README.md.

        Adapters are not in it: they have folders of their own.

        Args:
            folder: is created if it does not exist.
            dtype: float32, float16 or bfloat16 for the stored weights; by default as they were stored before.

        Returns:
            The config as written, with this scorer's protocol.

        Raises:
            CheckpointError: the weights do not fit that type, or the folder cannot be written.
        """
        return save_checkpoint(folder, self.network, self.config, dtype=dtype)

    def push_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> str:
        """Upload this scorer as a checkpoint to the Hub, in one commit.

        Repository and branch are created if they do not exist.

        Args:
            repo_id: `user/repo`.
            **options: `private`, whether a new repository is private; `token`, in place of the one that is
                logged in; `commit_message`; `revision`, the branch to commit to.

        Returns:
            The address of the commit.

        Raises:
            HubError: the upload fails.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_checkpoint(folder, repo_id, **options)
