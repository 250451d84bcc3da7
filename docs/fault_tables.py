"""Tables of docs/reasons.md, from what benchmarks/faults.py has measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qmamba.scoring.faults import CLEAN, FAULTS

SILENT = "no clear fault"
Markdown = Callable[[list[str], list[list[str]], Any], str]


def tables(report: dict[str, Any], markdown: Markdown) -> dict[str, str]:
    """Return tables by the names of their markers."""
    test = report["test"]
    return {
        "data": data(report),
        "summary": summary(report, markdown),
        "faults": faults(test["faults"], report["without soft"]["faults"], markdown),
        "kinds": kinds(test["kinds"], markdown),
        "confusion": confusion(test["confusion"], markdown),
    }


def data(report: dict[str, Any]) -> str:
    counts, test = report["photographs"], report["test"]
    fitted, tested = (
        ", ".join(f"{name} ({number})" for name, number in counts[key].items()) for key in ("fit", "test")
    )
    return (
        f"Fitted to {sum(counts['fit'].values())} photographs: {fitted}. Tested on "
        f"{sum(counts['test'].values())}: {tested}; {test['samples']} copies, of which {test['undamaged']} "
        f"are undamaged. Weights {report['weights_sha256'][:8]}…, seen at {report['side']}² pixels; the "
        f"probe's file has {report['bytes'] / 1000:.0f} KB."
    )


def summary(report: dict[str, Any], markdown: Markdown) -> str:
    titles = {
        "precision": "told faults that are right, where half of the copies are undamaged",
        "told of damaged": "damaged copies of which a fault is told",
        "right of damaged": "damaged copies whose fault is named correctly",
        "told of undamaged": "undamaged copies of which a fault is told",
    }
    sets = [report[name] for name in ("held out", "test", "without soft")]
    rows = [[title, *(share(each[key]) for each in sets)] for key, title in titles.items()]
    rows += [
        [f"right fault told at level {level}", *(share(each["right by level"][level]) for each in sets)]
        for level in report["test"]["right by level"]
    ]
    regions = {
        "precision": "told regions that are right, where half of the copies are damaged nowhere",
        "recall": "copies damaged in one region of which it is told",
        "told of undamaged": "undamaged copies of which a region is told",
    }
    rows += [
        [title, *(share(each["places"][key]) for each in sets[:2]), "-"] for key, title in regions.items()
    ]
    return markdown(["", "held-out photographs", "test photographs", "those without PolyU"], rows, (1, 2, 3))


def faults(found: dict[str, Any], sharp: dict[str, Any], markdown: Markdown) -> str:
    rows = [
        [
            name,
            *_row(found[name]),
            share(sharp[name]["precision"]),
            ", ".join(f"`{kind}`" for kind in members),
        ]
        for name, members in FAULTS.items()
    ]
    heads = [
        "fault",
        "copies",
        "told",
        "right",
        "precision",
        "recall",
        "precision without PolyU",
        "distortions",
    ]
    return markdown(heads, rows, range(1, 7))


def kinds(found: dict[str, Any], markdown: Markdown) -> str:
    rows = []
    for name, members in FAULTS.items():
        rows += [[f"{name}, probably {words}", f"`{kind}`", *_row(found[kind])]
                 for kind, words in members.items() if kind in found]  # fmt: skip
    return markdown(
        ["what is told", "of", "copies", "told", "right", "precision", "recall"], rows, range(2, 7)
    )


def confusion(found: dict[str, dict[str, int]], markdown: Markdown) -> str:
    """Kinds down, statements across; zeros are left out."""
    across = [*FAULTS, SILENT]
    order = [*(kind for members in FAULTS.values() for kind in members), CLEAN]
    rows = [
        [f"`{kind}`" if kind != CLEAN else "undamaged", *(str(found[kind].get(name, "")) for name in across)]
        for kind in order
    ]
    return markdown(["done \\ told", *across], rows, range(1, 1 + len(across)))


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _row(found: dict[str, Any]) -> list[str]:
    return [*(str(found[key]) for key in ("samples", "told", "right")),
            share(found["precision"]), share(found["recall"])]  # fmt: skip
