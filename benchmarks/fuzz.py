"""Feed damaged files to the decoders, the scorer, the command line and the checkpoint readers.

    python benchmarks/fuzz.py --inputs 10400 --docs

Each input is generated from a seed, and tried in a monitored worker process. A *crash* is a process that
dies, or an error that is not qmamba's or has several lines; a *hang* is more than 20 s of CPU time, or ten
minutes in all. *Peak* is the largest increase of the worker's resident memory by one input. Images may have
up to 2,000,000 pixels. --docs rewrites the table in docs/robustness.md. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import qmamba
from _docs import replace_part, table
from broken import DAMAGE, bad, encoded, good, many_scans, picture, png_of
from qmamba.errors import ImageError, QMambaError
from qmamba.images import decode

MAX_PIXELS = 2_000_000
HANG_SECONDS, ASLEEP_SECONDS = 20.0, 600.0
EXTREMES = "bombs, empty, thin, one pixel"
SCORED, CLI = "whole scoring, of the above", "the command line, files of odd names"
CONFIG, HEADER, ADAPTER = "config.json", "headers of safetensors", "adapter_config.json"
# Inputs of each kind per 1,000; the remainder goes to the first kind.
SHARES = {
    **dict.fromkeys(DAMAGE, 95), "damaged colour profiles": 40, EXTREMES: 30, SCORED: 60, CLI: 5,
    CONFIG: 80, HEADER: 80, ADAPTER: 40,
}  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 1e308, float("nan"))
TEXTS = ("", "../../etc/passwd", "/etc/passwd", "\0", "x" * 5000, "\ud800", "lqmamba-n", "\n")


@dataclass
class Tally:
    """Outcomes of the inputs of one kind."""

    tried: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    peak: int = 0
    examples: list[str] = field(default_factory=list)


# --- one input; these run in the worker ---


def damaged(kind: str, rng: random.Random) -> bytes:
    """Return a damaged file of a kind."""
    if kind == EXTREMES:
        height, width = rng.choice(((1, 1), (1, 10_000), (10_000, 1), (2, 3), (1414, 1414)))
        small = Image.fromarray(picture(4, 4)).resize((width, height))
        made = (
            lambda: png_of(rng.choice((0, 1, 12_000, 2**31 - 1)), rng.choice((0, 9_000, 2**31 - 1))),
            lambda: encoded(small.convert(rng.choice(("RGB", "L", "1"))), rng.choice(("PNG", "TIFF", "BMP"))),
            lambda: encoded(small.convert(rng.choice(("RGB", "L", "CMYK"))), rng.choice(("JPEG", "TIFF"))),
            lambda: many_scans(rng.choice((64, 1400)), rng.choice((10, 3000))),
            lambda: rng.choice(list(bad().values())),
        )
        return rng.choice(made)()
    return DAMAGE[kind](rng.choice(list(good().values())), rng)


class Subjects:
    """Targets of the inputs: scorer, command line, checkpoint folders; created once per worker."""

    def __init__(self, folder: Path) -> None:
        from qmamba.protocol import Protocol

        self.folder = folder
        protocol = Protocol("scales", max_crops=0, sides=(64,))
        self.scorer = qmamba.load(protocol=protocol)
        self.model, self.adapter = folder / "model", folder / "adapter"
        config = self.scorer.save_pretrained(self.model)
        adapter = qmamba.adapters.create("ssf", self.scorer.base())
        adapter_config = qmamba.adapters.AdapterConfig("ssf", config.name, config.weights_sha256)
        qmamba.adapters.save_adapter(self.adapter, adapter, adapter_config)
        self.valid = {
            path: path.read_bytes() for folder in (self.model, self.adapter) for path in folder.iterdir()
        }

    def feed(self, kind: str, rng: random.Random) -> bool:
        """Return whether an input was refused; errors that are not qmamba's propagate."""
        if kind == CLI:
            return self._command_line(rng)
        feeders: dict[str, Callable[[random.Random], Any]] = {
            SCORED: self._score,
            CONFIG: lambda rng: self._config(self.model / "config.json", rng),
            ADAPTER: lambda rng: self._config(self.adapter / "adapter_config.json", rng),
            HEADER: self._header,
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if kind in feeders:
                    feeders[kind](rng)
                else:
                    decode(damaged(kind, rng), max_pixels=MAX_PIXELS)
        except QMambaError as error:
            if "\n" in str(error) or not str(error).strip():
                raise AssertionError(f"not one line: {error}") from error
            return True
        return False

    def _score(self, rng: random.Random) -> None:
        data = damaged(rng.choice([*DAMAGE, EXTREMES]), rng)
        ((_, result),) = self.scorer.iter_scores([data], max_pixels=MAX_PIXELS)
        if isinstance(result, ImageError):
            raise result
        assert 0 <= result <= 1

    def _command_line(self, rng: random.Random) -> bool:
        from typer.testing import CliRunner

        from qmamba.cli import app

        names = {bytes(rng.choice(range(1, 256)) for _ in range(rng.randrange(1, 40))) for _ in range(6)}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            for name in names:
                path = Path(folder, "x" + os.fsdecode(name.replace(b"/", b"")) + ".jpg")
                path.write_bytes(damaged(rng.choice(list(DAMAGE)), rng))
            count, stderr_size = len(list(Path(folder).iterdir())), os.fstat(2).st_size
            arguments = [
                "score",
                folder,
                "-f",
                "jsonl",
                "--protocol",
                "grid",
                "--max-pixels",
                str(MAX_PIXELS),
            ]
            done = CliRunner().invoke(app, arguments)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(rows) == count and done.exit_code in (0, 1), (done.exit_code, done.exception)
        assert done.exit_code == int(any(row["error"] for row in rows))
        assert len(done.stderr.splitlines()) <= 1, done.stderr
        assert os.fstat(2).st_size == stderr_size, "a library wrote to stderr"
        return done.exit_code == 1

    def _config(self, path: Path, rng: random.Random) -> None:
        data = self.valid[path]
        if rng.random() < 0.3:
            data = rng.choice(list(DAMAGE.values())[:5])(data, rng)
        else:
            config = json.loads(data)
            node = config
            while (key := rng.choice(list(node))) and isinstance(node[key], dict) and node[key]:
                node = node[key]
            node[key] = rng.choice((*NUMBERS, *TEXTS, None, [], {}, [[[]]], [1] * 1000, {"a": {}}, True))
            data = json.dumps(config).encode()
        self._load_with(path, data)

    def _header(self, rng: random.Random) -> None:
        path = rng.choice((self.model / "model.safetensors", self.adapter / "adapter_model.safetensors"))
        data = self.valid[path]
        length = int.from_bytes(data[:8], "little")
        choice = rng.randrange(4)
        if choice == 0:
            data = struct.pack("<Q", rng.choice((0, 1, 2**20, 2**31, 2**32, 2**63, 2**64 - 1))) + data[8:]
        elif choice == 1:
            header = json.loads(data[8 : 8 + length])
            entry = header[rng.choice([key for key in header if key != "__metadata__"])]
            value = rng.choice((*NUMBERS, *TEXTS, [2**62, 2**62], [0, 2**64], [-1, 4], {}, ["F32"]))
            entry[rng.choice(list(entry))] = value
            text = json.dumps(header).encode()
            data = struct.pack("<Q", len(text)) + text + data[8 + length :]
        elif choice == 2:
            data = (
                data[:8]
                + rng.choice(list(DAMAGE.values())[:3])(data[8 : 8 + length], rng)
                + data[8 + length :]
            )
        else:
            pickled = b"\x80\x04cos\nsystem\n(S'exit 1'\ntR."
            data = rng.choice((pickled, b"PK\x03\x04" + pickled, data[: rng.randrange(len(data))], b""))
        self._load_with(path, data, mend=True)

    def _load_with(self, path: Path, data: bytes, mend: bool = False) -> None:
        """Load a model or an adapter with one file replaced; `mend` updates the digest in its config."""
        import hashlib

        configs = {self.model: self.model / "config.json", self.adapter: self.adapter / "adapter_config.json"}
        config = configs[path.parent]
        try:
            path.write_bytes(data)
            if mend:
                digest = {"weights_sha256": hashlib.sha256(data).hexdigest(), "weights_bytes": len(data)}
                config.write_text(json.dumps(json.loads(self.valid[config]) | digest))
            if path.parent == self.model:
                qmamba.load(self.model)
            else:
                self.scorer.load_adapter(self.adapter)
        finally:
            path.write_bytes(self.valid[path])
            config.write_bytes(self.valid[config])


def work(pipe: Connection, folder: str) -> None:
    """Serve forever: receive (kind, seed), send (refused, failure or "", bytes of memory)."""
    torch.set_num_threads(1)
    os.dup2(os.open(Path(folder, "stderr"), os.O_RDWR | os.O_CREAT | os.O_APPEND), 2)  # output of C libraries
    subjects = Subjects(Path(folder))
    pipe.send(None)
    while True:
        kind, seed = pipe.recv()
        before = start_peak()
        wrong, refused = "", False
        try:
            refused = subjects.feed(kind, random.Random(seed))
        except BaseException:
            wrong = traceback.format_exc()
        pipe.send((refused, wrong, max(0, status("VmHWM") - before)))


def start_peak() -> int:
    """Reset the peak of resident memory; return the current bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


# --- the run ---


class Worker:
    """A process that tries inputs, and is killed when one takes too long."""

    def __init__(self, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, folder), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()

    def feed(self, kind: str, seed: int) -> tuple[str, Any]:
        """Return ("ok", answer), ("crash", exit code) or ("hang", None)."""
        began, spent = time.monotonic(), self._seconds()
        try:
            self.pipe.send((kind, seed))
            while not self.pipe.poll(1.0):
                timed_out = time.monotonic() - began > ASLEEP_SECONDS
                if timed_out or self._seconds() - spent > HANG_SECONDS:
                    self.process.kill()
                    return "hang", None
            return "ok", self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return "crash", self.process.exitcode

    def _seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def plan(inputs: int) -> dict[str, int]:
    """Return the number of inputs of each kind."""
    whole = sum(SHARES.values())
    counts = {kind: max(1, inputs * share // whole) for kind, share in SHARES.items()}
    counts[next(iter(counts))] += max(0, inputs - sum(counts.values()))
    return counts


def fuzz(counts: dict[str, int], seed: int) -> dict[str, Tally]:
    """Try all inputs; print each failure with the options that reproduce it."""
    tallies = {kind: Tally() for kind in counts}
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(folder)
        for index, (kind, count) in enumerate(counts.items()):
            tally = tallies[kind]
            for n in range(count):
                input_seed = seed + index * 1_000_003 + n
                how, answer = worker.feed(kind, input_seed)
                tally.tried += 1
                wrong = f"exit code {answer}" if how == "crash" else how if how == "hang" else answer[1]
                if how != "ok":
                    worker = Worker(folder)
                else:
                    tally.refused += answer[0]
                    tally.peak = max(tally.peak, answer[2])
                tally.hangs += how == "hang"
                tally.crashes += how == "crash" or (how == "ok" and bool(wrong))
                if wrong:
                    tally.examples.append(f"{input_seed}: {wrong.strip().splitlines()[-1]}")
                    print(f"--only {kind!r} --seed {input_seed}: {wrong}", flush=True)
            print(f"{kind}: {tally.tried} tried, {tally.crashes} crashes, {tally.hangs} hangs", flush=True)
        worker.process.kill()
    return tallies


def written(tallies: dict[str, Tally], seed: int) -> str:
    """Return the generated part of the page: the command, and the table."""
    import platform

    import PIL

    def row(name: str, t: Tally) -> list[str]:
        return [name, f"{t.tried:,}", f"{t.refused:,}", f"{t.crashes}", f"{t.hangs}", f"{t.peak / 2**20:.0f}"]

    whole = Tally(
        sum(t.tried for t in tallies.values()), sum(t.refused for t in tallies.values()),
        sum(t.crashes for t in tallies.values()), sum(t.hangs for t in tallies.values()),
        max(t.peak for t in tallies.values()),
    )  # fmt: skip
    head = ["kind of input", "tried", "refused in one line", "crashes", "hangs", "peak, MiB"]
    rows = [row(kind, tally) for kind, tally in tallies.items()] + [row("**all**", whole)]
    about = (
        f"`python benchmarks/fuzz.py --inputs {whole.tried} --seed {seed} --docs`, with Python "
        f"{platform.python_version()}, Pillow {PIL.__version__}, torch {torch.__version__} on Linux:\n\n"
    )
    return about + table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kind of a single input, as printed for a failure")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/robustness.md")
    args = parser.parse_args()
    if args.only:
        with tempfile.TemporaryDirectory() as folder:
            print(
                "refused" if Subjects(Path(folder)).feed(args.only, random.Random(args.seed)) else "accepted"
            )
        return
    tallies = fuzz(plan(args.inputs), args.seed)
    text = written(tallies, args.seed)
    print(text)
    if args.docs:
        replace_part("robustness.md", "fuzz", text)
    sys.exit(any(t.crashes or t.hangs for t in tallies.values()))


if __name__ == "__main__":
    main()
