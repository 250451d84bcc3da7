"""The language scorer: numbers and words of a tiny large multi-modal model, and its commands."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="q-adapt needs transformers: pip install 'qmamba[explain]'")
pytest.importorskip("peft", reason="q-adapt needs peft: pip install 'qmamba[explain]'")

import qmamba
from qmamba.analysis.qbench import Agreement, Answered, answer_questions, score_sets
from qmamba.cli import app
from qmamba.data.questions import Question, read_llvisionqa
from qmamba.errors import ArgumentError, CapabilityError, CheckpointError, DataSetError, ImageError
from qmamba.integrations.onnx import export_onnx
from qmamba.metrics import evaluate
from qmamba.models.capabilities import IMAGE
from qmamba.scoring import LanguageScorer, Scorer
from qmamba.scoring.vocabulary import Vocabulary, padded
from tiny_lmm import instruction_tokenizer, language_tokenizer, offline_cache, tiny_network, write_checkpoint
from tiny_scorer import encode, photo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("words")
        offline_cache(root, patch)
        write_checkpoint(root / "model")
        yield root / "model"


@pytest.fixture(scope="module")
def scorer(folder: Path) -> LanguageScorer:
    found = qmamba.load(folder)
    assert isinstance(found, LanguageScorer)
    return found


@pytest.fixture
def vocabulary() -> Vocabulary:
    tokenizers = {"language": language_tokenizer(), "instruction": instruction_tokenizer()}
    network = tiny_network()
    return Vocabulary(tokenizers, network.dialogue, network)


# Tokens


def test_a_prompt_has_places_for_the_visual_tokens(vocabulary: Vocabulary) -> None:
    tokens = vocabulary.prompt("Is it sharp?", " The quality of the image is")[0].tolist()
    assert [token for token in tokens if token == IMAGE] == [IMAGE] * 4
    after = tokens[tokens.index(IMAGE) + 4 :]
    assert vocabulary.text(after) == "\nIs it sharp? ASSISTANT: The quality of the image is"
    assert vocabulary.text(tokens[: tokens.index(IMAGE)]).endswith(" USER:[UNK]")  # its last space


def test_instructions_are_padded_and_lose_their_beginning(vocabulary: Vocabulary) -> None:
    ids, mask = vocabulary.instructions(["is it sharp", "dark", "dark " * 30 + "image"])
    words = vocabulary.instruction.id_to_token
    assert [words(i) for i in ids[0].tolist()] == ["[CLS]", "is", "it", "sharp", "[SEP]", *["[PAD]"] * 7]
    assert [words(i) for i in ids[2].tolist()] == ["[CLS]", *["dark"] * 9, "image", "[SEP]"]
    assert mask.sum(1).tolist() == [5, 3, 12]


def test_a_word_of_several_tokens_is_refused(vocabulary: Vocabulary) -> None:
    assert vocabulary.single(" good") == 2
    for word in (" good poor", " unheard"):
        with pytest.raises(CheckpointError, match="must be one token"):
            vocabulary.single(word)


def test_pieces_are_the_whole_text(vocabulary: Vocabulary) -> None:
    ids = vocabulary.ids(" The image is good.")
    pieces = list(vocabulary.pieces(ids))
    assert "".join(pieces) == "The image is good." and len(pieces) == len(ids)


def test_a_character_of_several_tokens_comes_whole(vocabulary: Vocabulary) -> None:
    vocabulary.text = lambda ids: bytes(ids).decode("utf-8", "replace")  # type: ignore[method-assign]
    assert list(vocabulary.pieces(" é!".encode())) == ["é", "!"]


def test_padding_of_nothing_has_a_shape() -> None:
    assert padded([], 0).shape == (0, 0) and padded([[], []], 0).shape == (2, 0)


# Numbers


def test_a_score_is_the_share_of_good(scorer: LanguageScorer) -> None:
    image = photo(40, 60)
    tokens = scorer.vocabulary.prompt("Rate the quality of the image.", " The quality of the image is")
    ids, mask = scorer.vocabulary.instructions(["Rate the quality of the image."])
    pixels = torch.from_numpy(image).movedim(2, 0)[None] / 255
    with torch.no_grad():
        logits = scorer.network(
            scorer.config.preprocessing(pixels), tokens, instructions=ids, instruction_mask=mask,
            owners=torch.zeros(1, dtype=torch.int64),
        )[0, -1]  # fmt: skip
    good, poor = logits[[2, 3]].softmax(0).tolist()
    assert scorer.score(image) == pytest.approx(good, abs=1e-5)
    assert 0.01 < good < 0.99 and good + poor == pytest.approx(1)


def test_a_score_of_levels_is_their_mean(folder: Path) -> None:
    scorer, image = qmamba.load(folder), photo(40, 60)
    assert isinstance(scorer, LanguageScorer)
    shares = scorer.level_shares(image)
    assert list(shares) == ["excellent", "good", "fair", "poor", "bad"]
    assert sum(shares.values()) == pytest.approx(1)
    pair = scorer.score(image)
    scorer.reading = "levels"
    mean = sum(share * level for share, level in zip(shares.values(), (1, 0.75, 0.5, 0.25, 0), strict=True))
    assert scorer.score(image) == pytest.approx(mean, abs=1e-5) != pair
    scorer.reading = "stars"  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match="reading must be one of 'pair', 'levels'"):
        scorer.score(image)


def test_many_images_have_the_scores_they_have_alone(scorer: LanguageScorer) -> None:
    images = [photo(40, 60, 1), encode(photo(90, 30, 2)), photo(28, 28, 3)]
    alone = [scorer.score(image) for image in images]
    assert scorer.score(images).tolist() == alone
    assert scorer.score(images[::-1]).tolist() == alone[::-1]
    assert len(set(alone)) == 3


def test_a_bad_file_loses_no_good_ones_result(scorer: LanguageScorer) -> None:
    images: list[Any] = [photo(40, 60, 1), b"no image", photo(40, 60, 2)]
    scores = scorer.score(images, on_error="nan")
    assert math.isnan(scores[1]) and scores[0] == scorer.score(images[0])
    texts = scorer.answer(images, "Is it sharp?", on_error="none", max_tokens=3)
    assert texts[1] is None and texts[0] == scorer.answer(images[0], "Is it sharp?", max_tokens=3)
    with pytest.raises(ImageError, match="input 1: ") as caught:
        scorer.answer(images, "Is it sharp?", max_tokens=3)
    assert caught.value.index == 1


def test_gradients_reach_the_pixels(scorer: LanguageScorer) -> None:
    batch = torch.rand(2, 3, 40, 48, requires_grad=True)
    scores = scorer(batch)
    assert scores.shape == (2,) and not any(p.requires_grad for p in scorer.parameters())
    scores.sum().backward()
    assert batch.grad is not None and batch.grad.abs().sum() > 0
    assert scorer.score(batch.detach()).tolist() == pytest.approx(scores.tolist(), abs=1e-5)


def test_another_type_and_copies_score_nearly_the_same(folder: Path, scorer: LanguageScorer) -> None:
    image = photo(40, 60)
    low = qmamba.load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in low.network.parameters()} == {torch.bfloat16}
    assert low.score(image) == pytest.approx(scorer.score(image), abs=0.05)
    for other in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
        # Where its tensors lie in memory decides which matrix kernels a CPU takes.
        assert other.score(image) == pytest.approx(scorer.score(image), abs=1e-6)


def test_saving_again_gives_the_same_bytes(folder: Path, tmp_path: Path, scorer: LanguageScorer) -> None:
    scorer.save_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_what_it_cannot_do_is_one_line(scorer: LanguageScorer) -> None:
    with pytest.raises(CapabilityError, match="no quality map"):
        scorer.quality_map(photo(40, 60))
    with pytest.raises(CapabilityError, match="no adapters"):
        scorer.base()
    with pytest.raises(CapabilityError, match="cannot be quantized: its network answers in words"):
        qmamba.quantize(scorer)
    with pytest.raises(CapabilityError, match="has no ONNX file"):
        export_onnx(scorer, "a.onnx")
    with pytest.raises(CapabilityError, match="has no answers: its network knows no words"):
        LanguageScorer(torch.nn.Identity(), scorer.config, scorer.vocabulary)


# Words


def test_an_answer_is_the_likeliest_text(scorer: LanguageScorer) -> None:
    image, question = photo(40, 60), "Is it sharp?"
    answer = scorer.answer(image, question, max_tokens=12)
    assert answer and answer == scorer.answer(image, question, max_tokens=12)
    tokens = scorer.vocabulary.prompt(question)
    ids, mask = scorer.vocabulary.instructions([question])
    pixels = scorer.config.preprocessing(torch.from_numpy(image).movedim(2, 0)[None] / 255)
    written: list[int] = []
    for _ in range(12):  # without a cache of what was read
        whole = torch.cat([tokens, torch.tensor([written], dtype=torch.int64)], dim=1)
        with torch.no_grad():
            logits = scorer.network(
                pixels,
                whole,
                instructions=ids,
                instruction_mask=mask,
                owners=torch.zeros(1, dtype=torch.int64),
            )
        token = int(logits[0, -1].argmax())
        if token == scorer.vocabulary.stop:
            break
        written.append(token)
    assert answer == scorer.vocabulary.text(written).lstrip()
    assert "".join(scorer.stream(image, question, max_tokens=12)) == answer


def test_limits_cut_an_answer(scorer: LanguageScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(40, 60)
    monkeypatch.setattr(scorer.vocabulary, "stop", -5)  # no end by itself
    assert len(list(scorer.stream(image, "Is it sharp?", max_tokens=5))) == 5
    assert len(list(scorer.stream(image, "Is it sharp?", max_tokens=50, seconds=1e-9))) == 1
    room = 256 - scorer.vocabulary.prompt("Is it sharp?").shape[1]
    assert len(list(scorer.stream(image, "Is it sharp?", max_tokens=1000))) == room


def test_answers_end_where_the_network_ends_them(
    scorer: LanguageScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo(40, 60)
    first = scorer.vocabulary.ids(" " + scorer.answer(image, "Is it sharp?", max_tokens=1))
    monkeypatch.setattr(scorer.vocabulary, "stop", first[0])
    assert scorer.answer(image, "Is it sharp?") == ""


def test_an_answer_depends_on_image_and_question(scorer: LanguageScorer) -> None:
    images = [photo(40, 60, seed) for seed in range(4)]
    questions = ["Is it sharp?", "Is it dark and noisy?"]
    answers = [scorer.answer(images, question, max_tokens=6) for question in questions]
    assert len({*answers[0], *answers[1]}) > 2 and answers[0] != answers[1]


def test_a_choice_is_one_of_the_candidates_or_none(
    scorer: LanguageScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(image: Any, question: str, **options: Any) -> str:
        asked.append(question)
        return replies.pop(0)

    monkeypatch.setattr(scorer, "answer", answer)
    replies = ["B. No", "Because it is", "C", "a"]
    found = [scorer.choose(photo(40, 60), "Is it sharp?", ["Yes", "No"]) for _ in range(4)]
    assert found == ["No", None, None, None]
    assert asked[0].splitlines() == [
        "Is it sharp?", "Answer with the option's letter from the given choices directly.", "A. Yes", "B. No",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("question", "options", "line"),
    [
        (" ", {}, "question must be text"), ("dark " * 300, {}, "question must leave room"),
        ("Is it?", {"max_tokens": 0}, "max_tokens must be"), ("Is it?", {"seconds": 0}, "seconds must be"),
        ("Is it?", {"on_error": "nan"}, "on_error must be"), ("Is it?", {"max_pixels": 0}, "max_pixels"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_one_line(
    scorer: LanguageScorer, question: str, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ArgumentError, match=line) as caught:
        scorer.answer(photo(40, 60), question, **options)
    assert "\n" not in str(caught.value)


def test_questions_need_the_whole_image(folder: Path) -> None:
    grid = qmamba.load(folder, protocol="grid")
    assert isinstance(grid, LanguageScorer)
    with pytest.raises(ArgumentError, match="about whole images"):
        grid.describe(photo(40, 60))


# Commands


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for seed, path in enumerate(paths):
        Image.fromarray(np.asarray(photo(40, 60, seed))).save(path)
    return paths


def test_ask_prints_the_answer(folder: Path, scorer: LanguageScorer, pictures: list[Path]) -> None:
    done = run("ask", pictures[0], "Is it sharp?", "--model", folder, "--max-tokens", 6)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == scorer.answer(pictures[0], "Is it sharp?", max_tokens=6) + "\n"


def test_ask_with_choices_prints_one_or_fails(folder: Path, pictures: list[Path]) -> None:
    words = ["ask", pictures[0], "Is it sharp?", "-m", folder, "--choice", "Yes", "--choice", "No"]
    done = run(*words)
    assert (done.exit_code, done.stdout.strip()) in ((0, "Yes"), (0, "No"), (1, ""))
    assert run(*words[:-2]).exit_code == 2


def test_describe_prints_a_row_an_image(
    folder: Path, scorer: LanguageScorer, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = run("describe", tmp_path, "-m", folder, "--max-tokens", 4, "--format", "jsonl")
    assert done.exit_code == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    texts = {Path(row["path"]).name: row["text"] for row in rows}
    assert texts["0.png"] == scorer.describe(pictures[0], max_tokens=4) and texts["broken.png"] is None
    assert "1 of 3 images" in done.stderr
    plain = run("describe", pictures[0], "-m", folder, "--max-tokens", 4)
    assert plain.stdout == f"{pictures[0]}: {texts['0.png']}\n"


def test_a_model_without_words_is_one_line(pictures: list[Path]) -> None:
    done = run("ask", pictures[0], "Is it sharp?", "-m", "lqmamba-n")
    assert done.exit_code == 2 and "has no answers: its network knows no words" in done.stderr
    assert run("describe", pictures[0]).exit_code == 2


def test_score_takes_a_model_with_words(folder: Path, scorer: Scorer, pictures: list[Path]) -> None:
    done = run("score", pictures[0], "-m", folder, "--format", "json")
    assert json.loads(done.stdout)[0]["score"] == pytest.approx(scorer.score(pictures[0]), abs=1e-6)


# Benchmarks

QUESTION = {"img_path": "0.png", "question": "Is it sharp?", "candidates": ["Yes", "No"], "correct_ans": "No"}


def test_questions_are_read(pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "qa.json").write_text(json.dumps([{**QUESTION, "type": 0}]))
    (question,) = read_llvisionqa(tmp_path / "qa.json")
    assert question == Question(pictures[0], "Is it sharp?", ("Yes", "No"), 1)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"question": ""}, "question must be text"), ({"candidates": ["No"]}, "candidates must list 2 to 26"),
        ({"candidates": ["No", 1]}, "candidates must be text"), ({"correct_ans": "B"}, "one candidate"),
        ({"img_path": "/a.png"}, "below the folder"), ({"img_path": "9.png"}, "do not exist"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    (tmp_path / "qa.json").write_text(json.dumps([{**QUESTION, **changes}]))
    with pytest.raises(DataSetError, match=line) as caught:
        read_llvisionqa(tmp_path / "qa.json")
    assert "\n" not in str(caught.value)


def test_accuracy_counts_strictly(
    scorer: LanguageScorer, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = ["B.", "A", "It is B", "B"]
    monkeypatch.setattr(scorer, "answer", lambda *_, **__: replies.pop(0))
    asked = [Question(pictures[0], "Is it sharp?", ("Yes", "No"), 1)] * 4
    assert answer_questions(scorer, asked) == Answered(questions=4, right=2, unparsed=1, failed=0)
    monkeypatch.undo()
    (tmp_path / "broken.png").write_bytes(b"")
    found = answer_questions(scorer, [Question(tmp_path / "broken.png", "Is it?", ("A", "B"), 0)])
    assert found == Answered(1, 0, 0, 1) and found.accuracy == 0


def test_scores_are_compared_with_every_set_that_is_there(
    folder: Path, scorer: LanguageScorer, tmp_path: Path
) -> None:
    sets = tmp_path / "sets" / "agiqa3k"
    sets.mkdir(parents=True)
    lines = ["name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"]
    paths, mos = [], [1.0, 3.0, 2.0, 4.0]
    for i, rating in enumerate(mos):
        Image.fromarray(photo(40, 60, i)).save(sets / f"{i}.jpg")
        paths.append(sets / f"{i}.jpg")
        lines.append(f"{i}.jpg,cat {i},,,,{rating},0.1,1,0.1")
    (sets / "data.csv").write_text("\n".join(lines))
    found = {each.name: each for each in score_sets(scorer, tmp_path / "sets")}
    assert len(found) > 5 and found["koniq10k"] == Agreement("koniq10k", "KonIQ-10k")
    expected = evaluate(scorer.score(paths), mos, metrics=["srcc"], resamples=0)["srcc"]
    assert found["agiqa3k"].images == 4 and found["agiqa3k"].srcc == pytest.approx(expected)
    (tmp_path / "qa.json").write_text(json.dumps([{**QUESTION, "img_path": "sets/agiqa3k/0.jpg"}]))
    done = run("qbench", "--questions", tmp_path / "qa.json", "--data-root", tmp_path / "sets", "-m", folder)
    assert done.exit_code == 0, done.stderr
    assert " % right of 1 questions" in done.stdout
    rows = {line.split("  ")[0]: line.split()[-3:] for line in done.stdout.splitlines() if "  " in line}
    assert rows["KonIQ-10k"] == ["absent", "-", "-"] and rows["AGIQA-3K"][0] == "4"
    assert run("qbench", "-m", folder).exit_code == 2
