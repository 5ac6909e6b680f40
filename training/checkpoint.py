"""Step folders of a run: `step_000500/model` is what from_pretrained accepts, `state.pt` is the rest of the run.

A folder is written under a temporary name and renamed, so that a killed process never leaves one that looks finished.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch


def save_checkpoint(run: Path, step: int, save_model: Callable[[Path], None], state: dict, keep: int) -> Path:
    """Write `run/step_{step}` and drop all but the newest `keep`."""
    final, temporary = run / f"step_{step:06d}", run / f".writing_{step:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(temporary / "model")
    torch.save({**state, "step": step}, temporary / "state.pt")
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(run)
    for old in _steps(run)[:-keep]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished step folder of a run, or None."""
    steps = _steps(run)
    return steps[-1] if steps else None


def load_state(checkpoint: Path) -> dict:
    """What `save_checkpoint` was given, and the step."""
    return torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)


def _steps(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("step_*") if (path / "state.pt").is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
