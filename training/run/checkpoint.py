"""Step folders of a run: `step_000500/model` is what from_pretrained accepts, `state.pt` is the rest of the run.

A folder is renamed before it is deleted, so that a process that is killed never leaves one that looks finished and is
not.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data_recipes.files import whole


def save_checkpoint(run: Path, step: int, save_model: Callable[[Path], None], state: dict, keep: int) -> Path:
    """Write `run/step_{step}` and drop all but the newest `keep`. Raises ValueError when the disk does not take it:
    then nothing of it is left, and earlier ones are as they were."""
    final = run / f"step_{step:06d}"
    for unfinished in run.glob(".step_*"):  # of processes that were killed
        shutil.rmtree(unfinished)
    try:
        with whole(final) as part:
            part.mkdir()
            save_model(part / "model")
            torch.save({**state, "step": step}, part / "state.pt")
            for path in [*part.rglob("*"), part]:
                _sync(path)
            if final.exists():
                _remove(final)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have words of their own for it
        before = latest_checkpoint(run)
        newest = f"{before.name} stays the newest one, and the run goes on from it" if before else "there is none yet"
        raise ValueError(f"cannot write checkpoint {final}: {' '.join(str(error).split())}; {newest}") from error
    _sync(run)
    for old in checkpoints(run)[:-keep]:
        _remove(old)
    return final


def checkpoints(run: Path) -> list[Path]:
    """The finished step folders of a run, by number of steps."""
    found = [path for path in run.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted((path for path in found if (path / "state.pt").is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished step folder of a run, or None."""
    found = checkpoints(run)
    return found[-1] if found else None


def check_checkpoint(checkpoint: Path) -> None:
    """Open every file of a checkpoint. Raises ValueError, naming the first that is damaged and what the run can go on
    from without this checkpoint."""
    for file in [checkpoint / "state.pt", *sorted(checkpoint.glob("*/*"))]:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as tensors:
                    tensors.keys()
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.name == "state.pt":
                _load(file)
        except Exception as error:  # damaged bytes raise whatever they lead to
            before = [path.name for path in checkpoints(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
            further = f"the run goes on from {before[-1]}" if before else "the run begins anew"
            raise ValueError(f"cannot read {file}: it is damaged; remove {checkpoint}, and {further}") from error


def load_state(checkpoint: Path) -> dict:
    """What `save_checkpoint` was given, and the step. Tensors are read from disk when they are used."""
    return _load(checkpoint / "state.pt")


def _load(file: Path) -> dict:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _remove(checkpoint: Path) -> None:
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
