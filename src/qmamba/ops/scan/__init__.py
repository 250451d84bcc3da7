"""The selective scan over routes of a grid: one public function with several implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..backend import choose, transformed
from ..compile import compiling, traced_scan
from ..routes import Route
from .composed import selective_scan_composed
from .mamba_ssm import selective_scan_mamba_ssm
from .native import selective_scan_native
from .reference import selective_scan_reference
from .tensors import ScanTensors
from .torch import selective_scan_torch
from .triton import selective_scan_triton

_BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": selective_scan_reference,
    "torch": selective_scan_torch,
    "native": selective_scan_native,
    "triton": selective_scan_triton,
    "mamba-ssm": selective_scan_mamba_ssm,
}


def selective_scan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    routes: Sequence[Route],
    merge: bool = True,
    backend: str = "auto",
) -> Tensor:
    r"""Scan a grid of features along K routes with an input-dependent state space model.

    Along route k, with t counting the positions in the route's order::

        Δ_t = softplus(dt_weight_k dt_t + dt_bias_k)
        h_t = exp(Δ_t A_k) ⊙ h_{t-1} + (Δ_t ⊙ x_t) B_tᵀ,   h_0 = 0        (D, N)
        y_t = h_t C_t + D_k ⊙ x_t                                          (D,)

    and every y is written to its position. (Mamba's recurrence over VMamba's and LocalMamba's scan orders;
    QMamba, section 3.1.) The caller permutes nothing: projections act on one position at a time, so they are
    computed once on the grid.

    Args:
        x: (B, H, W, D) features.
        dt: (B, H, W, K, R) step sizes before their expansion from rank R.
        B, C: (B, H, W, K, N) input and output maps of the state.
        dt_weight: (K, D, R);  dt_bias: (K, D).
        A: (K, D, N), negative (``-exp(A_log)``);  D: (K, D) skip weights.
        routes: K routes, see :mod:`qmamba.ops.routes`.
        merge: sum the routes' outputs; otherwise they are stacked.
        backend: ``"torch"`` (any device; a backward that recomputes the states), ``"native"`` (the same in
            C, the fastest on a CPU; float64 runs in torch), ``"triton"`` (the same on a GPU),
            ``"reference"`` (a plain loop), ``"mamba-ssm"`` (that package's, on CUDA) or ``"auto"``: the one
            that the variable ``QMAMBA_BACKEND`` names, else triton or native where they take these tensors,
            else torch.

    Returns:
        (B, H, W, D), or (B, K, H, W, D) without ``merge``, in the dtype of ``x``. State and accumulation
        are float32 for half-precision input, also under autocast, and float64 for float64 input.

    Raises:
        BackendError: the backend is unknown, or cannot be used here.
        ValueError: shapes do not match.

    >>> import torch
    >>> from qmamba.ops import Route, selective_scan
    >>> x, ones = torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1, 1)
    >>> dt_bias = torch.tensor([[0.5413]])  # softplus(0.5413) = 1
    >>> y = selective_scan(x, 0 * ones, ones, ones, dt_weight=torch.ones(1, 1, 1), dt_bias=dt_bias,
    ...                    A=-torch.ones(1, 1, 1), D=torch.zeros(1, 1), routes=[Route("row")])
    >>> [round(v, 3) for v in y.flatten().tolist()]  # 1, 1 + 1/e, 1 + 1/e + 1/e²
    [1.0, 1.368, 1.503]
    """
    tensors = ScanTensors(x, dt, B, C, dt_weight, dt_bias, A, D)
    _check_shapes(tensors, routes)
    name = choose(tensors, backend)
    if compiling() and name not in ("reference", "mamba-ssm"):
        return traced_scan(tensors, routes, merge, backend)
    if x.is_meta:  # shapes only, for counting
        return x.new_empty(x.shape if merge else (x.shape[0], len(routes), *x.shape[1:]))
    # Transforms of torch.func take none of the hand-written backwards.
    scan = selective_scan_composed if name != "reference" and transformed() else _BACKENDS[name]
    return scan(tensors, tuple(routes), merge)


def _check_shapes(tensors: ScanTensors, routes: Sequence[Route]) -> None:
    x, dt, B, A = tensors.x, tensors.dt, tensors.B, tensors.A
    if x.ndim != 4 or dt.ndim != 5 or B.ndim != 5 or A.ndim != 3:
        raise ValueError(
            "selective_scan needs x (B,H,W,D), dt (B,H,W,K,R), B and C (B,H,W,K,N), A (K,D,N); "
            f"got {tuple(x.shape)}, {tuple(dt.shape)}, {tuple(B.shape)}, {tuple(A.shape)}"
        )
    grid, D_, K, R, N = x.shape[:3], x.shape[3], len(routes), dt.shape[-1], B.shape[-1]
    expected = {
        "dt": (*grid, K, R), "B": (*grid, K, N), "C": (*grid, K, N),
        "dt_weight": (K, D_, R), "dt_bias": (K, D_), "A": (K, D_, N), "D": (K, D_),
    }  # fmt: skip
    for name, shape in expected.items():
        found = tuple(getattr(tensors, name).shape)
        if found != shape:
            raise ValueError(f"selective_scan: {name} must have shape {shape}, got {found}")
