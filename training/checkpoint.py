"""Step folders of a run: `step_000500/model` is what from_pretrained accepts, `state.pt` is the rest of the run.

A folder is written under a temporary name and renamed, and renamed before it is deleted, so that a process that is
killed never leaves one that looks finished and is not.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

WRITING, REMOVING = ".writing_", ".removing_"


def save_checkpoint(run: Path, step: int, save_model: Callable[[Path], None], state: dict, keep: int) -> Path:
    """Write `run/step_{step}` and drop all but the newest `keep`. Raises ValueError when the disk does not take it:
    then nothing of it is left, and earlier ones are as they were."""
    final, temporary = run / f"step_{step:06d}", run / f"{WRITING}step_{step:06d}"
    run.mkdir(parents=True, exist_ok=True)
    for unfinished in [*run.glob(f"{WRITING}step_*"), *run.glob(f"{REMOVING}step_*")]:  # of processes that were killed
        shutil.rmtree(unfinished)
    try:
        temporary.mkdir()
        save_model(temporary / "model")
        torch.save({**state, "step": step}, temporary / "state.pt")
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have words of their own for it
        shutil.rmtree(temporary, ignore_errors=True)
        before = latest_checkpoint(run)
        newest = f"{before.name} stays the newest one, and the run goes on from it" if before else "there is none yet"
        raise ValueError(f"cannot write checkpoint {final}: {' '.join(str(error).split())}; {newest}") from error
    if final.exists():
        _remove(final)
    temporary.rename(final)
    _sync(run)
    for old in _steps(run)[:-keep]:
        _remove(old)
    return final


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished step folder of a run, or None."""
    steps = _steps(run)
    return steps[-1] if steps else None


def load_state(checkpoint: Path) -> dict:
    """What `save_checkpoint` was given, and the step. Tensors are read from disk when they are used."""
    return torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True, mmap=True)


def _steps(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("step_*") if (path / "state.pt").is_file())


def _remove(checkpoint: Path) -> None:
    hidden = checkpoint.with_name(f"{REMOVING}{checkpoint.name}")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
