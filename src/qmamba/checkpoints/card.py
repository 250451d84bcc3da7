"""The README.md that ships with a checkpoint or an adapter, made from its config."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from qmamba.checkpoints.config import ModelConfig

# Licence identifiers that the Hub knows and that weights are likely to carry; others become `other`.
_HUB_LICENCES = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0"}
_HUB_LICENCES |= {"cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "unknown"}
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
METRIC_TITLES = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "plcc_fitted": "PLCC, fitted",
    "krcc": "KRCC",
    "rmse": "RMSE",
    "rmse_fitted": "RMSE, fitted",
    "n": "images",
}


def render_card(config: ModelConfig) -> str:
    """The model card of a checkpoint: Hugging Face front matter, then Markdown. A pure function of `config`.

    >>> card = render_card(ModelConfig(name="mine", arch="lqmamba-n", licence="Apache-2.0"))
    >>> card.splitlines()[:3]
    ['---', 'license: apache-2.0', 'library_name: qmamba']
    """
    return joined(
        front_matter(config.licence, config.trained_on), _opening(config),
        training_section(config.trained_on, config.training), results_section(config.results),
        _scoring(config), limits_section(config.limits),
    )  # fmt: skip


def joined(*parts: str) -> str:
    """A card of these parts; empty ones are left out."""
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def quoted(text: str) -> str:
    """A YAML scalar: JSON strings are YAML strings, and no data set name can end the front matter early."""
    return json.dumps(text, ensure_ascii=False)


def inline(text: str) -> str:
    """One line of Markdown table-safe text."""
    return " ".join(str(text).split()).replace("|", "\\|")


def front_matter(licence: str, trained_on: Sequence[str], extra: Sequence[str] = ()) -> str:
    """What the Hub reads, in YAML, with more lines of it if need be."""
    licence = licence.strip().lower()
    lines = ["---"]
    if licence in _HUB_LICENCES:
        lines.append(f"license: {licence}")
    else:
        slug = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-.") or "other"
        lines += ["license: other", f"license_name: {quoted(slug)}"]
    lines += ["library_name: qmamba", *extra, "pipeline_tag: image-classification", "tags:"]
    lines += [f"- {tag}" for tag in ("image-quality-assessment", "no-reference", "vision-mamba")]
    # The Hub links these, and warns of what cannot be one of its names; the text has them all.
    if ids := [name for name in trained_on if _DATASET_ID.fullmatch(name)]:
        lines += ["datasets:", *(f"- {quoted(name)}" for name in ids)]
    return "\n".join([*lines, "---", ""])


def _opening(config: ModelConfig) -> str:
    low, high = config.score_range
    better = "lower" if config.lower_better else "higher"
    return (
        f"# {config.name}\n\n"
        "Tells how good a photograph looks, with no reference image. "
        f"Architecture `{config.arch}`; scores lie in [{low:g}, {high:g}], {better} is better.\n\n"
        "```python\nimport qmamba\n\n"
        'scorer = qmamba.load("PATH_OR_HUB_ID_OF_THIS_FOLDER")\n'
        'scorer.score("photo.jpg")\n```\n\n'
        f"Licence of the weights: {inline(config.licence)}.\n"
    )


def bullets(data: dict[str, Any], indent: str = "") -> list[str]:
    """An object as nested bullet points, a line each."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}- {inline(key)}:", *bullets(value, indent + "  ")]
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"{indent}- {inline(key)}: {inline(shown)}")
    return lines


def training_section(trained_on: Sequence[str], training: dict[str, Any]) -> str:
    seen = ", ".join(inline(name) for name in trained_on) or "not stated"
    return "\n".join(["## Training", "", f"Trained on: {seen}.", "", *bullets(training), ""])


def _shown(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return inline(json.dumps(value, ensure_ascii=False))
    if isinstance(value, int):
        return str(value)
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return f"{value:.4g} [{low:.4g}, {high:.4g}]"
    return f"{value:.4g}"


def results_section(results: dict[str, Any]) -> str:
    tables = {where: values for where, values in results.items() if isinstance(values, dict)}
    notes = {where: value for where, value in results.items() if not isinstance(value, dict)}
    keys = [key for key in METRIC_TITLES if any(key in values for values in tables.values())]
    other = {
        where: rest
        for where, values in tables.items()
        if (rest := {key: value for key, value in values.items() if not _in_table(key)})
    }
    lines = ["## Measured", ""]
    if keys:
        lines.append("| on | " + " | ".join(METRIC_TITLES[key] for key in keys) + " |")
        lines.append("|---" * (len(keys) + 1) + "|")
        for where, values in tables.items():
            cells = [inline(where), *(_shown(values, key) for key in keys)]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "In brackets: bootstrap interval over the images, 95 % unless said otherwise.", ""]
    lines += bullets({**notes, **other})
    if not results:
        lines.append("Nothing measured yet.")
    return "\n".join([*lines, ""])


def limits_section(limits: str) -> str:
    return f"## Limits\n\n{limits.strip()}\n" if limits.strip() else ""


def _in_table(key: str) -> bool:
    return key.removesuffix("_low").removesuffix("_high") in METRIC_TITLES


def _scoring(config: ModelConfig) -> str:
    lines = ["## How a photograph is scored", "", "Mean of the calibrated scores of these crops:", ""]
    lines += bullets(config.protocol.to_dict())
    lines += ["", "Calibration of a crop's raw output, `sigmoid(slope * raw + offset)`:", ""]
    return "\n".join([*lines, *bullets(config.calibration.to_dict()), ""])
