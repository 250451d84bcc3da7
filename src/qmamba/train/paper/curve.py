"""The learning curve of a run, as a picture."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from ..state import LOG

POINTS = 300  # of the loss curve: means over equal stretches of steps


def draw_curve(folder: Path, path: Path, title: str) -> bool:
    """Draw the loss, and SRCC on the fold "val" or else the learning rate, over the steps, as a PNG.

    Args:
        folder: of a run, with its log.
        path: of the PNG.
        title: of the figure.

    Returns:
        False where there is no log, or matplotlib is not installed (the extra ``train`` has it).
    """
    if not (folder / LOG).is_file() or find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    events = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    steps = [e for e in events if "loss" in e]
    looks = [e for e in events if "val_srcc" in e]
    stride = max(1, len(steps) // POINTS)
    parts = [steps[i : i + stride] for i in range(0, len(steps), stride)]
    figure = Figure(figsize=(6.4, 4), layout="constrained")  # no pyplot: nothing global
    left = figure.subplots()
    left.plot(
        [p[-1]["step"] for p in parts], [sum(e["loss"] for e in p) / len(p) for p in parts], color="#0072B2"
    )
    left.set(xlabel="step", title=title)
    left.set_ylabel("loss", color="#0072B2")
    right = left.twinx()
    if looks:
        right.plot([e["step"] for e in looks], [e["val_srcc"] for e in looks], "o-", color="#D55E00")
        right.set_ylabel("SRCC on val", color="#D55E00")
    else:
        right.plot([e["step"] for e in steps], [e["lr"] for e in steps], color="#999999", linewidth=1)
        right.set(yscale="log")
        right.set_ylabel("learning rate", color="#666666")
    figure.savefig(path, dpi=120)
    return True
