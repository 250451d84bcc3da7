"""Capabilities of networks beyond forward: small protocols that callers ask for, never a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from ..errors import CapabilityError
from .dialogue import Dialogue

C = TypeVar("C")

IMAGE = -1
"""Stands for a visual token in the tokens of a text."""


@runtime_checkable
class StageFeatures(Protocol):
    """A network that returns the features of its stages.

    Attributes:
        feature_info: per stage ``num_chs``, ``reduction`` and ``module``, as in timm.
    """

    feature_info: list[dict[str, Any]]

    def forward_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return raw quality (B, 1) and the features of each stage (B, C, H, W).

        Args:
            images: normalised, (B, 3, H, W).
        """
        ...


@runtime_checkable
class Positions(Protocol):
    """A network that returns a value for each of its positions, whose mean is the raw quality."""

    def forward_positions(
        self,
        images: Tensor,
        prompts: Sequence[Callable[[Tensor], Tensor]] | nn.ModuleList | None = None,
        head: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return raw quality (B, 1), bit for bit that of ``forward``, and the positions' values (B, h, w)."""
        ...


@runtime_checkable
class TakesPrompts(Protocol):
    """A network that takes a prompt after each stage, and another head: adapters consist of these.

    Attributes:
        out_widths: channels of each stage's output, which its prompt acts on, as (B, H, W, C').
        head: what an adapter may replace.
    """

    out_widths: tuple[int, ...]
    head: nn.Module

    def __call__(
        self,
        images: Tensor | Sequence[Tensor],
        prompts: Sequence[Callable[[Tensor], Tensor]] | nn.ModuleList | None = None,
        head: nn.Module | None = None,
        *,
        start: int | None = None,
    ) -> Tensor:
        """Return raw quality (B, 1) of normalised images (B, 3, H, W).

        With ``start``, of what :meth:`forward_until` returned for that stage.
        """
        ...

    def forward_until(self, images: Tensor, stage: int) -> tuple[Tensor, ...]:
        """Return what lies before the prompt of a stage, as tensors whose first dimension is the batch's.

        They can be kept: nothing that an adapter trains from that stage on changes them.
        """
        ...


@runtime_checkable
class LowRankTargets(Protocol):
    """A network that names the Linears that low-rank updates (LoRA) act on.

    Attributes:
        lora_targets: regular expression that whole names of modules match.
    """

    lora_targets: str


class AdapterHost(TakesPrompts, Positions, Protocol):
    """A network for adapters, as type checkers see it: a module with prompts, positions and parameters."""

    training: bool

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the parameters, as ``nn.Module`` does."""
        ...

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters, as ``nn.Module`` does."""
        ...


@runtime_checkable
class DecayGroups(Protocol):
    """A network that names the parameters that an optimiser should not decay."""

    def no_weight_decay(self) -> set[str]:
        """Return the names of those parameters."""
        ...


@runtime_checkable
class ReadsStatistics(StageFeatures, Protocol):
    """A network whose head can be a linear function of the means and deviations of its stages' features."""

    def read_statistics(self, mean: Tensor, scale: Tensor, weight: Tensor, bias: float) -> None:
        """Write the function ``bias + weight · ((statistics - mean) · scale)`` into the head."""
        ...


@runtime_checkable
class OneSize(Protocol):
    """Takes images of one size only."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        ...


@runtime_checkable
class Converses(Protocol):
    """A network that reads an image and text around it, and continues the text token by token.

    Text is tokens (B, L) int64 in which :data:`IMAGE` stands for a visual token, ``image_tokens`` of them for
    an image. Instructions are tokens (T, I) of another vocabulary with a mask (T, I) and the images (T,) that
    they are for; a network may do without them.

    Attributes:
        dialogue: the template of its conversations.
    """

    dialogue: Dialogue

    @property
    def image_tokens(self) -> int:
        """Number of visual tokens of an image."""
        ...

    @property
    def instruction_tokens(self) -> int:
        """Maximum length of an instruction in tokens; 0 where instructions are not read."""
        ...

    @property
    def text_tokens(self) -> int:
        """Maximum length of a text in tokens, with those of the image."""
        ...

    def __call__(
        self,
        images: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        instructions: Tensor,
        instruction_mask: Tensor,
        owners: Tensor,
    ) -> Tensor:
        """Return logits (B, L, vocabulary) of the token after each, for normalised images (B, 3, H, W)."""
        ...

    def continued(
        self,
        images: Tensor,
        tokens: Tensor,
        *,
        instructions: Tensor,
        instruction_mask: Tensor,
        owners: Tensor,
    ) -> Callable[[Tensor | None], Tensor]:
        """Return a function from the next token (B, 1), None at first, to logits (B, vocabulary) after it."""
        ...


@runtime_checkable
class LearnsWords(Converses, Protocol):
    """A network with words, of which a part is trained beside a frozen base."""

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters of what is trained."""
        ...

    def lr_scales(self) -> dict[str, float]:
        """Return factors of the learning rate by name; 1 for the parameters that are left out."""
        ...

    def draw(self) -> None:
        """Draw the weights that are on the device "meta" and that no base holds, on the CPU."""
        ...

    def merge_lora(self) -> None:
        """Add the updates of an earlier training to the frozen weights."""
        ...

    def loss(
        self,
        images: Tensor,
        tokens: Tensor,
        mask: Tensor,
        labels: Tensor,
        *,
        instructions: Tensor,
        instruction_mask: Tensor,
        owners: Tensor,
    ) -> Tensor:
        """Return the cross-entropy of the labels (B, L), -100 for none, mean over them; a scalar."""
        ...


@runtime_checkable
class LearningRates(Protocol):
    """A network some of whose parameters have learning rates of their own."""

    def lr_scales(self) -> dict[str, float]:
        """Return factors of the learning rate by name; 1 for the parameters that are left out."""
        ...


_LACKING: dict[type, str] = {
    StageFeatures: "its network does not give features of stages",
    Positions: "its network does not give values of positions",
    TakesPrompts: "its network takes no prompts",
    LowRankTargets: "its network does not name the layers to update",
    ReadsStatistics: "its head does not read statistics of stages",
    OneSize: "its network takes images of any size",
    Converses: "its network knows no words",
    LearnsWords: "its network learns no words",
    LearningRates: "all its parameters have the same learning rate",
    DecayGroups: "its network does not tell which parameters not to decay",
}


def require(network: nn.Module, capability: type[C], what: str) -> C:
    """Return the network if it has a capability.

    Args:
        network: any module.
        capability: one of the protocols of this module.
        what: what needs it, for the error, such as "quality map".

    Raises:
        CapabilityError: the network lacks it.

    >>> require(nn.Identity(), Positions, "quality map")
    Traceback (most recent call last):
    qmamba.errors.CapabilityError: Identity has no quality map: its network does not give values of positions
    """
    if isinstance(network, capability):
        return network
    arch = getattr(network, "arch", None)
    name = f"architecture {arch!r}" if isinstance(arch, str) else type(network).__name__
    raise CapabilityError(f"{name} has no {what}: {_LACKING[capability]}")
