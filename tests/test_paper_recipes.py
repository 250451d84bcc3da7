"""Recipes of the paper's tables: what they say, and what is refused."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from qmamba.adapters import list_methods
from qmamba.data import DATASETS
from qmamba.errors import RecipeError
from qmamba.models import list_archs
from qmamba.train import load_recipe
from qmamba.train.paper import PaperRecipe, list_paper_recipes
from qmamba.train.paper.names import name_of, narrowed
from qmamba.train.paper.rows import cells_of
from qmamba.train.paper.runs import folder_of, runs_of
from qmamba.train.recipe_files import parse_recipe

ROWS = {  # rows of our networks in the paper's tables
    "table1": 6, "table2": 2, "table3": 5, "table5": 6, "table6": 2, "table7": 5, "public": 3,
    "agiqa3k": 2, "agiqa3k-transfer": 9, "agiqa3k-reverse": 5, "agiqa3k-universal": 2, "agiqa3k-prompts": 6,
    "agiqa3k-sizes": 5, "nano": 2, "loda": 2, "loda-small": 1,
}  # fmt: skip
HEAD = 'task = "single"\nname = "a"\narch = "lqmamba-n"\ndata = ["livec"]\n'


def recipe(name: str) -> PaperRecipe:
    loaded = load_recipe(name)
    assert isinstance(loaded, PaperRecipe)
    return loaded


def test_every_row_has_a_recipe() -> None:
    names = list_paper_recipes()
    counts = {table: sum(name.startswith(f"{table}/") for name in names) for table in ROWS}
    assert counts == ROWS and sum(counts.values()) == len(names)
    for name in names:
        plan = recipe(name)
        assert plan.arch in list_archs() and plan.title
        if name.startswith("table"):
            assert set(plan.sets) <= DATASETS.keys()
            assert (plan.splits, plan.epochs, plan.crops, plan.lr) == (10, 9, 10, 2e-4)
            assert plan.init_from == f"vmamba-{plan.arch[-1]}.pth"
            assert plan.paper or all(t.paper.keys() == set(t.targets) for t in plan.transfers)


@pytest.mark.parametrize("row", ["qmamba-t", "lqmamba-t"])
def test_averages_of_the_universal_task_agree(row: str) -> None:
    """Two tables print the same runs, as averages and set by set."""
    plcc, srcc = recipe(f"table2/{row}").paper["average"]
    cells = recipe(f"table6/{row}").paper.values()
    assert plcc == pytest.approx(statistics.mean(c[0] for c in cells), abs=1e-3)
    assert srcc == pytest.approx(statistics.mean(c[1] for c in cells), abs=1e-3)


@pytest.mark.parametrize(
    ("row", "average"),
    [("no-tuning", 0.642), ("linear-probe", 0.755), ("full", 0.908), ("style-prompt", 0.901)],
)
def test_averages_over_both_tables_of_transfer_agree(row: str, average: float) -> None:
    plans = [recipe(f"{table}/{row}") for table in ("table3", "table7")]
    values = [v for plan in plans for cell in cells_of(plan) for v in cell.paper or ()]
    assert len(values) == 24 and statistics.mean(values) == pytest.approx(average, abs=2e-3)


@pytest.mark.parametrize(
    ("row", "average"), [("qmamba-t", 0.893), ("lqmamba-s", 0.895), ("lqmamba-b", 0.896)]
)
def test_averages_of_the_first_table_agree(row: str, average: float) -> None:
    values = [v for pair in recipe(f"table1/{row}").paper.values() for v in pair]
    assert len(values) == 16 and statistics.mean(values) == pytest.approx(average, abs=2e-3)


def test_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        plan = PaperRecipe(
            task="single", name="a", arch="lqmamba-n", data=("livec",), schedule=schedule, warmup=0.05
        )
        return [plan.lr_at(step, 100, 2e-4) for step in range(900)]

    steps = rates("steps")
    assert steps[0] == pytest.approx(2e-4 / 45) and steps[44] == steps[299] == 2e-4  # 5 % of 900 steps
    assert steps[300] == steps[599] == pytest.approx(2e-5) and steps[600] == steps[899] == pytest.approx(2e-6)
    deiqt = rates("deiqt")
    assert deiqt[0] == pytest.approx(2e-4 / 300) and deiqt[299] == 2e-4  # a warm-up of three epochs
    assert deiqt[300:] == steps[300:]
    assert PaperRecipe(task="single", name="a", arch="lqmamba-n", data=("livec",)).schedule == "deiqt"


TRANSFER = 'task = "transfer"\nname = "a"\narch = "lqmamba-n"\nadapter = "none"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD.replace("single", "double"), "task must be one of single, universal, transfer, got 'double'"),
        (HEAD.replace("name", "nmae"), "unknown key 'nmae'"),
        (HEAD.replace('name = "a"\n', ""), "lacks 'name'"),
        (HEAD + "epochs = 2.5\n", "epochs must be of type int"),
        (HEAD + "epochs = 0\n", "epochs must be at least 1"),
        (HEAD + "crop = 16\n", "crop must be at least 32"),
        (HEAD + "lr = 0\n", "lr must be above 0"),
        (HEAD + 'schedule = "linear"\n', "schedule must be one of deiqt, steps, cosine, got 'linear'"),
        (HEAD + 'precision = "int8"\n', "precision must be one of"),
        (HEAD + 'convention = "random"\n', "convention must be one of deiqt, loda, own"),
        (HEAD + "batch = 7\naccumulate = 2\n", r"batch \(7\) must divide by accumulate"),
        (HEAD + "batch = 2\naccumulate = 2\n", "batch must be at least 4"),
        (
            HEAD + "losses = { mse = 1.0 }\n",
            "a loss must be one of smooth-l1, plcc, .*, squared-correlation, got 'mse'",
        ),
        (HEAD + "losses = { plcc = 0 }\n", "at least one with"),
        (HEAD + 'losses = { plcc = "much" }\n', "losses.plcc must be of type float, got 'much'"),
        (HEAD + "weights = { koniq10k = 2.0 }\n", "weights has 'koniq10k', which is not among"),
        (HEAD + "weights = { livec = 0.0 }\n", "weights of sets must be above 0"),
        (HEAD + "[paper]\nkoniq10k = [0.9, 0.9]\n", "paper has 'koniq10k'"),
        (HEAD + "[paper]\nlivec = [0.9]\n", r"paper.livec must be a list of 2 values, got \[0.9\]"),
        (HEAD + 'adapter = "full"\n', "neither .* nor an adapter"),
        (HEAD.replace('["livec"]', "[]"), "must have data"),
        (HEAD.replace('["livec"]', '["livec", "livec"]'), "each once"),
        (HEAD.replace('["livec"]', '"livec"'), "data must be of type list"),
        (HEAD + "split_by = { livec = 'scene' }\n", "split_by of a set must be one of image, reference"),
        (HEAD + "split_by = { koniq10k = 'image' }\n", "split_by has 'koniq10k', which is not among"),
        (HEAD + "held_out = 1.0\n", "held_out must be at least 0 and below 1"),
        (HEAD + "rates = [0.1]\n", "rates are for a transfer with an adapter"),
        (HEAD + "rates = ['a']\n", "rates must be of type float, got 'a'"),
        (TRANSFER, r"a transfer must have \[\[transfers\]\]"),
        (
            TRANSFER + '[[transfers]]\nfrom = ["livec"]\n',
            "transfers lacks 'to'; the keys are from, pa",
        ),
        (TRANSFER + '[[transfers]]\nfrom = ["livec"]\nto = []\n', "a set at both ends"),
    ],
)
def test_bad_recipes(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as raised:
        parse_recipe(text, "mine.toml")
    assert "\n" not in str(raised.value)


def test_public_rows_of_the_papers_tables() -> None:
    """Every method of Tables 3 and 8, and the ablations of Tables 9 and 10, beside the paper's AGIQA-3K."""
    rows = {n.split("/")[1]: recipe(n) for n in list_paper_recipes() if n.startswith("agiqa3k-transfer/")}
    for row in ("no-tuning", "linear-probe", "full", "style-prompt", "style-prompt-r"):
        (theirs,) = (t.paper["agiqa3k"] for t in recipe(f"table3/{row}").transfers if "livec" in t.sources)
        assert rows[row].transfers[0].paper == {"agiqa3k": theirs}
    assert {plan.adapter for plan in rows.values()} == {"none", *list_methods()}
    for name, plan in rows.items():
        assert plan.split_by == {"agiqa3k": "reference"} and plan.splits == 3
        assert name == "no-tuning" or (plan.rates and plan.held_out == 0.2)
    assert "crossattn-prompt" in rows
    tuned = runs_of(rows["style-prompt"], 0)
    for shared in ("agiqa3k-prompts/n6", "agiqa3k-sizes/1x1"):
        base, run = runs_of(recipe(shared), 0)
        assert folder_of(base, recipe(shared)) == folder_of(tuned[0], rows["style-prompt"])
        assert folder_of(run, recipe(shared)) == folder_of(tuned[1], rows["style-prompt"])
    assert recipe("agiqa3k-prompts/n1").adapter_options == {"prompts": 1}
    assert recipe("agiqa3k-sizes/layer").adapter_options == {"size": "layer"}
    for name in (n for n in list_paper_recipes() if n.startswith("agiqa3k-reverse/")):
        assert recipe(name).init_from == "lqmamba-n-pretrained"  # the embedded one has learnt BIQ2021
    single, public = (runs_of(recipe(f"{t}/single-set"), 0) for t in ("agiqa3k-universal", "public"))
    ours = {run.train: folder_of(run, recipe("agiqa3k-universal/single-set")) for run in single}
    assert all(ours[run.train] == folder_of(run, recipe("public/single-set")) for run in public)


def test_parts_of_rows() -> None:
    part = narrowed(recipe("table1/lqmamba-t"), "koniq")
    assert (part.data, part.name, set(part.paper)) == (("koniq10k",), "lqmamba-t-koniq", {"koniq10k"})
    assert narrowed(recipe("table1/lqmamba-t"), "koniq10k") == part
    (run,) = runs_of(part, 0)
    whole = recipe("table1/lqmamba-t")
    assert name_of(run, part) == name_of(run, whole) == "lqmamba-t-koniq"
    assert folder_of(run, part) == folder_of(run, whole)
    part = narrowed(recipe("table3/style-prompt"), "koniq-livec-to-agiqa")
    assert [(t.sources, t.targets) for t in part.transfers] == [(("koniq10k", "livec"), ("agiqa3k",))]
    base, run = runs_of(part, 0)
    assert [name_of(each, part) for each in (base, run)] == [
        "lqmamba-b-koniq-livec", "lqmamba-b-koniq-livec-to-agiqa",
    ]  # fmt: skip
    assert len(narrowed(recipe("table3/full"), "agiqa").transfers) == 2
    for name, wanted, says in (
        ("table1/lqmamba-t", "agiqa", "a part of the row must be one of live, csiq, .*, spaq; got 'agiqa'"),
        ("table3/full", "x", "must be one of koniq-livec-to-kadid, .*; got 'x'"),
        ("table2/lqmamba-t", "koniq", "lqmamba-t-universal learns all its sets together: leave /koniq out"),
    ):
        with pytest.raises(RecipeError, match=says):
            narrowed(recipe(name), wanted)
    sizes = recipe("agiqa3k-sizes/7x7")
    assert name_of(runs_of(sizes, 0)[1], sizes) == "lqmamba-n-biq2021-to-agiqa-style-prompt-size-7x7"
    none = recipe("agiqa3k-transfer/no-tuning")
    assert name_of(runs_of(none, 0)[1], none) == ""


def test_recipe_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TRANSFER + '[[transfers]]\nfrom = ["a", "b"]\nto = ["c"]\n')
    plan = recipe(str(tmp_path / "mine.toml"))
    assert plan.sets == ("a", "b", "c") and plan.convention == "deiqt" and plan.losses == {"smooth-l1": 1.0}
    assert [(cell.sources, cell.test, cell.paper) for cell in cells_of(plan)] == [(("a", "b"), "c", None)]
