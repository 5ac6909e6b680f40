"""How many threads a command has, and how they wait: said to OpenMP before torch is imported, which reads it once."""

import os
from collections.abc import MutableMapping
from math import ceil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup/cpu.max")
# How often a thread looks whether the others are done before it goes to sleep: about half a millisecond. OpenMP's own
# choice, some 30 times as long, is no faster, and stands still beside another busy process. A tenth of it costs a
# waking at most layers, and half of the speed (docs/speed.md).
PATIENCE = "10000"


def cores() -> float:
    """Of this process: those it may run on, or less where its container has a share of them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP.read_text().split()
        return allowed if quota == "max" else min(allowed, int(quota) / int(period))
    except (OSError, ValueError):
        return allowed


def choose_threads(environment: MutableMapping[str, str], processes: int = 1) -> None:
    """Threads for one of so many processes side by side on this machine, at least those of its launcher. What is there
    already stays."""
    ranks = int(environment.get("LOCAL_WORLD_SIZE") or 1)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, ceil(cores()) // max(ranks, processes))))
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", PATIENCE)  # GNU's OpenMP, with torch on Linux
        environment.setdefault("KMP_BLOCKTIME", "0")  # LLVM's and Intel's
