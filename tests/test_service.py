"""`examples/service.py`: uploads to scores, through FastAPI's test client, and what its Dockerfile names."""

from __future__ import annotations

import re
import shlex
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmamba.analysis import reasons
from qmamba.scoring import Scorer
from tiny_scorer import encode, photo, quick_config, tiny_network

ROOT = Path(__file__).parents[1]
FIELDS = {"score", "reason", "limit", "measures"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    pytest.importorskip("httpx", reason="httpx is not installed")
    monkeypatch.syspath_prepend(ROOT / "examples")
    import service

    return service


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(tiny_network(), quick_config())


@pytest.fixture
def start(service: Any, scorer: Scorer) -> Any:
    from fastapi.testclient import TestClient

    clients = []

    def started(**limits: float) -> Any:
        client = TestClient(service.create_app(scorer, service.Limits(**limits)))
        client.__enter__()  # one event loop for all requests
        clients.append(client)
        return client

    yield started
    for client in clients:
        client.__exit__(None, None, None)


def test_an_upload_is_scored(start: Any, scorer: Scorer) -> None:
    data = encode(photo(100, 160))
    done = start().post("/score", content=data)
    answer = done.json()
    assert done.status_code == 200 and set(answer) == FIELDS
    assert answer["score"] == scorer.score(data)
    assert answer["measures"] == reasons(data).to_dict()
    assert answer["limit"] is None


def test_reason_and_limit_say_what_stands_out(start: Any) -> None:
    client = start()
    dark = client.post("/score", content=encode(np.zeros((100, 100, 3), np.uint8))).json()
    assert "100% of the pixels are black" in dark["reason"] and dark["score"] is not None
    small = client.post("/score", content=encode(photo(30, 40))).json()
    assert small["limit"] == "30 × 40 pixels are judged enlarged, to about 64 × 64"


def test_health_names_the_model(start: Any) -> None:
    found = start(seconds=7).get("/health").json()
    assert found["status"] == "ok" and found["model"] == "tiny" and found["waiting"] == 0
    assert found["limits"]["seconds"] == 7


@pytest.mark.parametrize(
    ("content", "limits", "status", "reason", "limit"),
    [
        (b"no image", {}, 422, "not an image", None),
        (b"", {}, 422, "zero bytes", None),
        (encode(photo(10, 800)), {}, 422, "too thin", None),
        (encode(photo(100, 160)), {"megapixels": 0.01}, 422, "pixels", "megapixels: at most 0.01"),
        (encode(photo(100, 160)), {"megabytes": 0.001}, 413, "too large", "megabytes: at most 0.001"),
    ],
)
def test_refusals_have_the_same_fields(
    start: Any, content: bytes, limits: dict[str, float], status: int, reason: str, limit: str | None
) -> None:
    client = start(**limits)
    done = client.post("/score", content=content)
    answer = done.json()
    assert done.status_code == status and set(answer) == FIELDS
    assert answer["score"] is None and answer["limit"] == limit
    assert reason in answer["reason"] and "\n" not in answer["reason"]
    assert client.get("/health").json()["waiting"] == 0


def test_an_upload_without_a_length_is_cut_off(start: Any) -> None:
    sent = []

    def endless() -> Any:
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 1000

    done = start(megabytes=0.01).post("/score", content=endless())
    assert done.status_code == 413 and done.json()["limit"] == "megabytes: at most 0.01"


def test_time_and_queue_are_bounded(start: Any, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun = threading.Event(), []
    score = scorer.score

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.append(threading.get_ident())
        assert go.wait(60)
        return score(*arguments, **options)

    monkeypatch.setattr(scorer, "score", slow)
    client, data = start(seconds=0.5, waiting=1), encode(photo(100, 160))
    late = client.post("/score", content=data)
    assert late.status_code == 503 and late.json()["limit"] == "seconds: at most 0.5"
    assert client.get("/health").json()["waiting"] == 1, "it is still being scored"
    refused = client.post("/score", content=data)
    assert refused.status_code == 503 and refused.json()["limit"] == "waiting: at most 1"
    assert refused.headers["retry-after"] == "5" and len(begun) == 1
    go.set()
    for _ in range(100):
        if client.get("/health").json()["waiting"] == 0:
            break
        threading.Event().wait(0.05)
    assert client.post("/score", content=data).status_code == 200
    assert len(set(begun)) == 1, "one worker"


def test_the_dockerfile_names_what_is_there(service: Any) -> None:
    text = (ROOT / "examples/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    stages = re.findall(r"^FROM (\S+)", text, re.M)
    assert stages[-1].endswith("-slim")
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M):
        *sources, _ = shlex.split(line)
        assert all((ROOT / source).exists() for source in sources), line
    (extra,) = re.findall(r"\.whl\)\[(\w+)\]", text)
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^USER (?!root)", text, re.M) and "/health" in text
