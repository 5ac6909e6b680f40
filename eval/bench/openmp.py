"""The same work with every number of threads, way of waiting and allocator: each in a process of its own, as all three
are settled when it starts."""

import os
import sys
import time
from collections.abc import Callable
from ctypes.util import find_library
from math import ceil
from statistics import median

import torch

from mllm import generate_images

from ..models import load_image_tokenizer, load_model
from ..threads import choose_threads, cores
from . import Options
from .figures import Figure, last_line, spread
from .updates import Updates

WAYS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Large tensors stay with the process when they are freed, and are there for the next update.
JEMALLOC = {"MALLOC_CONF": "oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1"}
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
ROUNDS = 2


def bench_threads(options: Options, batch: int) -> list[Figure]:
    if options.shape != "scenes":
        raise ValueError("threads is of the model of scenes: give --shape scenes")
    figures: list[Figure] = []
    for work, rates in measure(batch, options.repeats).items():
        name, unit = work.split(", ")
        (_, own), *others = rates.items()
        for setting, other in others:
            mine, theirs = median(own), median(other)
            figures.append(Figure(f"{name}: {setting}", mine, unit, theirs, mine / theirs, spread(own), spread(other)))
    return figures


def settings() -> dict[str, dict[str, str]]:
    """Name -> environment; the first is what a command settles by itself."""
    chosen = {name: value for name, value in os.environ.items() if name not in WAYS}
    choose_threads(chosen)
    found = {"by itself": {name: chosen[name] for name in WAYS if name in chosen}}
    for threads in sorted({1, ceil(cores())}):
        for name, waiting in (
            ("passive", {"OMP_WAIT_POLICY": "PASSIVE"}),
            ("OpenMP's own waiting", {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}),
        ):
            found[f"{threads} thread{'s' * (threads > 1)}, {name}"] = {"OMP_NUM_THREADS": str(threads), **waiting}
    own = found["by itself"]
    found["by itself, glibc keeps memory"] = {**own, **KEEPING}
    for allocator, options in (("jemalloc", JEMALLOC), ("tcmalloc", {}), ("mimalloc", {})):
        library = find_library(allocator)
        if library:
            found[f"by itself, {allocator}"] = {**own, "LD_PRELOAD": library, **options}
    return found


def measure(batch: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """{work: {setting: rates}}. Settings take turns, so that all share whatever else the machine does."""
    rates: dict[str, dict[str, list[float]]] = {work: {} for work in WORKS}
    for _ in range(ROUNDS):
        for setting, environment in settings().items():
            clean = {name: value for name, value in os.environ.items() if name not in WAYS}
            for work in WORKS:
                command = [sys.executable, "-m", __name__, work, str(batch), str(repeats)]
                rates[work].setdefault(setting, []).append(float(last_line(command, {**clean, **environment})))
    return rates


# ---- in a process of its own


def training(batch: int) -> tuple[Callable, float]:
    updates = Updates(batch, "run.threads=0")
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


def main(work: str, batch: str, repeats: str) -> None:
    run, amount = WORKS[work](int(batch))
    run()  # to warm up
    times = []
    for _ in range(int(repeats)):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    print(amount / median(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
