"""Weights in the published VMamba format, turned into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import CheckpointError
from .network import QMamba

# Published name → ours, in full. {s} is a stage, {b} a block.
_NAMES = {
    "patch_embed.0": "stem.conv1",
    "patch_embed.2": "stem.norm1",
    "patch_embed.5": "stem.conv2",
    "patch_embed.7": "stem.norm2",
    "layers.{s}.downsample.1": "stages.{s}.downsample.conv",
    "layers.{s}.downsample.3": "stages.{s}.downsample.norm",
    "layers.{s}.blocks.{b}.norm": "stages.{s}.blocks.{b}.norm1",
    "layers.{s}.blocks.{b}.norm2": "stages.{s}.blocks.{b}.norm2",
    "layers.{s}.blocks.{b}.mlp.fc1": "stages.{s}.blocks.{b}.mlp.fc1",
    "layers.{s}.blocks.{b}.mlp.fc2": "stages.{s}.blocks.{b}.mlp.fc2",
    "layers.{s}.blocks.{b}.op.in_proj": "stages.{s}.blocks.{b}.ss2d.in_proj",
    "layers.{s}.blocks.{b}.op.conv2d": "stages.{s}.blocks.{b}.ss2d.conv",
    "layers.{s}.blocks.{b}.op.out_norm": "stages.{s}.blocks.{b}.ss2d.norm",
    "layers.{s}.blocks.{b}.op.out_proj": "stages.{s}.blocks.{b}.ss2d.out_proj",
    "layers.{s}.blocks.{b}.op.route_gate.norm": "stages.{s}.blocks.{b}.ss2d.gate.norm",
    "layers.{s}.blocks.{b}.op.route_gate.reduce": "stages.{s}.blocks.{b}.ss2d.gate.reduce",
    "layers.{s}.blocks.{b}.op.route_gate.expand": "stages.{s}.blocks.{b}.ss2d.gate.expand",
    "classifier.norm": "head.norm",
    "classifier.head": "head.fc",
}
# Parameters of the scan, in newer and older files; other shapes here, with the same order of elements.
_SCAN = {
    "x_proj.weight": "x_proj.weight",
    "x_proj_weight": "x_proj.weight",
    "dt_projs.weight": "dt_weight",
    "dt_projs_weight": "dt_weight",
    "dt_projs_bias": "dt_bias",
    "dt_projs.bias": "dt_bias",
    "A_logs": "A_log",
    "Ds": "D",
}
_WRAPPERS = ("model", "state_dict", "model_ema")
_PARALLEL = "module."  # what DistributedDataParallel puts before every name


class ConvertedState(dict[str, Tensor]):
    """A state dict under our names that says what became of the published one.

    Attributes:
        renamed: published name → our name, for every tensor that was kept.
        dropped: published name → why it was left out (a 1000-way classification head).
    """

    def __init__(self) -> None:
        super().__init__()
        self.renamed: dict[str, str] = {}
        self.dropped: dict[str, str] = {}

    def report(self) -> str:
        """One line a fact: what was kept, and what was dropped and why."""
        lines = [f"{len(self.renamed)} tensors converted"]
        lines += [f"dropped {name}: {why}" for name, why in self.dropped.items()]
        return "\n".join(lines)


def from_vmamba(state_dict: Mapping[str, Any]) -> ConvertedState:
    """Turn a published VMamba (``v05_noz``) or local-scan state dict into one of :class:`QMamba`'s.

    Args:
        state_dict: what ``torch.load(file, weights_only=True)`` gives, older or newer names, nested under
            ``model`` or not, with DistributedDataParallel's ``module.`` before every name or not. Values are
            tensors of any floating dtype.

    Returns:
        A dict that ``model.load_state_dict`` takes as it is; its ``renamed``, ``dropped`` and ``report()``
        say what was done. A head with other than one output is dropped: :func:`load_vmamba` then keeps the
        network's own.

    Raises:
        CheckpointError: a tensor has a name or a shape that is not VMamba's.
    """
    state = _unwrap(state_dict)
    routes = _count_routes(state)
    converted = ConvertedState()
    for name, tensor in state.items():
        if name.startswith("classifier.head.") and tensor.ndim and tensor.shape[0] != 1:
            converted.dropped[name] = f"a head with {tensor.shape[0]} outputs has no place in a quality model"
            continue
        ours = _rename(name)
        if ours in converted:
            raise CheckpointError(f"not a VMamba state dict: two tensors are called {ours} in ours")
        converted[ours] = _reshape(ours, tensor, routes)
        converted.renamed[name] = ours
    if not converted:
        raise CheckpointError("not a VMamba state dict: it holds no tensors")
    return converted


def load_vmamba(model: QMamba, state_dict: Mapping[str, Any]) -> ConvertedState:
    """Load published weights into a network, strictly: only a head that was dropped, and LQMamba's route
    gates when the weights are a cross-scan model's, keep what they had.

    The gates of a local-scan network are then set to exactly one half (their second Linear is zeroed), which
    the LayerNorm after the sum absorbs.

    Raises:
        CheckpointError: a tensor is missing, not known, or of another shape.
    """
    converted = from_vmamba(state_dict)
    own = model.state_dict()
    gates = {name for name in own if ".gate." in name}
    without_gates = not any(".gate." in name for name in converted)
    may_lack = {name for name in own if name.startswith("head.fc.")} if converted.dropped else set()
    may_lack |= gates if without_gates else set()
    missing = sorted(own.keys() - converted.keys() - may_lack)
    unknown = sorted(converted.keys() - own.keys())
    wrong = sorted(n for n in converted.keys() & own.keys() if converted[n].shape != own[n].shape)
    for problem, names in (("lacks", missing), ("has, and the network lacks,", unknown)):
        if names:
            raise CheckpointError(f"the state dict {problem} {names[0]} (and {len(names) - 1} more)")
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{name} is {tuple(converted[name].shape)} in the state dict and {tuple(own[name].shape)} in "
            f"the network (and {len(wrong) - 1} more differ): build the network with the same widths"
        )
    model.load_state_dict({**own, **converted}, strict=True)
    if without_gates:
        for module in model.modules():
            gate = getattr(module, "gate", None)
            if gate is not None:
                gate.expand.weight.data.zero_()
                gate.expand.bias.data.zero_()
    return converted


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"a {type(state_dict).__name__} is no state dict: pass what torch.load gives, or its 'model'"
        )
    for key in _WRAPPERS:
        inner = state_dict.get(key)
        if isinstance(inner, Mapping):
            return _unwrap(inner)
    wrong = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"not a VMamba state dict: {wrong[0]!r} is no tensor")
    names = [str(name) for name in state_dict]
    if names and all(name.startswith(_PARALLEL) for name in names):
        names = [name.removeprefix(_PARALLEL) for name in names]
    return dict(zip(names, state_dict.values(), strict=True))


def _rename(name: str) -> str:
    match = re.fullmatch(r"(layers\.\d+\.blocks\.\d+)\.op\.(.+)", name)
    if match and match[2] in _SCAN:
        return f"{match[1].replace('layers', 'stages')}.ss2d.{_SCAN[match[2]]}"
    stem, _, leaf = name.rpartition(".")
    numbers = re.findall(r"(?<=^layers\.)\d+|(?<=\.blocks\.)\d+", stem)
    pattern = stem
    for number, mark in zip(numbers, ("{s}", "{b}"), strict=False):
        pattern = re.sub(rf"\.{number}(?=\.)", f".{mark}", pattern, count=1)
    if pattern not in _NAMES or leaf not in ("weight", "bias"):
        raise CheckpointError(f"not a VMamba state dict: no tensor of that model is called {name!r}")
    return _NAMES[pattern].format(**dict(zip("sb", numbers, strict=False))) + f".{leaf}"


def _count_routes(state: Mapping[str, Tensor]) -> int:
    """K, from dt_projs_bias (K, D); 4 in every published model."""
    for name, tensor in state.items():
        if name.endswith(("dt_projs_bias", "dt_projs.bias")) and tensor.ndim == 2:
            return tensor.shape[0]
    return 4


def _reshape(name: str, tensor: Tensor, K: int) -> Tensor:
    """Same elements in the same order, in the shape that the parameter has here."""
    leaf = name.rsplit(".ss2d.", 1)[-1]
    try:
        if leaf == "x_proj.weight":
            d = tensor.shape[2] if tensor.ndim == 3 and tensor.shape[0] == K else tensor.shape[1]
            return tensor.reshape(-1, d)  # (K·(R+2N), D)
        if leaf == "dt_weight":
            if tensor.ndim == 3 and tensor.shape[0] == K:  # older files: (K, D, R)
                return tensor
            return tensor.reshape(K, tensor.shape[0] // K, tensor.shape[1])  # (K·D, R[, 1])
        if leaf == "dt_bias":
            return tensor.reshape(K, -1)
        if leaf == "A_log":
            return tensor.reshape(K, -1, tensor.shape[-1])
        if leaf == "D":
            return tensor.reshape(K, -1)
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f"{name}: {tuple(tensor.shape)} is not a shape of VMamba's") from error
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and not leaf.startswith("conv"):
        return tensor.flatten(1)  # a Linear that was saved as a 1×1 convolution
    return tensor
