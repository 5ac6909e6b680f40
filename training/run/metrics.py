"""Where the numbers of a run go: a console line, metrics.jsonl, wandb when asked; and stopping on a signal."""

import dataclasses
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from PIL import Image
from torch import nn

from data_recipes.files import whole

from .distributed import sum_over_ranks
from .recipe import save_config

# Dense bfloat16, operations a second, by a part of the device's name.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "RTX 4090": 165e12}
TWICE = 5.0  # seconds, see StopSignal
COMPUTING = ("backbone.", "lm_head.", "code_head.")


class Metrics:
    """Logs one dict of numbers per step, and the resolved recipe. Rows past `first_step` of an interrupted run are
    dropped when it resumes."""

    def __init__(self, config: Any, first_step: int):
        run, mode = config.run.path, config.run.wandb
        run.mkdir(parents=True, exist_ok=True)
        with whole(run / "config.yaml") as file:
            save_config(config, file)
        self.file, self.steps, self.every = run / "metrics.jsonl", config.run.steps, config.run.log_every
        self.before: dict[str, float] | None = None
        if self.file.is_file():
            rows = [row for row in read_rows(self.file) if row["step"] <= first_step]
            self.before = rows[-1] if rows else None
            with whole(self.file) as file:
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.wandb = _start_wandb(run, dataclasses.asdict(config), mode)
        self.started, self.first_step = time.monotonic(), first_step

    def log(self, step: int, values: dict[str, float]) -> None:
        """`step` counts from 1. The console shows every `log_every`-th, without details: names with a slash."""
        seconds = time.monotonic() - self.started
        if due(step, self.every, self.steps) or step == self.first_step + 1:
            left = seconds / max(1, step - self.first_step) * (self.steps - step)
            line = " | ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
            print(f"step {step}/{self.steps} | {line} | {left / 60:.1f} min left", flush=True)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **values}) + "\n")
        if self.wandb:
            self.wandb.log(values, step=step)

    def texts(self, step: int, name: str, lines: Sequence[str]) -> None:
        """Keep lines of text as `texts/NAME_{step}.txt`, and show them in wandb."""
        file = self.file.parent / "texts" / f"{name}_{step:06d}.txt"
        with whole(file) as written:
            written.write_text("".join(f"{line}\n" for line in lines))
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Table(columns=[name], data=[[line] for line in lines])}, step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Keep a picture as `pictures/NAME_{step}.png`, and show it in wandb."""
        file = self.file.parent / "pictures" / f"{name}_{step:06d}.png"
        with whole(file) as written:
            image.save(written, "PNG")
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(image)}, step=step)

    def close(self) -> None:
        if self.wandb:
            self.wandb.finish()


def read_rows(file: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, without one that was cut off when the process was killed or the disk full.
    Raises ValueError for other damage."""
    lines = file.read_text().splitlines()
    if lines and not lines[-1].endswith("}"):
        lines.pop()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


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
    """Inside its `with`, Ctrl-C or SIGTERM sets `stopped`, so that the step can end and be saved. A second Ctrl-C stops
    at once, and so does a later SIGTERM: launchers send it twice, but not seconds apart."""

    def __enter__(self):
        self.stopped, self.since = False, 0.0
        self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _stop(self, number: int, _frame: Any) -> None:
        again = self.stopped and (number == signal.SIGINT or time.monotonic() - self.since > TWICE)
        if not self.stopped:
            self.stopped, self.since = True, time.monotonic()
        if again:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.stopped

    def anywhere(self) -> bool:
        """Has any rank been told to stop? All ranks must ask, and all get the same answer."""
        if sum_over_ranks(torch.tensor(float(self.stopped))):
            self.stopped = True
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


class Speed:
    """What one update after the other takes: rates, share of the device's peak, and memory."""

    def __init__(self, model: nn.Module, device: torch.device, world: int):
        # A token costs 6 operations for each weight (PaLM, arXiv 2204.02311, appendix B); embeddings only look up.
        counts = {name: getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters()}
        used = [n for name, n in counts.items() if name.startswith(COMPUTING) and "embed_tokens" not in name]
        self.flops_per_token, self.device = 6 * sum(used), device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = world * next((peak for known, peak in PEAK_FLOPS.items() if known in name), 0.0)
        self.last = time.monotonic()

    def measure(self, tokens: float, samples: int) -> dict[str, float]:
        """Of the update that has just ended, on all ranks; memory is this rank's peak."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        values = {"tokens": tokens, "tokens_per_s": tokens / seconds, "samples_per_s": samples / seconds}
        if self.peak:
            values["mfu"] = values["tokens_per_s"] * self.flops_per_token / self.peak
        return {**values, "memory_gb": peak_memory(self.device) / 2**30}


def peak_memory(device: torch.device) -> int:
    """Bytes that this process had at most: on the GPU, or altogether."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss, which on Linux begins with the most that the parent process held.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def ignore_stop_signals(_worker: int) -> None:
    """For data workers: a stop signal reaches the whole process group, and the loop still needs its batch. SIGTERM
    from the process that started them is obeyed: it sends it when it ends, for whatever reason, and waits for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere, torch's own handler looks whom it is from
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=_end_with_parent, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def due(step: int, every: int, steps: int) -> bool:
    """Is it time for what happens every `every` steps, and at the last one?"""
    return step % every == 0 or step == steps
