"""What a run leaves in its folder to be resumed from: ``state.pt`` and ``log.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import RecipeError

STATE, LOG = "state.pt", "log.jsonl"
KEYS = {"fingerprint", "step", "validated", "network", "mean", "heads", "optimisers", "scaler", "task"}


def check_folder(out: Path, resume: bool) -> None:
    """Make the folder; refuse one with a run that should not be resumed."""
    if (out / STATE).exists() and not resume:
        raise RecipeError(f"{out} holds an unfinished run; resume it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)


def save_state(out: Path, state: dict[str, Any]) -> None:
    """Write the state so that a crash at any moment leaves the old one or the new one."""
    torch.save(state, out / "state.tmp")
    (out / "state.tmp").replace(out / STATE)


def load_state(out: Path, fingerprint: str, device: torch.device) -> dict[str, Any] | None:
    """Read the state of a run; None where there is none.

    Raises:
        RecipeError: it is damaged, not a state of this library, or of a run with another fingerprint.
    """
    path = out / STATE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever bytes the file has: unpickling may fail in any way
        raise RecipeError(f"{path} is damaged; choose another folder, or delete it to start over") from error
    if not isinstance(state, dict) or state.keys() != KEYS:
        raise RecipeError(
            f"{path} is not a state of this version's training; choose another folder, or delete it to "
            "start over"
        )
    if state["fingerprint"] != fingerprint:
        raise RecipeError(f"{out} holds a run of another recipe or other data; choose another folder")
    return state


def forget_state(out: Path) -> None:
    """Delete the state: the run has ended."""
    for name in (STATE, "state.tmp"):
        (out / name).unlink(missing_ok=True)


def shorten_log(out: Path, steps: int) -> None:
    """Remove the steps from the log that will be repeated."""
    log = out / LOG
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            kept += [line] * (json.loads(line)["step"] <= steps)
        except ValueError:  # the last line, cut off by a crash
            break
    log.write_text("".join(kept), encoding="utf-8")
