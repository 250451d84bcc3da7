"""Recipes of the paper's tables: what they say, and what is refused."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from qmamba.data import DATASETS
from qmamba.errors import RecipeError
from qmamba.models import list_archs
from qmamba.train import load_recipe
from qmamba.train.paper import PaperRecipe, list_paper_recipes
from qmamba.train.paper.rows import cells_of
from qmamba.train.recipe_files import parse_recipe

ROWS = {  # rows of our networks in the paper's tables
    "table1": 6, "table2": 2, "table3": 5, "table5": 6, "table6": 2, "table7": 5, "public": 3,
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
        if not name.startswith("public/"):
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
        (HEAD + 'schedule = "cosine"\n', "schedule must be one of deiqt, steps"),
        (HEAD + 'precision = "int8"\n', "precision must be one of"),
        (HEAD + 'convention = "random"\n', "convention must be one of deiqt, loda, own"),
        (HEAD + "batch = 7\naccumulate = 2\n", r"batch \(7\) must divide by accumulate"),
        (HEAD + "batch = 2\naccumulate = 2\n", "batch must be at least 4"),
        (HEAD + "losses = { mse = 1.0 }\n", "a loss must be one of smooth-l1, plcc, ranking, got 'mse'"),
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


def test_recipe_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TRANSFER + '[[transfers]]\nfrom = ["a", "b"]\nto = ["c"]\n')
    plan = recipe(str(tmp_path / "mine.toml"))
    assert plan.sets == ("a", "b", "c") and plan.convention == "deiqt" and plan.losses == {"smooth-l1": 1.0}
    assert [(cell.sources, cell.test, cell.paper) for cell in cells_of(plan)] == [(("a", "b"), "c", None)]
