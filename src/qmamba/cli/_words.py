"""Options of commands that answer in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmamba.cli._options import Device, DtypeName, Offline, Revision

if TYPE_CHECKING:
    from qmamba.scoring import LanguageScorer


@dataclass(frozen=True)
class WordsOptions:
    """Which model is asked, and how long it may answer."""

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Model that answers in words: a folder, a Hub id, or a name from an index."
        ),
    ]
    revision: Revision = None
    offline: Offline = False
    device: Device = None
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Floating type; auto: bfloat16 where quick. Default: float32."),
    ] = None
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")] = 256
    seconds: Annotated[float | None, typer.Option(help="Maximum time for an answer, which is cut there.")] = (
        None
    )

    def load(self) -> LanguageScorer:
        """Return the scorer.

        Raises:
            CapabilityError: the model does not answer in words.
            UnknownModelError, CheckpointError, HubError, BackendError: as `qmamba.load`.
        """
        import torch

        from qmamba.models.capabilities import Converses, require
        from qmamba.scoring import LanguageScorer, load

        dtype: Any = None if self.dtype is None else getattr(torch, self.dtype.value, self.dtype.value)
        scorer = load(
            self.model, revision=self.revision, local_files_only=self.offline, device=self.device, dtype=dtype
        )
        require(scorer.network, Converses, "answers")
        assert isinstance(scorer, LanguageScorer)
        return scorer

    def limits(self) -> dict[str, Any]:
        """Return the keyword arguments of `LanguageScorer.answer`."""
        return {"max_tokens": self.max_tokens, "seconds": self.seconds}
