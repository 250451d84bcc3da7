r"""Report the GPU resources of the scan's kernels, compiled ahead of time; needs no GPU.

    python benchmarks/gpu_resources.py --markdown
    python benchmarks/gpu_resources.py --targets sm_90 --ranks 12 --json resources.json

For each kernel and all constants that dispatch can choose for the library's models: registers per thread,
bytes of shared memory per program, bytes spilled per thread; and for the scan's kernels on NVIDIA GPUs, the
instructions per thread, step and channel of the longest loop. Needs triton, which has its own assembler.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qmamba.ops import cross_scan_routes, local_scan_routes
from qmamba.ops.route_gate import triton as triton_gate
from qmamba.ops.scan.triton import CARRIES, GROUP, Kind, constants, pairs, power

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
OLD = {"sm_75": GPUTarget("cuda", 75, 32)}  # tensor cores without bfloat16: slow, only on request
RANKS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # ⌈C / 16⌉ of every stage of every model
POINTERS = {
    "x",
    "gy",
    "dt",
    "B",
    "C",
    "y",
    "g_x",
    "out",
    "g_out",
    "g_y",
}  # pointers of the features' dtype, not float32
OPTIONS = ("num_warps", "num_stages", "maxnreg")  # options of the compiler
ALIGNED = {"D", "y_image", "y_route", "gy_image", "gy_route"}  # multiples of 16, as in models
NUMBERS = {"H", "W", "L", "D", "chunk", "chunks", "tiles", "lanes"}


class Usage(NamedTuple):
    target: str
    kernel: str
    dtype: str
    rank: int
    states: int
    registers: int
    shared: int
    spilled: int
    instructions: float | None


def compiled(kernel: Any, constants_: dict[str, Any], dtype: str, target: GPUTarget) -> Any:
    """Compile a kernel for a target; pointers, D and the strides of images and routes are multiples of 16."""
    options = {name: constants_[name] for name in OPTIONS if name in constants_}
    known = {name: value for name, value in constants_.items() if name in kernel.arg_names}
    signature = {}
    for name in kernel.arg_names:
        whole = name in NUMBERS or name.endswith(("_image", "_position", "_route"))
        pointer = f"*{dtype if name in POINTERS else 'fp32'}"
        plain = "i32" if whole else "fp32" if name == "eps" else pointer
        signature[name] = "constexpr" if name in known else plain
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in ALIGNED
    }
    source = ASTSource(kernel, signature=signature, constexprs=known, attrs=aligned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=target, options=options)


def dumped(binary: Any, what: str) -> str:
    """Return cuobjdump's output for a kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary.asm["cubin"])
        return subprocess.run([tool, what, file], capture_output=True, text=True, check=True).stdout


def resources(binary: Any) -> tuple[int, int, int]:
    """Return registers, bytes of shared memory, and bytes spilled."""
    if "cubin" in binary.asm:
        found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", dumped(binary, "-res-usage")))
        return int(found["REG"]), binary.metadata.shared, int(found["STACK"]) + int(found["LOCAL"])
    text = binary.asm["amdgcn"]
    registers, spilled = (
        max(map(int, re.findall(rf"\.{name}:\s+(\d+)", text))) for name in ("vgpr_count", "vgpr_spill_count")
    )
    return registers, binary.metadata.shared, 4 * spilled


def instructions(binary: Any, known: dict[str, Any]) -> float | None:
    """Return the instructions per thread, step and channel in the longest innermost loop, over a tile.

    None for kernels other than the scan's, and for other GPUs than NVIDIA's.
    """
    if "cubin" not in binary.asm or "STATES_" not in known:
        return None
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", dumped(binary, "-sass"))
    places = [int(place, 16) for place, _ in found]
    jumps = (
        (place, re.search(r"BRA.* 0x([0-9a-f]+)", code))
        for place, (_, code) in zip(places, found, strict=True)
    )
    loops = [(int(to[1], 16), place) for place, to in jumps if to and int(to[1], 16) < place]
    inner = [(a, b) for a, b in loops if not any(a <= c and d < b for c, d in loops if (c, d) != (a, b))]
    longest = max(sum(a <= place <= b for place in places) for a, b in inner)
    return longest * 32 * known["num_warps"] / (known["T"] * known["CHANNELS"] * known["STATES_"])


def configurations(kind: Kind) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, function and constants of each kernel, with merged cross-scan and separate window routes.

    The first and the last pair of routes share names.
    """
    for what, routes in (("cross", cross_scan_routes()), ("windows", local_scan_routes(7))):
        both = pairs(routes)
        for index, pair in enumerate(both):
            forward, backward = (constants(pair, 4, kind, backward=back) for back in (False, True))
            how = {"MERGE": what == "cross", "FIRST": index == 0, "LAST": index == len(both) - 1}
            yield f"chunks, {what}", "chunks_kernel", forward | {"ADJOINT": False}
            yield f"chunks back, {what}", "chunks_kernel", forward | {"ADJOINT": True}
            forward |= how
            yield f"forward, {what}", "forward_kernel", forward | {"OUTPUT": True, "KEEP": False}
            yield f"forward, kept, {what}", "forward_kernel", forward | {"OUTPUT": True, "KEEP": True}
            yield f"forward, kept, {what}", "forward_kernel", forward | {"OUTPUT": False, "KEEP": True}
            yield f"backward, {what}", "backward_kernel", backward | how | {"GROUP": GROUP}
    yield "carries", "carries_kernel", {
        "REVERSED": 12, "K": 4, "T": CARRIES[0], "LANES": CARRIES[1], "num_warps": 4,
    }  # fmt: skip
    channels = 32 * kind.rank  # R = ⌈C / 16⌉, and the scan is twice as wide as C
    gate = {"K": 4, "CHUNK": triton_gate.CHUNK, "ROWS": triton_gate.rows(channels)}
    gate |= {"CHANNELS": power(channels), "num_warps": 4}
    for name in ("moments", "sum", "gates_gradient", "routes_gradient"):
        yield f"gate, {name.replace('_', ' ')}", f"{name}_kernel", gate


def table(usages: list[Usage]) -> str:
    """Return a Markdown table with one row per kernel: maxima over all compiled variants."""
    rows = ["| kernel | " + " | ".join(TARGETS) + " |", "|---|" + "---|" * len(TARGETS)]
    for kernel in dict.fromkeys(u.kernel for u in usages):
        cells = []
        for target in TARGETS:
            selected = [u for u in usages if (u.kernel, u.target) == (kernel, target)]
            maxima = [str(max(u[i] for u in selected)) for i in (5, 6, 7)] if selected else ["–"]
            counted = [u.instructions for u in selected if u.instructions is not None]
            cells.append(" / ".join(maxima + ([f"{max(counted):.0f}"] if counted else [])))
        rows.append(f"| {kernel} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=[*TARGETS, *OLD], default=list(TARGETS))
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--states", nargs="+", type=int, default=[1])
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16", "fp16"], default=["bf16", "fp32"])
    parser.add_argument("--kernels", default="", help="only kernels whose names contain this text")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--markdown", action="store_true", help="print the maxima as a table")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("TRITON_INTERPRET must be unset, since kernels are compiled")
    modules = ("scan.triton_chunks", "scan.triton_kernels", "route_gate.triton_kernels")
    kernels = ChainMap(*(vars(importlib.import_module(f"qmamba.ops.{name}")) for name in modules))
    usages = []
    for target, rank, states, dtype in itertools.product(args.targets, args.ranks, args.states, args.dtypes):
        kind = Kind(rank, states, dtype == "fp32", target.startswith("gfx"), target in OLD)
        for name, function, known in configurations(kind):
            if args.kernels not in name:
                continue
            binary = compiled(kernels[function], known, dtype, (TARGETS | OLD)[target])
            counted = instructions(binary, known)
            usages.append(Usage(target, name, dtype, rank, states, *resources(binary), counted))
            print(*usages[-1], sep="\t", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps([u._asdict() for u in usages], indent=1), encoding="utf-8")
    if args.markdown:
        print(table(usages))


if __name__ == "__main__":
    main()
