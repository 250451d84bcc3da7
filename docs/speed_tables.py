"""Tables of time and memory, and of a training, for `make_tables.py`."""

from __future__ import annotations

from typing import Any

TIMED = {
    "`lqmamba-t`": "lqmamba-t",
    "`lqmamba-t`, plain torch": "lqmamba-t torch",
    "`lqmamba-n`": "lqmamba-n",
    "ResNet-50": "resnet-50",
}
BESIDE_LODA = {"`loda`": "loda", "`lqmamba-t`": "lqmamba-t", "Swin-T": "swin-t"}
LODA_CASES = ("one 224 crop", "ten 224 crops", "forward + backward, ten 224 crops")
NOT_MEASURED = "not measured"


def times(models: dict[str, Any]) -> str:
    """Times over Swin-T's of the same round."""
    rows = [
        [case, *(f"{row[name]['ratio']:.2f}" for name in TIMED.values()), f"{row['swin-t']['ms']:,.0f} ms"]
        for case, row in models.items()
    ]
    return markdown(["", *TIMED, "Swin-T"], rows, range(1, 6))


def peaks(memory: dict[str, Any]) -> str:
    names = ("lqmamba-t", "swin-t")
    rows = [[case, *(f"{row[name]:,.0f}" for name in names)] for case, row in memory.items()]
    return markdown(["peak memory of a pass, MB", "`lqmamba-t`", "Swin-T"], rows, (1, 2))


def loda_speed(found: dict[str, Any] | None) -> str:
    """Return time and peak memory of LoDa and two others, at equal crops; "not measured" without results."""
    rows = []
    for what, unit, cases in (("models", "ms", LODA_CASES), ("memory", "peak MB", LODA_CASES[:2])):
        for case in cases:
            row = {} if found is None else found[what][case]
            values = [row[name]["ms"] if what == "models" else row[name] for name in row]
            cells = dict(zip(row, (f"{value:,.0f}" for value in values), strict=True))
            rows.append(
                [f"{case}, {unit}", *(cells.get(name, NOT_MEASURED) for name in BESIDE_LODA.values())]
            )
    return markdown(["", *BESIDE_LODA], rows, range(1, 4))


def loda_training(found: dict[str, Any] | None) -> str:
    """Loss, SRCC and cost of each epoch of a training with small towers."""
    heads = ["epoch", "mean loss", "val SRCC", "hours of training so far"]
    if found is None:
        rows = [["", *[NOT_MEASURED] * 3]]
    else:
        rows = [
            [str(row["epoch"]), f"{row['loss']:.3f}", f"{row['val_srcc']:.3f}", f"{row['hours']:.2f}"]
            for row in found["epochs"]
        ]
    return markdown(heads, rows, range(4))


def parts(cases: dict[str, Any]) -> str:
    heads = list(next(iter(cases.values())))
    rows = [[case, *(f"{row[part]:,.0f}" for part in heads)] for case, row in cases.items()]
    return markdown(["ms", *heads], rows, range(1, 1 + len(heads)))


def markdown(heads: list[str], rows: list[list[str]], numbers: Any) -> str:
    """A table whose columns at these places are set to the right."""
    rule = "|".join("---:" if place in numbers else "---" for place in range(len(heads)))
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
