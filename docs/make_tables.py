"""Write the tables of what was measured into the README and pages of docs/, between their markers.

They come from the embedded model's config.json and from the files in benchmarks/results, which the scripts in
benchmarks/ have written. `make docs-figures` runs this, too.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import fault_tables
from speed_tables import NOT_MEASURED, loda_speed, loda_training, markdown, parts, peaks, times

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "src" / "qmamba" / "weights" / "lqmamba-n" / "config.json"
ADAPTERS = ROOT / "src" / "qmamba" / "weights" / "adapters"
RESULTS = ROOT / "benchmarks" / "results"

METRICS = {
    "srcc": "SRCC",
    "plcc": "PLCC, raw",
    "plcc_fitted": "PLCC, after the logistic fit",
    "krcc": "KRCC",
    "rmse": "RMSE, raw",
    "rmse_fitted": "RMSE, after the logistic fit",
}
FOLDS = ("BIQ2021 val fold", "BIQ2021 test fold")
UNSEEN = (
    "AGIQA-3K, even prompt numbers",
    "video stills, eight of 38 videos",
    "super-resolved images, three of thirteen scenes",
    "KADID scale, 40 photographs",
)
POLYU = "PolyU pairs, clean and noisy, never trained on"
KINDS_OF_IMAGES = {  # by the key in the results of the model
    "BIQ2021 test fold": "photographs of cameras and phones, 512×512",
    "video stills, eight of 38 videos": "stills of compressed video",
    "AGIQA-3K, even prompt numbers": "generated images",
    "super-resolved images, three of thirteen scenes": "output of super-resolution",
    "KADID scale, 40 photographs": "photographs with one synthetic distortion",
    POLYU: "a photograph and a noisy shot of it",
}
SETS = {
    "BIQ2021 test fold": "biq2021 test",
    "ss01": "  ss01",
    "ss02": "  ss02",
    "ss03": "  ss03",
    "video stills": "video",
    "super-resolved": "sr",
}
DOMAINS = {"stills": "video stills", "upscaled": "super-resolved", "synthetic": "synthetic"}
SEEDS = 3  # divisions of each
ABLATED = "stills"  # the domain of Tables 9 and 10
KINDS = {  # of rows of the generality bench
    "left out": "a domain left out",
    "probe": "fitted on BIQ2021",
    "score": "own score",
    "trained without": "own score, trained without the domain",
}
BASE = "lite0, left out"
MODELS = {"lite0": "Lite0", "lite0-ensemble": "Lite0, ensemble"}
SIGNALS = {"sides": "two sizes", "heads": "eight heads", "distance": "distance"}
WITHIN = {"agiqa3k": "within generators", "srij": "within methods", "kadid-scale": "within kinds"}
PEERS = {"ridge on Lite0": "lite0-ridge", "tuned Lite0": "lite0-tuned", "BRISQUE": "brisque", "NIQE": "niqe"}


def main() -> None:
    for page, tables in rendered().items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, table in tables.items():
            text = replaced(text, name, table)
        (ROOT / page).write_text(text, encoding="utf-8")


def rendered() -> dict[str, dict[str, str]]:
    """Tables by page, by the name of their markers."""
    measured = json.loads(MODEL.read_text(encoding="utf-8"))["results"]
    beside, adapters, generality, speed, confidence, faults = (
        json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("accuracy", "adapters", "generality", "speed", "confidence", "faults")
    )
    return {
        "README.md": {
            "model": model_row(measured["BIQ2021 test fold"]),
            "domains": limits_table(measured),
        },
        "docs/default-model.md": {"model": model_tables(measured), "accuracy": comparison(beside)},
        "docs/adapters.md": {
            "shipped": shipped(),
            "srcc": methods_table(adapters, "srcc"),
            "plcc": methods_table(adapters, "plcc"),
            "elsewhere": elsewhere(adapters),
            "prompts": ablation(adapters, "9", "prompts"),
            "sizes": ablation(adapters, "10", "size of a prompt"),
            "rates": rates(adapters[ABLATED]),
            "cost": cost_table(adapters["cost"]),
        },
        "docs/generality.md": {
            "default": domains_table(generality, "lqmamba-n, score"),
            "rows": rows_table(generality),
            "within": within_table(generality),
            "confidence": confidence_table(confidence, generality["domains"]),
        },
        "docs/limits.md": {"domains": limits_table(measured)},
        "docs/reasons.md": fault_tables.tables(faults, markdown),
        "docs/speed.md": {
            "times": times(speed["models"]),
            "memory": peaks(speed["memory"]),
            "parts": parts(speed["parts"]),
            "loda": loda_speed(measured_or_none("speed_loda")),
        },
        "docs/loda.md": {"training": loda_training(measured_or_none("loda_training"))},
    }


def measured_or_none(name: str) -> dict[str, Any] | None:
    """Return a result file, None where nothing has been measured."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def replaced(text: str, name: str, table: str) -> str:
    """The page with a table in place of what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text, count = between.subn(lambda found: f"{found[1]}{table}\n{found[2]}", text)
    if count != 1:
        raise SystemExit(f"a page has {count} pairs of markers <!-- {name} -->; there must be one")
    return text


def model_row(test: dict[str, Any]) -> str:
    return markdown(
        ["name", "arch", "size", "trained on", "SRCC, BIQ2021 test fold", "PLCC", "protocol"],
        [
            [
                "`lqmamba-n` (embedded, default)",
                "`lqmamba-n`",
                "6.8 MB",
                "opinions of BIQ2021, AGIQA-3K, stills and super-resolved images; KADID's scale",
                interval(test, "srcc"),
                interval(test, "plcc"),
                "the whole image at 448² and 480² pixels",
            ],
            [
                "none: [train or convert one](docs/loda.md)",
                "`loda`",
                "36 MB, and 437 MB of base models",
                "",
                NOT_MEASURED,
                NOT_MEASURED,
                "15 random crops of 224² pixels",
            ],
        ],
        numbers=(2, 4, 5),
    )


def model_tables(measured: dict[str, Any]) -> str:
    heads = ["95 % bootstrap intervals", *(f"{fold} ({measured[fold]['n']})" for fold in FOLDS)]
    rows = [[title, *(interval(measured[fold], key) for fold in FOLDS)] for key, title in METRICS.items()]
    unseen = [
        [
            title,
            str(measured[title]["n"]),
            interval(measured[title], "srcc"),
            interval(measured[title], "plcc_fitted"),
        ]
        for title in UNSEEN
    ]
    heads_unseen = ["images not trained on", "images", "SRCC", METRICS["plcc_fitted"]]
    return f"{markdown(heads, rows, (1, 2))}\n\n{markdown(heads_unseen, unseen, (1, 2, 3))}"


def limits_table(measured: dict[str, Any]) -> str:
    """The kinds of images that the embedded model was measured on, none of which it was trained on."""
    rows = []
    for key, kind in KINDS_OF_IMAGES.items():
        found = measured[key]
        if isinstance(found, str):
            rows.append([kind, key, "", found])
        else:
            rows.append([kind, key, str(found["n"]), f"SRCC {interval(found, 'srcc')}"])
    rows.append(
        ["screenshots, drawings, scans, medical or satellite images", "", "", "unknown: a score is a guess"]
    )
    return markdown(["kind of images", "measured on", "images", "agreement with people"], rows, (2,))


def comparison(beside: dict[str, Any]) -> str:
    heads = ["", "images", "`lqmamba-n`", *PEERS]
    heads.insert(4, "`lqmamba-n` over the ridge")
    rows = []
    for title, key in SETS.items():
        row = beside[key]
        mine = row[ours(row)]
        cells = [
            title,
            str(row["n"]),
            interval(mine, "srcc"),
            *(interval(row[p], "srcc") for p in PEERS.values()),
        ]
        cells.insert(4, gain(mine))
        rows.append(cells)
    return markdown(heads, rows, range(1, len(heads)))


def ours(row: dict[str, Any]) -> str:
    """The model's key in a set's results: its name, and a mark of its weights and protocol."""
    (key,) = (key for key in row if key.startswith("lqmamba-n "))
    return key


def shipped() -> str:
    """The adapters in the package, by their configs."""
    rows = []
    for file in sorted(ADAPTERS.glob("*/adapter_config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        before, after = config["results"].values()
        rows.append(
            [
                f"`{file.parent.name}`",
                ", ".join(config["trained_on"]),
                str(after["n"]),
                interval(before, "srcc"),
                interval(after, "srcc"),
                interval(after, "plcc"),
            ]
        )
    heads = [
        "name",
        "trained on",
        "tested on",
        "SRCC of `lqmamba-n`",
        "SRCC with the adapter",
        "PLCC with it",
    ]
    return markdown(heads, rows, (2, 3, 4, 5))


def methods_table(adapters: dict[str, Any], metric: str) -> str:
    """Tables 3 and 8 of the paper: means over the seeds in each domain, and over the domains."""
    found = {domain: adapters[domain]["3"] | adapters[domain]["8"] for domain in DOMAINS}
    methods = list(next(iter(found.values())))

    def row(title: str, trained: str, rate: str, key: str, method: str) -> list[str]:
        means = [statistics.mean(found[domain][method][key]) for domain in DOMAINS]
        return [title, trained, rate, *(f"{m:.3f}" for m in (*means, statistics.mean(means)))]

    rows = [row("no tuning", "0", "", f"{metric}_before", methods[0])]
    for method in methods:
        how = next(iter(found.values()))[method]
        rows.append(row(f"`{method}`", f"{how['trained']:,}", f"{how['lr']:g}", f"{metric}_after", method))
    heads = [metric.upper(), "trained", "learning rate", *DOMAINS.values(), "mean"]
    if metric == "srcc":  # the seconds once
        heads.append("minutes")
        for cells, method in zip(rows, (None, *methods), strict=True):
            taken = [s for d in DOMAINS for s in found[d][method]["seconds"]] if method else [0.0]
            cells.append(f"{statistics.median(taken) / 60:.1f}")
    return markdown(heads, rows, range(1, len(heads)))


def elsewhere(adapters: dict[str, Any]) -> str:
    """Methods at other learning rates than their own, where all divisions have been measured."""
    rows = []
    for table, methods in adapters[ABLATED].items():
        if ", lr " not in table:
            continue
        for method in methods:
            found = [adapters[domain].get(table, {}).get(method) for domain in DOMAINS]
            if all(row and len(row["seeds"]) == SEEDS for row in found):
                means = [statistics.mean(row["srcc_after"]) for row in found]
                cells = [f"{m:.3f}" for m in (*means, statistics.mean(means))]
                rows.append([f"`{method}`", f"{found[0]['lr']:g}", *cells])
    rows.sort()
    return markdown(["SRCC", "learning rate", *DOMAINS.values(), "mean"], rows, range(1, 6))


def ablation(adapters: dict[str, Any], table: str, head: str) -> str:
    """Table 9 or 10 of the paper."""
    rows = [
        [
            name.removeprefix("N=")
            .strip("()")
            .replace(", ", "×")
            .replace("layer", "the stage's output at 224²"),
            f"{row['trained']:,}",
            f"{statistics.mean(row['srcc_after']):.3f}",
            f"{statistics.mean(row['plcc_after']):.3f}",
        ]
        for name, row in adapters[ABLATED][table].items()
    ]
    return markdown([head, "trained", "SRCC", "PLCC"], rows, (1, 2, 3))


def rates(tables: dict[str, Any]) -> str:
    """Methods at several learning rates, by what the held-out part says: the first seed of each."""
    found = {
        (method, row["lr"]): row
        for table, rows in tables.items()
        if table.partition(",")[0] in ("3", "8")
        for method, row in rows.items()
        if "srcc_held_out" in row
    }
    rows = [
        [f"`{method}`", f"{rate:g}", *(f"{row[key][0]:.3f}" for key in ("srcc_held_out", "srcc_after"))]
        for (method, rate), row in sorted(found.items())
    ]
    return markdown(["", "learning rate", "SRCC, held out", "SRCC, tested"], rows, (1, 2, 3))


def cost_table(cost: dict[str, Any]) -> str:
    """What each method costs beside the plain network, and beside full tuning."""
    whole = cost["full"]
    rows = [
        [
            f"`{method}`",
            f"{row['trained']:,}",
            f"{row['stored']:,}",
            f"{row['forward']:.3f}",
            f"{row['step_seconds'] / whole['step_seconds']:.2f}",
            f"{row['step_mb'] / whole['step_mb']:.2f}",
        ]
        for method, row in cost.items()
    ]
    heads = ["", "trained", "stored", "forward ÷ plain", "time of a step ÷ `full`", "memory ÷ `full`"]
    return markdown(heads, rows, range(1, 6))


def domains_table(report: dict[str, Any], name: str) -> str:
    """Return a row of results beside the base row, domain by domain."""
    ours, base = (report["rows"][row] for row in (name, BASE))
    rows = []
    for key, domain in report["domains"].items():
        mine, theirs = ours["domains"][key], base["domains"][key]
        title = domain["title"] + (" (trained on)" if mine["trained"] else "")
        cells = [title, str(domain["n"]), str(domain["contents"])]
        rows.append([*cells, interval(theirs, "srcc"), interval(mine, "srcc"), gain(mine)])
    for title, key in (("mean", "mean"), ("mean without BIQ2021", "mean_elsewhere")):
        rows.append(
            [title, "", "", interval(base[key], "srcc"), interval(ours[key], "srcc"), gain(ours[key])]
        )
    heads = ["SRCC", "images", "contents", "ridge on Lite0", f"`{ours['model']}`", "difference"]
    return markdown(heads, rows, range(1, 6))


def rows_table(report: dict[str, Any]) -> str:
    """All models in all domains; a star marks what a model was trained on."""
    rows = []
    for kind, title in KINDS.items():
        for row in report["rows"].values():
            if row["kind"] == kind:
                found = [row["domains"].get(key) for key in report["domains"]]
                found += [row.get(key) for key in ("mean", "mean_elsewhere")]
                rows.append([title, model_title(row), *map(starred, found)])
    heads = ["SRCC", "statistics or model", *(domain["title"] for domain in report["domains"].values())]
    return markdown([*heads, "mean", "without BIQ2021"], rows, range(2, 2 + len(report["domains"]) + 2))


def confidence_table(report: dict[str, Any], domains: dict[str, Any]) -> str:
    """Agreement of signals of doubt with the error, and how far a domain's signals are above BIQ2021's."""
    rows = []
    for key, found in report["domains"].items():
        signals = found["signals"]
        cells = [f"{signals[name]['with_error']:+.3f}" for name in SIGNALS]
        cells += [f"{signals[name]['over_fitted']:.2f}" for name in SIGNALS]
        rows.append([domains[key]["title"], f"{found['srcc']:.3f}", *cells])
    medians = [f"{title}, median ÷ BIQ2021's" for title in SIGNALS.values()]
    heads = ["", "SRCC with people", *(f"{title}, SRCC with the error" for title in SIGNALS.values())]
    return markdown([*heads, *medians], rows, range(1, 2 + 2 * len(SIGNALS)))


def within_table(report: dict[str, Any]) -> str:
    """Mean agreement within parts of domains, and PolyU's crops and whole photographs apart."""
    rows = []
    for row in report["rows"].values():
        if all(key in row["domains"] for key in (*WITHIN, "polyu")):
            parts = {key: row["domains"][key]["parts"] for key in (*WITHIN, "polyu")}
            values = [statistics.mean(parts[key].values()) for key in WITHIN]
            values += [parts["polyu"]["crop"], parts["polyu"]["camera"]]
            rows.append([KINDS[row["kind"]], model_title(row), *(f"{value:.3f}" for value in values)])
    titles = [f"{report['domains'][key]['title']}, {within}" for key, within in WITHIN.items()]
    heads = ["mean SRCC", "statistics or model", *titles, "PolyU, crops", "PolyU, whole"]
    return markdown(heads, rows, range(2, 7))


def model_title(row: dict[str, Any]) -> str:
    return MODELS.get(row["model"], f"`{row['model']}`")


def starred(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{found['srcc']:.3f}" + (" *" if found.get("trained") else "")


def gain(row: dict[str, Any]) -> str:
    return "{gain:+.3f} ({gain_low:+.3f} to {gain_high:+.3f})".format(**row)


def interval(row: dict[str, Any], metric: str) -> str:
    return f"{row[metric]:.3f} ({row[f'{metric}_low']:.3f} to {row[f'{metric}_high']:.3f})"


if __name__ == "__main__":
    main()
