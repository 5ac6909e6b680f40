"""Training in processes that can be killed, forked from one that has imported everything."""

import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["training.lm.train", "deepspeed"])
ROOT = Path(__file__).parents[1]
HANGS = 900  # seconds; what takes longer, on however busy a machine, waits for a rank that does not come


def start_training(
    argv: Sequence[str | Path],
    log: Path,
    ranks: int = 1,
    largest_file: int = resource.RLIM_INFINITY,
    script: str = "train",
) -> list[BaseProcess]:
    """`python -m scripts.SCRIPT ARGV` on so many ranks; what they write to standard error comes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        rendezvous = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
        environment = {name: str(value) for name, value in {**rendezvous, "MASTER_PORT": port}.items()}
        args = ([str(word) for word in argv], str(log), environment if ranks > 1 else {}, largest_file, script)
        processes.append(CONTEXT.Process(target=_train, args=args))
        processes[-1].start()
    return processes


def run_training(argv: Sequence[str | Path], log: Path, ranks: int = 1, **options: Any) -> list[int | None]:
    """-> the status of each rank; None, after a kill, for one that hangs."""
    processes = start_training(argv, log, ranks, **options)
    for process in processes:
        process.join(HANGS)
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return statuses


def _train(argv: list[str], log: str, environment: dict[str, str], largest_file: int, script: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stderr.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.environ.update(environment)
    os.chdir(ROOT)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    from scripts._errors import cli

    cli(import_module(f"scripts.{script}").main, argv)
