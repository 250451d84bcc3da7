"""The README.md that lies beside an adapter's weights, made from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checkpoints.card import (
    bullets,
    front_matter,
    inline,
    joined,
    limits_section,
    quoted,
    results_section,
    training_section,
)

if TYPE_CHECKING:
    from .folder import AdapterConfig


def render_adapter_card(config: AdapterConfig) -> str:
    """Hugging Face front matter, then Markdown. A pure function of ``config``.

    >>> from qmamba.adapters import AdapterConfig
    >>> card = render_adapter_card(AdapterConfig("style-prompt", "lqmamba-n", "0" * 64, licence="MIT"))
    >>> card.splitlines()[:4]
    ['---', 'license: mit', 'library_name: qmamba', 'base_model: "lqmamba-n"']
    """
    base = config.base if config.revision is None else f"{config.base} at {config.revision}"
    opening = (
        f"# {config.method} for {inline(config.base)}\n\n"
        "Carries a model of image quality over to another kind of images. Made for "
        f"`{inline(base)}` with weights {config.base_sha256[:8]}…; another base refuses it.\n\n"
        "```python\nimport qmamba\n\n"
        f'scorer = qmamba.load("{inline(config.base)}", adapter="PATH_OR_HUB_ID_OF_THIS_FOLDER")\n'
        'scorer.score("photo.jpg")\n```\n\n'
        f"Licence of the weights: {inline(config.licence)}.\n"
    )
    calibration = "Calibration of a crop's adapted raw output, `sigmoid(slope * raw + offset)`:"
    return joined(
        front_matter(config.licence, config.trained_on, [f"base_model: {quoted(config.base)}"]), opening,
        training_section(config.trained_on, {"options": config.options, **config.training}),
        results_section(config.results),
        "\n".join(["## Scores", "", calibration, "", *bullets(config.calibration.to_dict())]),
        limits_section(config.limits),
    )  # fmt: skip
