"""Switch off autocast for computations that need the precision of their inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

USUAL = ("cpu", "cuda", "mps", "xpu")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which the caller's autocast does not act on this kind of device.

    Kinds without autocast (``meta``, for example) raise an error even when it is switched off.
    """
    # The usual kinds have it; the compiler of torch 2.11 cannot trace the check.
    if device.type not in USUAL and not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device has instructions for its matrix products, else float32.

    On CPUs these are AMX and AVX-512 BF16.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    tests = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return torch.bfloat16 if any(test is not None and test() for test in tests) else torch.float32
