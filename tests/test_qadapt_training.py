"""Q-Adapt's two stages on the one engine, with a tiny large multi-modal model: from JSON to answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="q-adapt needs transformers: pip install 'qmamba[explain]'")
pytest.importorskip("peft", reason="q-adapt needs peft: pip install 'qmamba[explain]'")
pytest.importorskip("accelerate", reason="training needs accelerate: pip install 'qmamba[train]'")

import qmamba
from qmamba.cli import app
from qmamba.errors import DataSetError, RecipeError
from qmamba.models import BaseWeights
from qmamba.models.capabilities import IMAGE
from qmamba.models.qadapt import is_stored
from qmamba.scoring import LanguageScorer
from qmamba.scoring.vocabulary import Vocabulary
from qmamba.train import WordsRecipe, load_recipe, read_conversations, train_words
from qmamba.train.words.conversations import IGNORED, Turn, as_tokens, collated
from tiny_lmm import (
    BASES,
    COMMIT,
    REPO,
    TINY,
    TOKENIZERS,
    instruction_tokenizer,
    language_tokenizer,
    offline_cache,
    tiny_network,
)
from tiny_scorer import photo

STARTS = (BaseWeights(REPO, COMMIT, "qformer.safetensors", "", "generator."),)
ANSWERS = (
    "The image is sharp.",
    "The image is blurred.",
    "The photo is dark and noisy.",
    "The quality is good.",
)


def recipe(stage: int, **changes: Any) -> WordsRecipe:
    options: dict[str, Any] = {
        "name": f"tiny-stage{stage}", "stage": stage, "overrides": TINY if stage == 1 else {}, "epochs": 4,
        "batch": 4, "lr": 1e-2, "precision": "float32", "checkpointing": False, "dtype": "float32",
        "length": 128, "bases": BASES, "starts": STARTS, "tokenizers": TOKENIZERS,
    }  # fmt: skip
    return WordsRecipe(**{**options, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images and q-instruct.json, and the base in the Hub's cache."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("words")
    with pytest.MonkeyPatch.context() as patch:
        cache = offline_cache(folder, patch)
        network = tiny_network(7)
        qformer = {
            f"qformer.{name}": p.contiguous() for name, p in network.generator.qformer.state_dict().items()
        }
        qformer["query_tokens"] = network.generator.queries.detach() * 3
        qformer |= {
            f"vision_model.post_layernorm.{leaf}": torch.full((24,), 0.5) for leaf in ("weight", "bias")
        }
        save_file(qformer, next(cache.rglob("tokenizer.json")).with_name("qformer.safetensors"))
        (folder / "images").mkdir()
        entries = []
        for i in range(8):
            Image.fromarray(photo(30 + i, 40, i)).save(folder / "images" / f"{i}.png")
            turns = [
                {"from": "human", "value": "<image>\nIs it sharp?" if i % 2 else "Is it sharp?\n<image>"},
                {"from": "gpt", "value": ANSWERS[i % 4]},
            ]
            if i % 4 == 3:
                turns += [{"from": "human", "value": "Is it dark?"}, {"from": "gpt", "value": "It is not."}]
            entries.append({"id": i, "image": f"{i}.png", "conversations": turns})
        (folder / "q-instruct.json").write_text(json.dumps(entries))
        yield folder


@pytest.fixture(scope="module")
def conversations(root: Path) -> Any:
    return read_conversations(root / "q-instruct.json", root / "images")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    network = tiny_network()
    tokenizers = {"language": language_tokenizer(), "instruction": instruction_tokenizer()}
    return Vocabulary(tokenizers, network.dialogue, network)


# Reading


def test_conversations_are_read(conversations: Any, root: Path) -> None:
    assert len(conversations) == 8 and conversations[0].path == root / "images" / "0.png"
    assert conversations[0].turns == (Turn("Is it sharp?", "The image is sharp."),)
    assert conversations[3].turns[1] == Turn("Is it dark?", "It is not.")


GOOD = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "is not valid JSON"), ("{}", "must hold a list"), ("[]", "must hold a list"),
        ("[1]", "entry 0 must be an object"),
        ([{"id": "a", "image": "/x.png", "conversations": GOOD}], r"entry 0 \(id 'a'\): image must be"),
        ([{"image": "../x.png", "conversations": GOOD}], "image must be a path below"),
        ([{"image": "x.png", "conversations": GOOD[:1]}], "conversations must be a list"),
        ([{"image": "x.png", "conversations": GOOD[::-1]}], "part 0 must be from 'human'"),
        ([{"image": "x.png", "conversations": GOOD * 2}], "<image> must be in the first question"),
        ([{"image": "x.png", "conversations": [{**GOOD[0], "value": "Q"}, GOOD[1]]}], "<image> must be"),
        ([{"image": "x.png", "conversations": [GOOD[0], {**GOOD[1], "value": " "}]}], "not be empty"),
        ([{"image": "x.png", "conversations": GOOD}], r"x\.png of .* do not exist"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(tmp_path: Path, content: Any, line: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataSetError, match=line) as caught:
        read_conversations(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_only_answers_and_their_ends_are_learned(vocabulary: Vocabulary) -> None:
    turns = (Turn("Is it sharp?", "The image is sharp."), Turn("Is it dark?", "It is not."))
    tokens, labels = as_tokens(turns, vocabulary, 256)
    learned = [token for token, label in zip(tokens, labels, strict=True) if label != IGNORED]
    assert [label for label in labels if label != IGNORED] == learned
    stop = vocabulary.stop
    expected = [vocabulary.ids(f" {turn.answer}") for turn in turns]
    assert learned == [*expected[0], stop, *expected[1], stop]  # though this token pads, too
    assert tokens.count(IMAGE) == 4 and labels[tokens.index(IMAGE)] == IGNORED
    prompt = vocabulary.prompt("Is it sharp?")[0].tolist()
    assert tokens[: len(prompt)] == prompt  # an answer is asked for as it was learned


def test_a_conversation_without_room_is_refused(conversations: Any, vocabulary: Vocabulary) -> None:
    with pytest.raises(DataSetError, match=r"0\.png leaves no room for an answer in 20 tokens"):
        collated([torch.zeros(3, 28, 28)], conversations[:1], vocabulary, 20)


def test_every_turn_has_an_instruction_of_its_image(conversations: Any, vocabulary: Vocabulary) -> None:
    batch = collated([torch.zeros(3, 28, 28)] * 4, conversations[:4], vocabulary, 256)
    assert batch.owners.tolist() == [0, 1, 2, 3, 3] and len(batch.instructions.tokens) == 5
    assert batch.tokens.shape == batch.labels.shape == batch.mask.shape
    assert batch.mask.sum(1).max() == batch.mask.shape[1] > batch.mask.sum(1).min()


# Recipes


def test_shipped_recipes_are_the_published_training() -> None:
    for stage in (1, 2):
        plan = load_recipe(f"q-adapt-stage{stage}")
        assert isinstance(plan, WordsRecipe) and plan.stage == stage
        assert (plan.batch, plan.epochs, plan.lr, plan.warmup) == (32, 1, 2e-4, 0.03)
        assert (plan.weight_decay, plan.length, plan.precision, plan.checkpointing) == (
            0,
            2048,
            "bfloat16",
            True,
        )
        assert plan.steps_for(1000) == 32 and plan.overrides == {}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"stage": 3}, "stage must be 1 or 2"), ({"accumulate": 3}, "batch must divide by accumulate"),
        ({"lr": 0}, "lr must be"), ({"warmup": 1}, "warmup must be"), ({"dtype": "int8"}, "dtype must be"),
        ({"optimiser": "muon"}, "optimiser must be 'adamw'"), ({"batch": 0}, "batch must be"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        recipe(**{"stage": 1, **changes})


# Training


@pytest.fixture(scope="module")
def stage1(root: Path, conversations: Any) -> Path:
    return train_words(recipe(1), conversations, root / "stage1")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_stage_1_stores_lora_and_the_projector(stage1: Path) -> None:
    tensors = stored(stage1)
    assert tensors.keys() == {name for name in tiny_network(stage=1).state_dict() if is_stored(name)}
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())  # LoRA's second factors started at zero
    config = json.loads((stage1 / "config.json").read_text())
    assert config["overrides"]["stage"] == 1 and config["trained_on"] == ["q-instruct"]
    state = torch.load(stage1.parent / "state.pt", weights_only=True)
    assert {name.replace("-", ".") for name in state["network"]} == {
        name for name, _ in tiny_network(stage=1).trained()
    }


def test_stage_2_keeps_lora_and_trains_the_prompt(root: Path, conversations: Any, stage1: Path) -> None:
    folder = train_words(recipe(2, epochs=2), conversations, root / "stage2", init=stage1)
    before, after = stored(stage1), stored(folder)
    lora = [name for name in before if ".lora_" in name]
    assert lora and all(torch.equal(before[name], after[name]) for name in lora)
    trained = {name for name, _ in tiny_network().trained()}
    start = tiny_network(7).state_dict()
    for name, tensor in after.items():
        if name.startswith("generator.qformer."):
            assert torch.equal(tensor, start[name]) is (name not in trained), name
    assert (
        after["generator.queries"] - start["generator.queries"] * 3
    ).abs().max() < 0.1  # from the start's file
    assert (after["generator.norm.weight"] - 0.5).abs().max() < 0.1
    scorer = qmamba.load(folder)
    assert isinstance(scorer, LanguageScorer) and 0 < scorer.score(photo(40, 60)) < 1
    assert isinstance(scorer.answer(photo(40, 60), "Is it sharp?", max_tokens=8), str)
    assert scorer.trained_on == ("q-instruct",) and scorer.config.overrides["stage"] == 2


def test_eight_conversations_can_be_overfitted(root: Path, conversations: Any) -> None:
    losses: list[float] = []
    plan = recipe(1, epochs=60, batch=8, lr=2e-2, warmup=0.1)
    folder = train_words(
        plan, conversations, root / "overfitted", report=lambda event: losses.append(event["loss"])
    )
    assert losses[-1] < 0.1 * losses[0], (losses[0], losses[-1])
    scorer = qmamba.load(folder)
    assert scorer.answer([c.path for c in conversations], "Is it sharp?") == [
        c.turns[0].answer for c in conversations
    ]


def test_a_killed_run_resumes_to_the_same_numbers(root: Path, conversations: Any, stage1: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(event: dict[str, Any]) -> None:
        if event["step"] == 3:
            raise KilledError

    plan = recipe(2, epochs=3, accumulate=2)
    whole = train_words(plan, conversations, root / "whole", init=stage1)
    with pytest.raises(KilledError):
        train_words(plan, conversations, root / "killed", init=stage1, report=kill)
    assert not (root / "killed" / "checkpoint").exists()
    steps: list[int] = []
    resumed = train_words(
        plan, conversations, root / "killed", init=stage1, report=lambda event: steps.append(event["step"])
    )
    assert steps == [4, 5, 6]
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(RecipeError, match="another recipe or other data"):
        train_words(recipe(2, epochs=4), conversations, root / "killed", init=stage1)


def test_checkpointing_and_bfloat16_train(root: Path, conversations: Any) -> None:
    plain: list[float] = []
    less: list[float] = []
    low: list[float] = []
    for losses, changes in (
        (plain, {}), (less, {"checkpointing": True}), (low, {"checkpointing": True, "precision": "bfloat16"}),
    ):  # fmt: skip
        out = root / f"run{len(plain)}{len(less)}"
        plan = recipe(1, epochs=1, **changes)
        train_words(plan, conversations, out, report=lambda event, found=losses: found.append(event["loss"]))
    assert less == pytest.approx(plain, abs=1e-5)
    assert low == pytest.approx(plain, rel=0.05) and low != plain


def test_the_projector_learns_at_a_tenth_of_the_rate() -> None:
    from qmamba.train.optimisers import LR_SCALE, parameter_groups
    from qmamba.train.words.network import Trained

    network = tiny_network(stage=1)
    groups = parameter_groups(Trained(network), torch.nn.ModuleList(), 0.1)
    scaled = [p for group in groups if group.get(LR_SCALE) == 0.1 for p in group["params"]]
    assert {id(p) for p in scaled} == {id(p) for p in network.lmm.model.multi_modal_projector.parameters()}
    rest = [p for group in groups if LR_SCALE not in group for p in group["params"]]
    assert len(rest) + len(scaled) == len(list(network.trained()))


@pytest.mark.parametrize(
    ("stage", "given", "line"),
    [(2, None, "must start from a checkpoint of stage 1"), (1, "lqmamba-n", "must be a 'q-adapt'")],
)
def test_a_wrong_start_is_one_line(
    root: Path, conversations: Any, tmp_path: Path, stage: int, given: str | None, line: str
) -> None:
    with pytest.raises(RecipeError, match=line):
        train_words(recipe(stage), conversations, tmp_path, init=given)


# The command


def test_train_by_the_command(root: Path, tmp_path: Path) -> None:
    tables = "\n".join(
        f"[[{key}]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in vars(each).items())
        for key, records in (("bases", BASES), ("tokenizers", TOKENIZERS)) for each in records
    )  # fmt: skip
    plan = tmp_path / "mine.toml"
    plan.write_text(
        'stage = 1\nname = "mine"\nbatch = 8\nprecision = "float32"\nlength = 128\n'
        f"[overrides]\nrank = 2\nbase = {inline(TINY['base'])}\n{tables}\n"
    )
    words = [
        "train",
        plan,
        "--data",
        root / "q-instruct.json",
        "--images",
        root / "images",
        "--out",
        tmp_path / "out",
    ]
    done = CliRunner().invoke(app, [*map(str, words), "--no-progress"])
    assert done.exit_code == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "out" / "checkpoint"
    missing = CliRunner().invoke(
        app, ["train", "q-adapt-stage2", "--data", "gone.json", "--out", str(tmp_path)]
    )
    assert missing.exit_code == 2 and "gone.json cannot be read" in missing.stderr
    wrong = CliRunner().invoke(app, [*map(str, words), "--arch", "loda"])
    assert wrong.exit_code == 2 and "takes no --teacher and no --arch" in wrong.stderr


def inline(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def test_a_recipe_of_ratings_does_not_take_it(tmp_path: Path) -> None:
    from qmamba.train import Phase, Recipe, train
    from rated_photos import rated_photos

    plan = Recipe(name="a", arch="q-adapt", phases=(Phase(32, 1),))
    with pytest.raises(RecipeError, match="learns words, no ratings"):
        train(plan, rated_photos(tmp_path / "photos"), tmp_path)
