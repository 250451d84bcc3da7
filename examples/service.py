"""A service that scores uploaded photographs.

    pip install ".[service]"
    python examples/service.py --port 8000
    curl --data-binary @photo.jpg http://localhost:8000/score

An answer has the same fields whether or not there is a score: `score`; `reason`, what was measured that may
explain the score, or why there is none; `limit`, what to keep in mind about the score, or which limit was
exceeded; and `measures`, those of `qmamba.analysis.reasons`. One thread scores one photograph at a time, with
all cores: run one process per machine.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import anyio  # comes with FastAPI
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import qmamba
from qmamba.analysis import reasons
from qmamba.errors import ImageError, QMambaError
from qmamba.images import decode


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        megabytes: of the uploaded file.
        megapixels: of the decoded photograph, and of what it is enlarged to.
        seconds: from the first byte to the answer.
        waiting: photographs being scored or waiting for it; more are refused.
    """

    megabytes: float = 20
    megapixels: float = 50
    seconds: float = 30
    waiting: int = 8


class RefusalError(Exception):
    """A request that gets no score: a status, and the answer's reason and limit."""

    def __init__(self, status: int, reason: str, limit: str | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.limit = status, reason, limit


@dataclasses.dataclass(frozen=True)
class Answer:
    """What every request to /score gets."""

    score: float | None
    reason: str | None
    limit: str | None
    measures: dict[str, Any] | None = None


class Worker:
    """One thread that scores one photograph at a time, and a short queue before it."""

    def __init__(self, scorer: qmamba.Scorer, limits: Limits) -> None:
        self.scorer, self.limits, self.waiting = scorer, limits, 0
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")

    async def answer(self, request: Request) -> Answer:
        """Return the answer to a request; raise `RefusalError` where a limit is exceeded."""
        if self.waiting >= self.limits.waiting:
            raise RefusalError(
                503, "too many photographs are waiting; try again later", self._said("waiting")
            )
        self.waiting += 1
        job = None
        try:
            with anyio.fail_after(self.limits.seconds):
                data = await self._body(request)
                job = self.thread.submit(self._answer, data)
                return await asyncio.shield(asyncio.wrap_future(job))
        except TimeoutError:
            raise RefusalError(
                503, "there was no score in time; try again later", self._said("seconds")
            ) from None
        finally:
            # A photograph that is being scored cannot be stopped: its place is free when it is done.
            if job is None or job.cancel() or job.done():
                self.waiting -= 1
            else:
                loop = asyncio.get_running_loop()
                job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))

    def _leave(self) -> None:
        self.waiting -= 1

    async def _body(self, request: Request) -> bytes:
        """Return the uploaded file, read no further than the limit."""
        most, pieces, size = int(self.limits.megabytes * 1e6), [], 0
        if int(request.headers.get("content-length") or 0) > most:
            raise RefusalError(413, "the file is too large", self._said("megabytes"))
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise RefusalError(413, "the file is too large", self._said("megabytes"))
            pieces.append(piece)
        return b"".join(pieces)

    def _answer(self, data: bytes) -> Answer:
        most = int(self.limits.megapixels * 1e6)
        try:
            pixels = decode(data, max_pixels=most)
            score = self.scorer.score(pixels, max_pixels=most)
        except ImageError as error:
            limit = self._said("megapixels") if "max_pixels" in str(error) else None
            raise RefusalError(422, str(error), limit) from None
        except QMambaError as error:
            raise RefusalError(500, str(error)) from None
        found = reasons(pixels)
        return Answer(score, "; ".join(found.notes()) or None, self._caution(found), found.to_dict())

    def _caution(self, found: Any) -> str | None:
        """Return what to keep in mind about the score of a photograph of this size."""
        protocol = self.scorer.protocol
        least = max(protocol.sides) if protocol.kind == "scales" else protocol.crop
        if found.height * found.width < least**2:
            return f"{found.height} × {found.width} pixels are judged enlarged, to about {least} × {least}"
        return None

    def _said(self, name: str) -> str:
        return f"{name}: at most {getattr(self.limits, name):g}"


def create_app(scorer: qmamba.Scorer | None = None, limits: Limits | None = None) -> FastAPI:
    """Return the application; it loads the embedded model where it is given none."""
    worker = Worker(scorer or qmamba.load(), limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.thread.shutdown(cancel_futures=True)

    app = FastAPI(title="qmamba", version=qmamba.__version__, lifespan=lifespan)

    @app.exception_handler(RefusalError)
    async def refuse(_: Request, error: RefusalError) -> JSONResponse:
        answer = Answer(None, error.reason, error.limit)
        headers = {"Retry-After": "5"} if error.status == 503 else None
        return JSONResponse(dataclasses.asdict(answer), error.status, headers)

    @app.post("/score")
    async def score(request: Request) -> Answer:
        """Score the image file in the request's body."""
        return await worker.answer(request)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say which model answers, and how many photographs wait; answered while others are scored."""
        return {
            "status": "ok",
            "model": worker.scorer.name,
            "version": qmamba.__version__,
            "waiting": worker.waiting,
            "limits": dataclasses.asdict(worker.limits),
        }

    return app


def main() -> None:
    """Run the service with uvicorn, in one process."""
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default="lqmamba-n", help="as of `qmamba score --model`")
    for field in dataclasses.fields(Limits):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind if kind is int else float, default=field.default)
    options = parser.parse_args()
    limits = Limits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)})
    uvicorn.run(create_app(qmamba.load(options.model), limits), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
