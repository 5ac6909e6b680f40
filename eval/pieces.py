"""Work in pieces, each a file: a killed run goes on, processes share the work, and nothing half-written is seen.

Processes need no connection. torchrun's RANK and WORLD_SIZE say whose a piece is, the files say what is done.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

from data_recipes.files import write_json, write_whole
from mllm.device import best_device

T = TypeVar("T")


def share(items: Sequence) -> Sequence:
    """What this process does of what all do."""
    return items[int(os.environ.get("RANK", "0")) :: int(os.environ.get("WORLD_SIZE", "1"))]


def spread(items: Sequence, limit: int | None) -> list:
    """`limit` of the items, evenly over the whole list."""
    count = min(limit or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


def in_batches(items: Sequence, size: int) -> list[Sequence]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def device() -> torch.device:
    """This process's: a GPU of its own (LOCAL_RANK), where there are any."""
    return best_device()


def work(folder: Path, names: Sequence[str], make: Callable[[str], bytes], label: str) -> list[Path] | None:
    """Make this process's files of `names` that `folder` does not hold. -> all the files; None while others are
    still at theirs."""
    for name in watch([name for name in share(names) if not (folder / name).is_file()], label):
        write_whole(folder / name, make(name))
    files = [folder / name for name in names]
    return files if all(file.is_file() for file in files) else None


def work_json(folder: Path, pieces: dict[str, T], make: Callable[[T], Any], label: str) -> list[Any] | None:
    """`work` for what JSON can hold: `make` of each piece, whose file's name is its key. None as there."""
    files = work(folder, list(pieces), lambda name: json.dumps(make(pieces[name])).encode(), label)
    return None if files is None else [json.loads(file.read_text()) for file in files]


def finish(all_works: Callable[[], T | None]) -> T | None:
    """Result of several works, None while others are still at theirs. A second look finds what another process ended
    after this one had passed it; so the process that ends last always has the result."""
    result = all_works()
    return all_works() if result is None else result


def watch(items: Sequence, label: str) -> Iterable:
    """The items, with a progress bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    return track(items, label, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def drawing_bar(total: int) -> Iterator[Callable[[float], None]]:
    """A bar of `total` images on standard error if that is a terminal. -> a function to say how many are done;
    fractions count the positions within a batch."""
    console = Console(stderr=True)
    columns = TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def bytes_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on standard error if that is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("writing"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def digest(content: Any) -> str:
    """12 hex digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def claimed(folder: Path) -> dict:
    """What `claim` wrote; {} for a folder of others."""
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def origin(folder: Path) -> dict:
    """{"model", "model_hash", "settings"} of the drawings in a folder, for a results file; {} for one of others."""
    run = claimed(folder)
    return {"model": run.pop("model_name"), "model_hash": run.pop("model"), "settings": run} if run else {}


def claim(folder: Path, identity: dict, about: dict | None = None) -> None:
    """Bind a folder to one run, so that no results of two are ever mixed: run.json holds what makes them comparable
    (`identity`) and what need not be equal (`about`). ValueError when it names another identity."""
    if not claimed(folder):
        write_json(folder / "run.json", {**identity, **(about or {})})
    before = claimed(folder)
    changed = [f"{name} was {before.get(name)}, is {new}" for name, new in identity.items() if before.get(name) != new]
    if changed:
        raise ValueError(f"{folder} holds another run ({'; '.join(changed)}): choose another --out or remove it")


def write_rows(file: Path, rows: Iterable[dict]) -> None:
    """As lines of JSON."""
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def flatten(name: str, scores: dict | float) -> Iterator[tuple[str, float]]:
    """Every number, with a dotted name."""
    if not isinstance(scores, dict):
        yield name, scores
        return
    for key, value in scores.items():
        yield from flatten(f"{name}.{key}", value)
