"""Millions of images, scored by actors of Ray Data: ``pip install "qmamba[ray]"``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from ..errors import BackendError, ScoresError
from ..images import printable
from ..images.find import IMAGE_SUFFIXES, SHARD_SUFFIXES, find_images
from ..scoring import DEFAULT_MODEL, Scorer, load
from ..scoring.parquet_log import Place, ScoreParts, settings_of
from ..scoring.pipeline import outcome, pixel_limit
from ._scorers import missing
from ._shards import Member, members

__all__ = ["Summary", "score_to_parquet"]

Source: TypeAlias = str | os.PathLike[str]

AT_ONCE = 32  # images that an actor is given together: what is scored again when it dies
_SLICE = 100_000  # files of one image that Ray is told of at a time; it keeps a few kilobytes for each block
_READING = 2  # files of many images that are read at a time, for each actor


class Summary(NamedTuple):
    """What lies in a folder of scores after a run.

    Attributes:
        rows: one for each image, those of earlier runs included.
        failed: how many of them have an error.
    """

    rows: int
    failed: int


def score_to_parquet(
    source: Source | Sequence[Source],
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    actors: int | None = None,
    cpus_per_actor: int = 1,
    gpus_per_actor: float = 0,
    retries: int = 3,
    recursive: bool = True,
    column: str | None = None,
    batch_size: int = 32,
    max_pixels: int | None = None,
    resume: bool = True,
    done: Callable[[int], object] | None = None,
    **options: Any,
) -> Summary:
    """Score images by actors of Ray, and write a row for each, once, into parquet files in a folder.

    Each actor holds a scorer, and decodes while it scores. Ray Data gives it no more than it can take. An
    actor that dies is replaced, and what it had in hand is given to others. An image that ends every process
    that takes it gets a row that says so, as does one that cannot be read. This process alone writes, and
    never a row twice; given again, the same call goes on where a run was ended.

    Ray is started here unless it runs already, or where `RAY_ADDRESS` says; files are opened by their names
    on the machines where actors run.

    Args:
        source: images, folders of images, patterns; parquet files with a column of images, and tar files as
            WebDataset has them; folders stand for these, too.
        out: the folder; its columns are described in docs/scale.md.
        model: as `qmamba.load` takes it.
        actors: how many; by default as many as there are processors, or GPUs, for.
        cpus_per_actor: processors of an actor, and the threads that it computes with.
        gpus_per_actor: GPUs, or a part of one; from above 0 on, `device` is "cuda".
        retries: how often images are given to another actor after theirs died.
        recursive: look into sub-folders of folders.
        column: of parquet files; by default "image", or the only one that can hold images.
        batch_size, max_pixels: as for `Scorer.score`.
        resume: go on from what is in the folder; else one with scores is refused.
        done: told of new rows, how many; first of those that were there.
        **options: more of `qmamba.load`: protocol, adapter, dtype, device, revision, local_files_only …

    Returns:
        How many rows the folder has, and how many of them are failures.

    Raises:
        ScoresError: no images, or a folder of scores that cannot be gone on with.
        BackendError: Ray is not installed, cannot be started, or has failed as a whole.
        QMambaError: as `qmamba.load`.
    """
    ray = _ray()
    limit = pixel_limit(batch_size, max_pixels)
    for name, value in (("actors", actors), ("cpus_per_actor", cpus_per_actor)):
        if value is not None and (type(value) is not int or value < 1):
            raise BackendError(f"{name} must be an integer of at least 1, not {value!r}")
    files, shards = _found(source, recursive)
    if gpus_per_actor > 0:
        options.setdefault("device", "cuda")
    # On this machine there may be no GPU: only what is written about the model is wanted here.
    settings = settings_of(load(model, **{**options, "device": "cpu"}), max_pixels)
    rater = {"model": os.fspath(model), "options": options, "threads": cpus_per_actor, "tries": retries + 1}
    rater |= {"batch_size": batch_size, "max_pixels": limit}
    with ScoreParts(out, settings, resume=resume) as parts, _running(ray):
        run = _Run(ray, parts, limit, column, done or (lambda rows: None))
        run.done(parts.rows)
        count = actors or _room(ray, cpus_per_actor, gpus_per_actor)
        remote = {
            "compute": ray.data.ActorPoolStrategy(size=count),
            "num_cpus": cpus_per_actor, "num_gpus": gpus_per_actor,
            "fn_constructor_kwargs": {**rater, "ledger": ray.remote(num_cpus=0)(_Ledger).remote()},
        }  # fmt: skip
        # What is missing after the first time was lost with its neighbours: one by one shows which it was.
        for at_once in (AT_ONCE, 1):
            run.score(run.left_of(files), run.open_of(shards), at_once, count, remote)
        run.give_up(files, shards)
    return Summary(parts.rows, parts.failed)


class _Run:
    """What has been scored, and what is left."""

    def __init__(
        self, ray: Any, parts: ScoreParts, limit: int, column: str | None, done: Callable[[int], object]
    ) -> None:
        self.ray, self.parts, self.limit, self.column, self.done = ray, parts, limit, column, done
        self.counts: dict[bytes, int] = {}  # images in a file of many, once it has been read to its end

    def left_of(self, files: Iterable[bytes]) -> list[bytes]:
        """Files of one image without a row."""
        return [path for path in files if Place(path) not in self.parts]

    def open_of(self, shards: Iterable[bytes]) -> list[bytes]:
        """Files of many that have, or may have, images without rows."""
        return [s for s in shards if s not in self.counts or len(self.parts.done_in(s)) < self.counts[s]]

    def score(
        self, files: list[bytes], shards: list[bytes], at_once: int, actors: int, remote: dict[str, Any]
    ) -> None:
        """Score these, and keep every row as it comes."""
        for start in range(0, len(files), _SLICE):
            self._score(self._of_files(files[start : start + _SLICE], at_once), at_once, remote)
        if shards:
            self._score(self._of_shards(shards, at_once, actors), at_once, remote)

    def _score(self, images: Any, at_once: int, remote: dict[str, Any]) -> None:
        try:
            rated = images.map_batches(_Rater, batch_size=at_once, batch_format="pyarrow", **remote)
            # A block that no actor could finish is left out, and no reason to lose the others.
            rated.context.max_errored_blocks = -1
            rated.context.enable_progress_bars = False
            for table in rated.iter_batches(batch_size=None, batch_format="pyarrow"):
                self._keep(table.to_pylist())
        except self.ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BackendError(f"Ray failed: {reason}; what was scored is kept") from error

    def give_up(self, files: list[bytes], shards: list[bytes]) -> None:
        """A row for each image that nothing came back for."""
        lost = "no process could score it, each that tried ended; Ray's logs may say why"
        for path in self.left_of(files):
            self._add(Place(path), None, f"{printable(os.fsdecode(path))}: {lost}")
        for path in self.open_of(shards):
            here = self.parts.done_in(path)
            # Without a count: a single row behind the last, for whatever else the file holds.
            ends = self.counts.get(path, max(here, default=-1) + 2)
            for index in sorted(set(range(ends)) - here if path in self.counts else {ends - 1}):
                self._add(Place(path, index), None, f"{printable(os.fsdecode(path))}, image {index}: {lost}")

    def _add(self, place: Place, score: float | None, error: str | None) -> None:
        if self.parts.add(place, score, error):
            self.done(1)

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["count"] is not None:
                self.counts[row["path"]] = row["count"]
            elif row["score"] is not None or row["error"] is not None:  # neither: given up
                self._add(Place(row["path"], row["index"], row["member"]), row["score"], row["error"])

    def _of_files(self, files: list[bytes], at_once: int) -> Any:
        """A data set of files, in small blocks, of which an actor is given one at a time."""
        starts = range(0, len(files), at_once)
        blocks = [_table([{"path": p} for p in files[start : start + at_once]]) for start in starts]
        return self.ray.data.from_arrow(blocks)

    def _of_shards(self, shards: list[bytes], at_once: int, actors: int) -> Any:
        """A data set of the images in files of many, which are read as fast as actors take them."""
        import pyarrow

        kinds = pyarrow.schema({"path": pyarrow.binary(), "done": pyarrow.list_(pyarrow.int64())})
        rows = [{"path": path, "done": sorted(self.parts.done_in(path))} for path in shards]
        blocks = [pyarrow.Table.from_pylist([row], schema=kinds) for row in rows]
        return self.ray.data.from_arrow(blocks).map_batches(
            _opened,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"column": self.column, "max_pixels": self.limit, "at_once": at_once},
            num_cpus=0,  # actors may have taken all, and they wait for these
            compute=self.ray.data.TaskPoolStrategy(size=min(len(shards), _READING * actors)),
        )


class _Ledger:
    """How often images were begun with and not ended, kept by an actor of its own: the dead cannot say."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def begin(self, images: str) -> int:
        """How often it was tried in vain before."""
        self.open[images] += 1
        return self.open[images] - 1

    def end(self, images: str) -> None:
        del self.open[images]


class _Rater:
    """What an actor is: a scorer, with the threads that it was lent.

    Ray gives what a dead actor had in hand to another, again and again; `tries` is how often that is taken.
    """

    def __init__(
        self,
        model: str,
        options: dict[str, Any],
        threads: int,
        tries: int,
        batch_size: int,
        max_pixels: int,
        ledger: Any,
    ) -> None:
        self.ledger, self.tries = ledger, tries
        torch.set_num_threads(threads)  # whatever the environment says: actors share a machine
        self.scorer: Scorer = load(model, **options)
        self.options = {"batch_size": batch_size, "max_pixels": max_pixels}

    def __call__(self, table: Any) -> Any:
        import ray

        rows = table.to_pylist()
        which = repr([(row["path"], row["index"]) for row in rows])
        if ray.get(self.ledger.begin.remote(which)) < self.tries:
            self._score(rows)
            ray.get(self.ledger.end.remote(which))
        return _table([{**row, "image": None} for row in rows])

    def _score(self, rows: list[dict[str, Any]]) -> None:
        """Fill in scores and errors."""
        asked = [row for row in rows if row["error"] is None and row["count"] is None]
        images = (os.fsdecode(row["path"]) if row["image"] is None else _of_row(row) for row in asked)
        for index, result in self.scorer.iter_scores(images, **self.options):
            asked[index]["score"], asked[index]["error"] = _told(asked[index], *outcome(result))


def _of_row(row: dict[str, Any]) -> bytes | str:
    image: bytes = row["image"]
    return os.fsdecode(image) if row["named"] else image


def _told(row: dict[str, Any], score: float | None, error: str | None) -> tuple[float | None, str | None]:
    """A result, whose error says which image of a file of many it is about."""
    if error is None or row["index"] is None:
        return score, error
    where = row["member"] or f"row {row['index']}"
    return None, f"{printable(os.fsdecode(row['path']))}, {printable(where)}: {error.removeprefix('bytes: ')}"


def _opened(table: Any, column: str | None, max_pixels: int, at_once: int) -> Iterator[Any]:
    """The images of a file of many, and behind the last a row that says how many there are."""
    for shard in table.to_pylist():
        waiting: list[dict[str, Any]] = []
        path, seen, count = os.fsdecode(shard["path"]), set(shard["done"]), 0
        for member in members(path, seen, column=column, max_pixels=max_pixels):
            waiting.append(_row_of(shard["path"], member))
            count = member.place + 1
            if len(waiting) == at_once:
                yield _table(waiting)
                waiting = []
        count = max(count, max(seen, default=-1) + 1)
        yield _table([*waiting, {"path": shard["path"], "count": count}])


def _row_of(path: bytes, member: Member) -> dict[str, Any]:
    named = isinstance(member.image, str)
    image = os.fsencode(member.image) if isinstance(member.image, str) else member.image
    return {
        "path": path, "index": member.place, "member": member.name,
        "image": image, "named": named, "error": member.error,
    }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as a

    columns = {
        "path": a.binary(), "index": a.int64(), "member": a.string(), "image": a.large_binary(),
        "named": a.bool_(), "score": a.float32(), "error": a.string(), "count": a.int64(),
    }  # fmt: skip
    return a.Table.from_pylist(rows, schema=a.schema(columns))


def _found(source: Source | Sequence[Source], recursive: bool) -> tuple[list[bytes], list[bytes]]:
    """Files of one image, and files of many."""
    given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    names, suffixes = [os.fspath(name) for name in given], IMAGE_SUFFIXES | SHARD_SUFFIXES
    found = find_images(names, recursive=recursive, suffixes=suffixes)
    if found.unreadable:
        raise ScoresError(f"the folder {printable(found.unreadable[0])} cannot be read; check permissions")
    if not found.files:
        raise ScoresError(f"no images in {printable(given[0]) if given else 'an empty list'}")
    several = [path.suffix.lower() in SHARD_SUFFIXES and Path(path).is_file() for path in found.files]
    parted = list(zip((os.fsencode(path.absolute()) for path in found.files), several, strict=True))
    return [name for name, many in parted if not many], [name for name, many in parted if many]


def _room(ray: Any, cpus: int, gpus: float) -> int:
    """How many actors there is room for."""
    there = ray.cluster_resources()
    by = [int(there.get("CPU", 1) // cpus)] + ([int(there.get("GPU", 0) // gpus)] if gpus > 0 else [])
    return max(1, min(by))


@contextmanager
def _running(ray: Any) -> Iterator[None]:
    """Ray, started here and ended behind, unless it runs already."""
    if ray.is_initialized():
        yield
        return
    try:
        here = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **here)
    except (OSError, RuntimeError, ValueError, ConnectionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(f"Ray cannot be started: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise missing("ray", "ray") from error
    return ray
