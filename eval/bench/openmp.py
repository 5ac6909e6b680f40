"""The same work with other numbers of threads, ways of waiting and allocators: each in a process of its own, as all
three are settled when it starts."""

import json
import os
import sys
import time
from collections.abc import Callable
from ctypes.util import find_library
from math import ceil

import torch

from mllm import generate_images
from training.run.device import JEMALLOC

from ..models import load_image_tokenizer, load_model
from ..threads import choose_threads, cores
from . import Options
from .figures import Figure, last_line, spread
from .updates import Updates

WAYS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
WAITING = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OpenMP's own waiting": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
}
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
ROUNDS = 2
SAMPLES = 4  # of an update
ENOUGH = 3.0  # seconds of a work in a process; so all settings take some three minutes on two cores


def bench_threads(options: Options, batch: int) -> list[Figure]:
    """`batch` images are drawn and encoded at a time. Rates are of the fastest run: other programs only slow one."""
    if options.shape not in (None, "scenes"):
        raise ValueError(f"--shape {options.shape}: threads is of the model of scenes alone")
    figures: list[Figure] = []
    for work, rates in measure(batch, options.repeats).items():
        name, unit = work.split(", ")
        (_, own), *others = rates.items()
        best, fastest = max(others, key=lambda other: max(other[1]))
        for setting, other in [*others, (f"the best, {best}", fastest)]:
            mine, theirs = max(own), max(other)
            figures.append(Figure(f"{name}: {setting}", mine, unit, theirs, mine / theirs, spread(own), spread(other)))
    return figures


def settings() -> dict[str, dict[str, str]]:
    """Name -> environment; the first is what a command settles by itself."""
    chosen = {name: value for name, value in os.environ.items() if name not in WAYS}
    choose_threads(chosen)
    own = {name: chosen[name] for name in WAYS if name in chosen}
    found = {"by itself": own, "1 thread": {"OMP_NUM_THREADS": "1"}}  # which waits for nobody
    if (threads := ceil(cores())) > 1:
        for name, waiting in WAITING.items():
            found[f"{threads} threads, {name}"] = {"OMP_NUM_THREADS": str(threads), **waiting}
    found["by itself, glibc keeps memory"] = {**own, **KEEPING}
    if find_library("jemalloc"):
        found["by itself, jemalloc"] = {**own, **JEMALLOC}
    return found


def measure(batch: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """{work: {setting: rates}}. Settings take turns, so that all share whatever else the machine does."""
    rates: dict[str, dict[str, list[float]]] = {work: {} for work in WORKS}
    clean = {name: value for name, value in os.environ.items() if name not in WAYS}
    command = [sys.executable, "-m", __name__, str(batch), str(repeats)]
    turns = [*settings().items()] * ROUNDS
    for number, (setting, environment) in enumerate(turns, start=1):
        told = json.loads(last_line(command, {**clean, **environment}))
        for work, found in told.items():
            rates[work].setdefault(setting, []).extend(found)
        line = "; ".join(f"{max(found):.4g} {work.split()[-1]} ({work.split(',')[0]})" for work, found in told.items())
        print(f"{number} of {len(turns)}, {setting}: {line}", file=sys.stderr, flush=True)
    return rates


# ---- in a process of its own


def training(_: int) -> tuple[Callable, float]:
    updates = Updates(SAMPLES, "run.threads=0", "run.accumulate=1")
    return updates.update, updates.tokens()


def drawing(batch: int) -> tuple[Callable, float]:
    model, processor = load_model("scenes")
    return lambda: generate_images(model, processor, ["a photo of a dog"] * batch), batch


def encoding(batch: int) -> tuple[Callable, float]:
    image_tokenizer = load_image_tokenizer("scenes")
    side = image_tokenizer.config.image_size
    pixels_N3HW = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return lambda: image_tokenizer.encode(pixels_N3HW), batch


WORKS = {"update, tokens/s": training, "drawing, images/s": drawing, "encoding, images/s": encoding}


def main(batch: str, repeats: str) -> None:
    rates = {}
    for work, make in WORKS.items():
        run, amount = make(int(batch))
        run()  # to warm up
        times = []
        while len(times) < int(repeats) and sum(times) < ENOUGH:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        rates[work] = [amount / seconds for seconds in times]
    print(json.dumps(rates))


if __name__ == "__main__":
    main(*sys.argv[1:])
