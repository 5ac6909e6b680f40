"""Where the numbers of a run go: a console line, metrics.jsonl, wandb when asked; and stopping on a signal."""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .config import save_config
from .distributed import sum_over_ranks

WANDB_MODES = ("off", "online", "offline")


class Metrics:
    """Logs one dict of numbers per step, and the resolved recipe. Rows past `first_step` of an interrupted run are
    dropped when it resumes."""

    def __init__(self, config: Any, first_step: int):
        run, mode = config.run.path, config.run.wandb
        if mode not in WANDB_MODES:
            raise ValueError(f"unknown run.wandb {mode!r}; known: {', '.join(WANDB_MODES)}")
        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.yaml")
        self.file, self.steps = run / "metrics.jsonl", config.run.steps
        if self.file.is_file():
            rows = [line for line in self.file.read_text().splitlines() if json.loads(line)["step"] <= first_step]
            self.file.write_text("".join(line + "\n" for line in rows))
        self.wandb = _start_wandb(run, dataclasses.asdict(config), mode)
        self.started, self.first_step = time.monotonic(), first_step

    def log(self, step: int, values: dict[str, float]) -> None:
        """`step` counts from 1. Names with a slash are details, which the console line leaves out."""
        seconds = time.monotonic() - self.started
        left = seconds / max(1, step - self.first_step) * (self.steps - step)
        line = " | ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
        print(f"step {step}/{self.steps} | {line} | {left / 60:.1f} min left", flush=True)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **values}) + "\n")
        if self.wandb:
            self.wandb.log(values, step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keep a picture as `pictures/NAME_{step}.png`, and show it in wandb."""
        file = self.file.parent / "pictures" / f"{name}_{step:06d}.png"
        file.parent.mkdir(exist_ok=True)
        image.save(file)
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(image)}, step=step)

    def close(self) -> None:
        if self.wandb:
            self.wandb.finish()


def _start_wandb(run: Path, config: dict[str, Any], mode: str):
    if mode == "off":
        return None
    try:
        import wandb
    except ImportError as error:
        raise ValueError(f"run.wandb {mode!r} needs wandb: pip install wandb, or leave it off") from error

    return wandb.init(
        project="mllm", name=run.name, dir=str(run), mode=mode, config=config, id=run.name, resume="allow"
    )


class Problems:
    """Bad samples of a run: each is told once. Raises ValueError when they are more than `limit`, or nothing else."""

    def __init__(self, limit: int):
        self.limit, self.seen = limit, {}

    def add(self, problems: Sequence[str], complete: bool = True) -> None:
        """`complete`: good samples were found in place of these."""
        for problem in problems:
            if problem not in self.seen:
                self.seen[problem] = None
                print(f"left out ({len(self.seen)} of at most {self.limit}): {problem}", file=sys.stderr, flush=True)
            if len(self.seen) > self.limit:
                raise ValueError(f"{len(self.seen)} bad samples, data.max_bad is {self.limit}; the last: {problem}")
        if not complete:
            raise ValueError(f"no good sample found among {len(problems)} in a row; the last: {problems[-1]}")


class StopSignal:
    """True once Ctrl-C or SIGTERM came; a second Ctrl-C stops at once."""

    def __init__(self):
        self.stopped = False
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_) -> None:
        self.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __bool__(self) -> bool:
        return self.stopped

    def anywhere(self) -> bool:
        """Has any rank been told to stop? All ranks must ask, and all get the same answer."""
        self.stopped = bool(sum_over_ranks(torch.tensor(float(self.stopped))))
        return self.stopped


class Rate:
    """Samples per second since it was made."""

    def __init__(self):
        self.started, self.first = time.monotonic(), None

    def rate(self, seen: int) -> float:
        """`seen` counts all samples of the run; the first call only sets the mark."""
        now = time.monotonic()
        if self.first is None:
            self.started, self.first = now, seen
            return 0.0
        return (seen - self.first) / (now - self.started)


def ignore_stop_signals(_worker: int) -> None:
    """For data workers: a stop signal reaches the whole process group, and the loop still needs its batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def due(step: int, every: int, steps: int) -> bool:
    """Is it time for what happens every `every` steps, and at the last one?"""
    return step % every == 0 or step == steps
