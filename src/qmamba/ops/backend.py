"""Choose the implementation of the operations."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import BackendError
from . import native

BACKENDS = ("torch", "native", "triton", "reference", "mamba-ssm")
HALVES_AND_FLOAT = (torch.float32, torch.float16, torch.bfloat16)


class Backend(NamedTuple):
    """An implementation of the scan: its name, whether it can be used, and what it is or why not."""

    name: str
    usable: bool
    note: str


def backends() -> list[Backend]:
    """Return the implementations of the scan, in order of preference.

    The variable ``QMAMBA_BACKEND`` selects one; the default is the first that takes the given tensors. The
    last two are never a default.

    >>> import qmamba
    >>> [backend.name for backend in qmamba.backends()]
    ['triton', 'native', 'torch', 'reference', 'mamba-ssm']
    """
    try:
        variants = native.load().variants
        variant = variants[native.load().indices.index(native.load().variant())]
        kernel = Backend("native", True, f"C for CPUs, {variant}; eager and compiled")
    except BackendError as error:
        kernel = Backend("native", False, str(error))
    reason, none_of_mamba = no_triton(), no_mamba_ssm()
    return [
        Backend("triton", reason is None, reason or "Triton, for tensors on a GPU"),
        kernel,
        Backend("torch", True, "torch operations, on any device"),
        Backend("reference", True, "a plain loop, slow; the others are tested against it"),
        Backend("mamba-ssm", none_of_mamba is None, none_of_mamba or "mamba-ssm's kernel, only if named"),
    ]


def choose(tensors: Sequence[Tensor], backend: str = "auto") -> str:
    """Return the name of the backend for these tensors.

    That is the one given, else the one that the variable ``QMAMBA_BACKEND`` names, else triton on a GPU and
    native on a CPU where they can be used, else torch. On a GPU, falling back to torch warns once.

    Raises:
        BackendError: an unknown name, or triton or mamba-ssm for tensors that they cannot take.
    """
    name = os.environ.get("QMAMBA_BACKEND", "auto") if backend == "auto" else backend
    if name == "auto":
        if not tensors[0].is_cuda:
            return "native" if usable(tensors) else "torch"
        return "torch" if watched() or _falls_back(no_triton(tensors)) else "triton"
    if name not in BACKENDS:
        raise BackendError(f"unknown scan backend {name!r}; choose one of {', '.join(['auto', *BACKENDS])}")
    if name == "triton" and (reason := no_triton(tensors)) is not None:
        raise BackendError(f"the triton backend cannot be used: {reason}; set QMAMBA_BACKEND=auto")
    if name == "mamba-ssm" and (reason := no_mamba_ssm(tensors)) is not None:
        raise BackendError(f"the mamba-ssm backend cannot be used: {reason}; set QMAMBA_BACKEND=auto")
    return name


def missing_kernel(device: torch.device | str) -> str | None:
    """Return one line if scans on a CPU are slow because the native kernel is missing: why, and what to do.

    None where the kernel can be used, on other devices, and where ``QMAMBA_BACKEND`` names a backend.
    """
    if torch.device(device).type != "cpu" or os.environ.get("QMAMBA_BACKEND", "auto") != "auto":
        return None
    try:
        native.load()
    except BackendError as error:
        return str(error)
    return None


def no_triton(tensors: Sequence[Tensor] = ()) -> str | None:
    """Return why the Triton kernels cannot be used here, or for these tensors; None if they can."""
    if _triton_missing() is not None:
        return _triton_missing()
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"  # on a CPU, for tests
    if not (interpreted or torch.cuda.is_available()):
        return "torch sees no GPU"
    if not interpreted and not all(t.is_cuda for t in tensors):
        return "not all tensors are on a GPU"
    if tensors and tensors[0].dtype not in HALVES_AND_FLOAT:
        return f"it does not support {str(tensors[0].dtype).removeprefix('torch.')}"
    return None


def no_mamba_ssm(tensors: Sequence[Tensor] = ()) -> str | None:
    """Return why mamba-ssm's scan cannot be used here, or for these tensors; None if it can."""
    if _mamba_ssm_missing() is not None:
        return _mamba_ssm_missing()
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if not all(t.is_cuda for t in tensors):
        return "not all tensors are on a GPU"
    if tensors and tensors[0].dtype not in HALVES_AND_FLOAT:
        return f"it does not support {str(tensors[0].dtype).removeprefix('torch.')}"
    return None


@lru_cache(maxsize=1)
def _mamba_ssm_missing() -> str | None:
    # Not imported: that compiles or loads its kernels, which takes seconds.
    if find_spec("mamba_ssm") is None:
        return 'mamba-ssm is not installed; pip install "qmamba[mamba-ssm]", which needs CUDA'
    return None


@lru_cache(maxsize=1)
def _triton_missing() -> str | None:
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    if hasattr(triton.language, "gather"):
        return None
    return f"triton {triton.__version__} is too old; install 3.3 or later"


@lru_cache(maxsize=8)
def _falls_back(reason: str | None) -> bool:
    """Return whether there is a reason against Triton, and warn once for each reason."""
    if reason is not None:
        warnings.warn(f"the scan runs in plain torch on the GPU, which is slow: {reason}", stacklevel=4)
    return reason is not None


def usable(tensors: Sequence[Tensor]) -> bool:
    """Return whether the native kernels can take these arguments now.

    The library must be built, and the arguments plain CPU tensors outside of tracers and modes, the first of
    them float32, float16 or bfloat16.
    """
    x = tensors[0]
    if x.device.type != "cpu" or x.dtype not in HALVES_AND_FLOAT or watched():
        return False
    return native.available() and all(
        type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors
    )


def transformed() -> bool:
    """Return whether a ``torch.func`` transform or forward-mode differentiation is at work."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def watched() -> bool:
    """Return whether something must see every operation.

    That is a tracer, a dispatch mode such as an operation counter, or what `transformed` tells.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    if transformed():
        return True
    depth = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return bool(depth is not None and depth())
