"""Errors in a sequence lose nothing; loading, saving and the shared default scorer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qmamba
from qmamba.checkpoints import save_checkpoint
from qmamba.errors import (
    ArgumentError,
    BackendError,
    CheckpointError,
    ImageError,
    MissingImageError,
    UnknownModelError,
)
from qmamba.protocol import Protocol
from qmamba.scoring import Scorer, api, load
from tiny_scorer import encode, photo, tiny_config, tiny_network, with_protocol


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), tiny_config())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(path, tiny_network(), tiny_config())
    return path


# --- errors in a sequence


@pytest.fixture
def faulty(tmp_path: Path) -> list[Any]:
    (tmp_path / "empty.jpg").touch()
    return [
        photo(64, 64),
        photo(70, 64, 1),
        tmp_path / "missing.jpg",
        photo(64, 80, 2),
        tmp_path / "empty.jpg",
        None,
    ]


def test_on_error_nan_scores_all_others(scorer: Scorer, faulty: list[Any]) -> None:
    scores = scorer.score(faulty, on_error="nan")
    assert scores.isnan().tolist() == [False, False, True, False, True, True]
    good = [0, 1, 3]
    assert scores[good].tolist() == scorer.score([faulty[i] for i in good]).tolist()
    assert math.isnan(scorer.score(faulty[2], on_error="nan"))


def test_on_error_raise_names_the_input_and_loses_nothing(scorer: Scorer, faulty: list[Any]) -> None:
    with pytest.raises(MissingImageError) as caught:
        scorer.score(faulty)
    error = caught.value
    assert str(error).startswith("input 2: ") and "missing.jpg" in str(error) and "\n" not in str(error)
    assert error.index == 2  # type: ignore[attr-defined]
    scores = error.scores  # type: ignore[attr-defined]
    assert scores.shape == (6,) and scores.isnan().tolist() == [False, False, True, True, True, True]
    assert scores[:2].tolist() == scorer.score(faulty[:2]).tolist()
    with pytest.raises(MissingImageError) as caught:
        scorer.score(faulty[2])
    assert not str(caught.value).startswith("input")


def test_bad_options(scorer: Scorer) -> None:
    image = photo(64, 64)
    for options in ({"on_error": "ignore"}, {"batch_size": 0}, {"batch_size": 2.5}, {"max_pixels": 0}):
        with pytest.raises(ArgumentError, match=next(iter(options))) as caught:
            scorer.score(image, **options)
        # loops that pass over bad images and checkpoints must not pass over a mistake in their own call
        assert isinstance(caught.value, ValueError) and not isinstance(caught.value, ImageError)
    for function in (scorer.iter_scores, scorer.crop_scores, scorer.quality_map, scorer.raw_parts):
        with pytest.raises(ArgumentError, match="batch_size must be an integer of at least 1, got -1"):
            function(image, batch_size=-1)
    with pytest.raises(ArgumentError, match="kind must be one of grid, random, whole, scales, got 'best'"):
        load("lqmamba-n", protocol="best")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="row"):
        scorer.score({"a": image})


def test_iter_scores_is_ordered_and_lazy(scorer: Scorer, faulty: list[Any]) -> None:
    results = list(scorer.iter_scores(faulty))
    assert [index for index, _ in results] == list(range(6))
    assert [isinstance(result, ImageError) for _, result in results] == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]
    want = scorer.score(faulty, on_error="nan")
    assert all(want[index] == result for index, result in results if isinstance(result, float))

    taken = []

    def endless() -> Iterator[np.ndarray]:
        for seed in itertools.count():
            taken.append(seed)
            yield photo(64, 64, seed)

    stream = scorer.iter_scores(endless())
    first = [next(stream) for _ in range(3)]
    assert [index for index, _ in first] == [0, 1, 2] and len(taken) <= 5
    stream.close()  # type: ignore[attr-defined]
    assert not torch.is_inference_mode_enabled()
    assert next(scorer.iter_scores("missing.jpg"))[0] == 0


def test_a_failing_iterator_loses_nothing_before_it(scorer: Scorer) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield photo(64, 64)
        yield photo(64, 64, 1)
        raise KeyError("the caller's own")

    results = []
    with pytest.raises(KeyError):
        for _, result in scorer.iter_scores(broken()):
            results.append(result)
    assert results == [scorer.score(photo(64, 64)), scorer.score(photo(64, 64, 1))]


def test_progress_goes_to_stderr(scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> None:
    scorer.score([photo(64, 64)] * 2)
    assert capsys.readouterr() == ("", "")
    scorer.score([photo(64, 64)] * 2, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "2/2" in err


# --- loading and saving


def test_load(folder: Path, scorer: Scorer) -> None:
    loaded = load(folder)
    image = photo(100, 90)
    assert isinstance(loaded, Scorer) and loaded.config.name == "tiny"
    assert loaded.score(image) == scorer.score(image) == load(str(folder), device="cpu").score(image)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_load_in_another_type(folder: Path, scorer: Scorer, dtype: torch.dtype) -> None:
    loaded = load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    images = [photo(100, 90), photo(64, 64, 1)]
    scores = loaded.score(images)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, scorer.score(images), atol=0.05 if dtype is torch.bfloat16 else 0.01)
    batch = torch.rand(1, 3, 64, 64, requires_grad=True)
    loaded(batch).sum().backward()
    assert batch.grad is not None and torch.isfinite(batch.grad).all()


def test_load_with_another_protocol(folder: Path) -> None:
    assert load(folder, protocol="random").protocol == Protocol(kind="random", crop=64, max_crops=4)
    assert load(folder, protocol=Protocol(crop=32)).protocol == Protocol(crop=32)
    with pytest.raises(ArgumentError, match="grid, random, whole"):
        load(folder, protocol="five")  # type: ignore[arg-type]


def test_load_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        load("no-such-model")
    with pytest.raises(CheckpointError):
        load(tmp_path)
    for options in (
        {"device": "nonsense"},
        {"device": "cuda:99"},
        {"dtype": torch.int8},
        {"dtype": "float16"},
    ):
        with pytest.raises(BackendError) as caught:
            load(folder, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_save_and_load_again(tmp_path: Path, scorer: Scorer) -> None:
    other = with_protocol(scorer, kind="random", n_crops=2)
    written = other.save_pretrained(tmp_path / "saved")
    repeated = load(tmp_path / "saved")
    assert repeated.protocol == other.protocol and repeated.config == written
    assert repeated.score(photo(80, 80)) == other.score(photo(80, 80))
    half = other.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert half.dtype == "float16" and half.weights_bytes < written.weights_bytes
    assert load(tmp_path / "half").score(photo(80, 80)) == pytest.approx(other.score(photo(80, 80)), abs=0.01)


def test_push_hands_over_a_whole_checkpoint(monkeypatch: pytest.MonkeyPatch, scorer: Scorer) -> None:
    seen: dict[str, Any] = {}

    def push(folder: str, repo_id: str, **options: Any) -> str:
        seen.update(options, repo_id=repo_id, score=load(folder).score(photo(64, 64)))
        return "address"

    monkeypatch.setattr("qmamba.checkpoints.host.push_checkpoint", push)
    assert scorer.push_to_hub("me/mine", private=True, token="t", revision="r") == "address"
    assert seen.pop("score") == scorer.score(photo(64, 64))
    assert seen == {"repo_id": "me/mine", "private": True, "token": "t", "revision": "r"}


def test_default_scorer_is_loaded_once(monkeypatch: pytest.MonkeyPatch, scorer: Scorer) -> None:
    loads = []

    def fake_load() -> Scorer:
        loads.append(1)
        return scorer

    api._default.cache_clear()
    monkeypatch.setattr(api, "load", fake_load)
    try:
        image = photo(64, 64)
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(qmamba.score, [image] * 8)) == {scorer.score(image)}
        assert qmamba.score([image, None], on_error="nan").isnan().tolist() == [False, True]
        assert len(loads) == 1
    finally:
        api._default.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_follows_the_parameters(folder: Path, scorer: Scorer) -> None:
    mixed = [photo(64, 64), photo(40, 90), encode(photo(100, 150))]
    moved = load(folder, device="cuda")
    scores = moved.score(mixed)
    assert scores.device.type == "cpu" and torch.allclose(scores, scorer.score(mixed), atol=1e-4)
    batch = torch.rand(2, 3, 64, 64)
    assert torch.allclose(moved(batch.cuda()).cpu(), scorer(batch), atol=1e-4)
    assert moved.score(batch[0].cuda()) == pytest.approx(scorer.score(batch[0]), abs=1e-4)
    assert torch.allclose(moved.cpu().score(mixed), scorer.score(mixed), atol=1e-6)


@pytest.mark.parametrize("name", [None, 5, b"lqmamba-n", ["lqmamba-n"]])
def test_names_of_a_wrong_type_are_one_line(name: Any) -> None:
    with pytest.raises(UnknownModelError, match="names no model"):
        load(name)


def test_devices_and_types_that_cannot_be_used_are_one_line(folder: Path) -> None:
    with pytest.raises(BackendError, match="cannot be used here") as caught:
        load(folder, device=["cpu"])  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="dtype must be"):
        load(folder, dtype=torch.float8_e4m3fn)
    with pytest.raises(BackendError, match="has no weights"):
        load(folder, device="meta").score(photo(64, 64))


# --- what surrounds the scorer does not reach its scores


@pytest.mark.parametrize("kind", ["grid", "random", "whole", "scales"])
def test_default_device_and_type_of_the_process_change_nothing(
    scorer: Scorer, kind: Any, folder: Path
) -> None:
    scorer = with_protocol(scorer, kind=kind)
    images = [photo(70, 83), photo(70, 83) / 255]
    alone = scorer.score(images)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert load(folder, protocol=kind).score(images[0]) == alone[0]
            scores = scorer.score(images)
            assert scorer(torch.from_numpy(images[1]).permute(2, 0, 1)[None]).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert scores.dtype == torch.float32 and torch.equal(scores, alone)


def test_an_autocast_of_the_caller_leaves_scores_alone(scorer: Scorer) -> None:
    image = photo(70, 83)
    with torch.autocast("cpu", torch.bfloat16):
        assert scorer.score(image) == scorer.score([image])[0]
        inside = scorer.score(image)
    assert inside == scorer.score(image)


def test_batches_of_any_layout_and_precision(scorer: Scorer) -> None:
    batch = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ImageError, match=r"call \.to_dense") as caught:
        scorer(batch.to_sparse())
    assert "\n" not in str(caught.value)
    assert Scorer(tiny_network().double(), tiny_config())(batch).dtype == torch.float32
    assert scorer.score(photo(64, 64), batch_size=np.int64(2)) == scorer.score(photo(64, 64), batch_size=2)


def test_a_scorer_loaded_in_inference_mode_has_gradients(folder: Path) -> None:
    with torch.inference_mode():
        scorer = load(folder)
        assert torch.is_inference_mode_enabled()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scorer(images).sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
