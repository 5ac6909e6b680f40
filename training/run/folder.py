"""A run's folder belongs to one process at a time and to one model. This module decides what a run may resume from."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .checkpoint import check_checkpoint, latest_checkpoint
from .distributed import from_rank_zero, is_rank_zero
from .recipe import RlConfig, TokenizerTrainConfig, TrainConfig, load_config
from .values import leaves

LOCK, RECIPE = "run.lock", "config.yaml"
TAKEN = (errno.EACCES, errno.EAGAIN)

# What the weights and the optimizer's state of a checkpoint are of: these keys stay as they are, with all below them.
FIXED = {
    TrainConfig: ("model", "optim.muon"),
    RlConfig: ("model", "optim.muon"),
    TokenizerTrainConfig: (
        *("size", "model", "init_from", "init_clip", "init_entries", "text_tokenizer", "trainable", "optim.muon"),
        *("adversarial.dino", "adversarial.optim.muon"),
    ),
}
# A part of the model that is there or not: on and off are fixed, how much is not.
SWITCHES = ("adversarial.weight", "ema", "quantizer.revive_after", "quantizer.k_means_at")
# Of the fixed keys, these can change: they say how a model is used or trained, or where it lay.
FREE = ("model.plan_length", "model.tune.")
FREE_WITH_LORA = ("model.init_from",)  # an adapter knows its weights by their hash
IGNORED = ("run.name", "run.folder")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and lock it against other processes, on this machine or another one that shares it. The system
    unlocks it when the process ends, however it ends. Raises ValueError, naming the other process, when it is locked.

    POSIX locks: unlike those of flock, data workers do not inherit them, so that a run whose process was killed can
    go on at once, and NFS carries them between machines."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            if error.errno in TAKEN:
                other = file.read().strip() or "another process"
                raise ValueError(
                    f"{folder} is in use by {other}: stop it, or take another folder (run.name, --out)"
                ) from error
            print(f"{folder}: its file system has no locks; see that no other run uses it", file=sys.stderr, flush=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextmanager
def only_run(config: TrainConfig | TokenizerTrainConfig) -> Iterator[Path | None]:
    """Hold the run's folder, and give the checkpoint to go on from, or None. All ranks must enter, and rank 0 holds
    it. Raises ValueError, on all of them, when another process has it, when the checkpoint is damaged, or when it is
    of another model than the recipe's; other changes to the recipe are told in a line each."""
    folder, refused = config.run.path, None
    with ExitStack() as stack:
        if is_rank_zero():
            try:
                stack.enter_context(locked(folder))
            except ValueError as error:
                refused = error
        if from_rank_zero(torch.tensor(float(refused is not None))):
            raise refused or ValueError(f"{folder}: refused by rank 0, whose line says why")
        checkpoint = latest_checkpoint(folder)
        told = changes(config, checkpoint) if checkpoint else []
        if is_rank_zero() and told:
            print(*told, sep="\n", flush=True)
        yield checkpoint


def changes(config: TrainConfig | TokenizerTrainConfig, checkpoint: Path) -> list[str]:
    """A line for each key that differs from the recipe that the checkpoint was trained by. Raises ValueError for those
    that would make it another model, and for a checkpoint that is damaged."""
    check_checkpoint(checkpoint)
    kind, file = type(config), checkpoint.parent / RECIPE
    if not file.is_file():
        raise ValueError(f"{checkpoint} has no {RECIPE} beside it, which says what it is: give another run.name")
    try:
        before = dict(leaves(asdict(load_config(kind, file))))
    except ValueError as error:
        raise ValueError(f"{checkpoint.parent} is another kind of run, give another run.name: {error}") from error
    now, fixed, free = dict(leaves(asdict(config))), [], []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old != new and key not in IGNORED:
            may_change = key.startswith(_free(now)) and key in before and key in now
            is_fixed = key.startswith(FIXED[kind]) and not may_change
            is_fixed |= key in SWITCHES and bool(old) != bool(new)
            (fixed if is_fixed else free).append(f"{key} was {old}, is {new}")
    if fixed:
        raise ValueError(
            f"recipe, {'; '.join(fixed)}: {checkpoint} goes on with the model it began with; "
            "for another, give a new run.name"
        )
    return [f"changed since {checkpoint.name}: {change}" for change in free]


def _free(recipe: dict[str, Any]) -> tuple[str, ...]:
    return FREE + FREE_WITH_LORA if "model.lora.rank" in recipe else FREE
