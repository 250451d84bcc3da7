"""Score millions of images with Ray Data actors: ``pip install "qmamba[ray]"``."""

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
from ..scoring.parquet_log import Place, ScoreParts, absolute, settings_of
from ..scoring.pipeline import outcome, pixel_limit
from ._scorers import missing
from ._shards import Member, members

__all__ = ["Summary", "score_to_parquet"]

Source: TypeAlias = str | os.PathLike[str]

AT_ONCE = 32  # images per block of an actor; a block is scored again when its actor dies
_SLICE = 100_000  # image files passed to Ray at a time; it keeps a few kilobytes per block
_READING = 2  # shards read at a time, per actor


class Summary(NamedTuple):
    """Contents of a folder of scores after a run.

    Attributes:
        rows: number of rows, one per image, including those of earlier runs.
        failed: number of rows with an error.
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
    """Score images with Ray actors, and write one row per image to parquet files in a folder.

    Each actor holds a scorer, and decodes while it scores; Ray Data applies backpressure. An actor that dies
    is replaced, and its images are given to others. An image that kills every actor that tries it gets a row
    with an error, and so does one that cannot be read. Only this process writes, and never a row twice; the
    same call resumes an interrupted run.

    Ray is started here, at `RAY_ADDRESS` if set, unless it is running. Files are opened by name on the
    machines of the actors.

    Args:
        source: images, folders, patterns, parquet files with a column of images, WebDataset tar files, or a
            list of these; folders are searched for all of them.
        out: folder of the scores; docs/scale.md describes its columns.
        model: a name, folder or Hub id; see `qmamba.load`.
        actors: number of actors; by default as many as the CPUs, or GPUs, allow.
        cpus_per_actor: CPUs reserved for an actor, and its number of compute threads.
        gpus_per_actor: GPUs per actor, possibly fractional; above 0, `device` defaults to "cuda".
        retries: how often images are given to another actor after their actor died.
        recursive: whether to search sub-folders.
        column: column of parquet files; by default "image", or the only one that can hold images.
        batch_size, max_pixels: see `Scorer.score`.
        resume: whether to resume from the rows in `out`; if False, a folder with scores is refused.
        done: called with the number of new rows, first with the number of rows that `out` already has.
        **options: options of `qmamba.load`: protocol, adapter, dtype, device, revision, local_files_only, …

    Returns:
        The number of rows in the folder, and the number of failures among them.

    Raises:
        ScoresError: there are no images, or the run in `out` cannot be resumed.
        BackendError: Ray is not installed, cannot be started, or has failed.
        QMambaError: as `qmamba.load`.
    """
    ray = _ray()
    limit = pixel_limit(batch_size, max_pixels)
    for name, value in (("actors", actors), ("cpus_per_actor", cpus_per_actor)):
        if value is not None and (type(value) is not int or value < 1):
            raise BackendError(f"{name} must be an integer of at least 1, got {value!r}")
    files, shards = _found(source, recursive)
    if gpus_per_actor > 0:
        options.setdefault("device", "cuda")
    # Loaded on the CPU for its settings only: this machine may have no GPU.
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
        # Images lost in the first pass shared a block with the culprit: the second scores them one by one.
        for at_once in (AT_ONCE, 1):
            run.score(run.left_of(files), run.open_of(shards), at_once, count, remote)
        run.give_up(files, shards)
    return Summary(parts.rows, parts.failed)


class _Run:
    """Progress of a run: the rows written, and the images left."""

    def __init__(
        self, ray: Any, parts: ScoreParts, limit: int, column: str | None, done: Callable[[int], object]
    ) -> None:
        self.ray, self.parts, self.limit, self.column, self.done = ray, parts, limit, column, done
        self.counts: dict[bytes, int] = {}  # images per shard, once it has been read to its end

    def left_of(self, files: Iterable[bytes]) -> list[bytes]:
        """Return the image files without a row."""
        return [path for path in files if Place(path) not in self.parts]

    def open_of(self, shards: Iterable[bytes]) -> list[bytes]:
        """Return the shards that have, or may have, images without a row."""
        return [s for s in shards if s not in self.counts or len(self.parts.done_in(s)) < self.counts[s]]

    def score(
        self, files: list[bytes], shards: list[bytes], at_once: int, actors: int, remote: dict[str, Any]
    ) -> None:
        """Score files and shards, and write each row as it arrives."""
        for start in range(0, len(files), _SLICE):
            self._score(self._of_files(files[start : start + _SLICE], at_once), at_once, remote)
        if shards:
            self._score(self._of_shards(shards, at_once, actors), at_once, remote)

    def _score(self, images: Any, at_once: int, remote: dict[str, Any]) -> None:
        try:
            rated = images.map_batches(_Rater, batch_size=at_once, batch_format="pyarrow", **remote)
            # A block that no actor could finish is dropped; the others are kept.
            rated.context.max_errored_blocks = -1
            rated.context.enable_progress_bars = False
            for table in rated.iter_batches(batch_size=None, batch_format="pyarrow"):
                self._keep(table.to_pylist())
        except self.ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BackendError(f"Ray failed: {reason}; finished rows are kept; run again") from error

    def give_up(self, files: list[bytes], shards: list[bytes]) -> None:
        """Write an error row for each image without a result."""
        lost = "every actor that tried to score it died; see Ray's logs"
        for path in self.left_of(files):
            self._add(Place(path), None, f"{printable(os.fsdecode(path))}: {lost}")
        for path in self.open_of(shards):
            indices = self.parts.done_in(path)
            # Without a count, a single row after the last stands for the rest of the shard.
            count = self.counts.get(path, max(indices, default=-1) + 2)
            for index in sorted(set(range(count)) - indices if path in self.counts else {count - 1}):
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
        """Return a dataset of files in small blocks, each processed by one actor."""
        starts = range(0, len(files), at_once)
        blocks = [_table([{"path": p} for p in files[start : start + at_once]]) for start in starts]
        return self.ray.data.from_arrow(blocks)

    def _of_shards(self, shards: list[bytes], at_once: int, actors: int) -> Any:
        """Return a dataset of the images in shards, read as fast as the actors consume them."""
        import pyarrow

        kinds = pyarrow.schema({"path": pyarrow.binary(), "done": pyarrow.list_(pyarrow.int64())})
        rows = [{"path": path, "done": sorted(self.parts.done_in(path))} for path in shards]
        blocks = [pyarrow.Table.from_pylist([row], schema=kinds) for row in rows]
        return self.ray.data.from_arrow(blocks).map_batches(
            _opened,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"column": self.column, "max_pixels": self.limit, "at_once": at_once},
            num_cpus=0,  # actors may hold all CPUs while they wait for these tasks
            compute=self.ray.data.TaskPoolStrategy(size=min(len(shards), _READING * actors)),
        )


class _Ledger:
    """Count the unfinished attempts of each block, in an actor that outlives the scoring actors."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def begin(self, images: str) -> int:
        """Return the number of earlier attempts that did not finish."""
        self.open[images] += 1
        return self.open[images] - 1

    def end(self, images: str) -> None:
        del self.open[images]


class _Rater:
    """A scoring actor: a scorer with its own number of threads.

    Ray retries the blocks of a dead actor without limit; a block is skipped after `tries` attempts.
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
        torch.set_num_threads(threads)  # regardless of the environment: actors share a machine
        self.scorer: Scorer = load(model, **options)
        self.options = {"batch_size": batch_size, "max_pixels": max_pixels}

    def __call__(self, table: Any) -> Any:
        import ray

        rows = table.to_pylist()
        block = repr([(row["path"], row["index"]) for row in rows])
        if ray.get(self.ledger.begin.remote(block)) < self.tries:
            self._score(rows)
            ray.get(self.ledger.end.remote(block))
        return _table([{**row, "image": None} for row in rows])

    def _score(self, rows: list[dict[str, Any]]) -> None:
        """Fill in scores and errors."""
        pending = [row for row in rows if row["error"] is None and row["count"] is None]
        images = (os.fsdecode(row["path"]) if row["image"] is None else _of_row(row) for row in pending)
        for index, result in self.scorer.iter_scores(images, **self.options):
            pending[index]["score"], pending[index]["error"] = _located(pending[index], *outcome(result))


def _of_row(row: dict[str, Any]) -> bytes | str:
    image: bytes = row["image"]
    return os.fsdecode(image) if row["named"] else image


def _located(row: dict[str, Any], score: float | None, error: str | None) -> tuple[float | None, str | None]:
    """Return a result whose error names the image in its shard."""
    if error is None or row["index"] is None:
        return score, error
    where = row["member"] or f"row {row['index']}"
    return None, f"{printable(os.fsdecode(row['path']))}, {printable(where)}: {error.removeprefix('bytes: ')}"


def _opened(table: Any, column: str | None, max_pixels: int, at_once: int) -> Iterator[Any]:
    """Yield tables of the images in shards, the last of each shard with a row that counts its images."""
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
    """Return the image files and the shards of a source."""
    given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    names, suffixes = [os.fspath(name) for name in given], IMAGE_SUFFIXES | SHARD_SUFFIXES
    found = find_images(names, recursive=recursive, suffixes=suffixes)
    if found.unreadable:
        raise ScoresError(f"folder {printable(found.unreadable[0])} cannot be read; check its permissions")
    if not found.files:
        raise ScoresError(f"no images in {printable(given[0]) if given else 'an empty list'}")
    files: list[bytes] = []
    shards: list[bytes] = []
    for path in found.files:
        is_shard = path.suffix.lower() in SHARD_SUFFIXES and Path(path).is_file()
        (shards if is_shard else files).append(os.fsencode(absolute(path)))
    return files, shards


def _room(ray: Any, cpus: int, gpus: float) -> int:
    """Return the number of actors that the cluster's CPUs and GPUs allow."""
    resources = ray.cluster_resources()
    limits = [int(resources.get("CPU", 1) // cpus)]
    if gpus > 0:
        limits.append(int(resources.get("GPU", 0) // gpus))
    return max(1, min(limits))


@contextmanager
def _running(ray: Any) -> Iterator[None]:
    """Start Ray and shut it down afterwards, unless it is already running."""
    if ray.is_initialized():
        yield
        return
    try:
        local = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
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
