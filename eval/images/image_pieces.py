"""Something computed for every image of a source: in pieces (see `pieces`), each a file of arrays with a row an image.

Images that cannot be used are left out and named, up to a limit.
"""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from data_recipes.files import write_json
from data_recipes.images import ImageSource

from ..pieces import digest, flatten, in_batches

PIECE = 64  # images in a file
LEFT_OUT = "left out"
Arrays = dict[str, np.ndarray]


class Images(NamedTuple):
    """Some of a source, `batch_size` at a time; more than `max_bad` that cannot be used are an error."""

    source: ImageSource
    numbers: Sequence[int]
    batch_size: int = 16
    max_bad: int = 10


class Task(NamedTuple):
    """`read`: number of an image -> whatever `compute` takes several of; ValueError where the image cannot be used.
    `key` (JSON can hold it) is all that the arrays depend on but the number."""

    key: Any
    read: Callable[[int], Any]
    compute: Callable[[list[Any]], Arrays]


class Result(NamedTuple):
    """`scores` over `images` images; `left_out` says why others are not among them."""

    scores: dict[str, Any]
    images: int
    left_out: list[str]
    model_hash: str


def image_jobs(task: Task, images: Images) -> dict[str, Callable[[], bytes]]:
    """{name: what makes the content of the file} for `work`."""
    key, left_out = digest([task.key, images.source.fingerprint()]), []

    def job(piece: Sequence[int]) -> bytes:
        before, parts = len(left_out), []
        for batch in in_batches(piece, images.batch_size):
            parts.append(compute(task, batch, left_out))
            check_left_out(left_out, images.max_bad)
        return to_bytes({**join(parts), LEFT_OUT: np.array(left_out[before:], dtype=str)})

    return {digest([key, [*piece]]): lambda piece=piece: job(piece) for piece in in_batches(images.numbers, PIECE)}


def compute(task: Task, batch: Sequence[int], left_out: list[str]) -> Arrays:
    items = []
    for number in batch:
        try:
            items.append(task.read(number))
        except ValueError as error:
            left_out.append(str(error))
    return task.compute(items) if items else {}


def gather(files: Sequence[Path], max_bad: int) -> tuple[Arrays, list[str]]:
    """What the jobs made -> (arrays over all images, why others were left out). Raises ValueError when there are more
    than `max_bad` of these, or only these."""
    parts = [from_bytes(file.read_bytes()) for file in files]
    left_out = [reason for part in parts for reason in part.pop(LEFT_OUT).tolist()]
    arrays = join(parts)
    if not arrays:
        raise ValueError(f"none of {len(left_out)} images can be used, the first: {left_out[0]}")
    check_left_out(left_out, max_bad)
    return arrays, left_out


def check_left_out(left_out: Sequence[str], max_bad: int) -> None:
    if len(left_out) > max_bad:
        raise ValueError(f"{len(left_out)} images cannot be used, --max-bad allows {max_bad}: {left_out[-1]}")


def join(parts: Sequence[Arrays]) -> Arrays:
    """Those without any image count for nothing."""
    parts = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def to_bytes(arrays: Arrays) -> bytes:
    """As an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def from_bytes(content: bytes) -> Arrays:
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def write_result(
    out: Path, result: Result, source: ImageSource, about: dict[str, Any], settings: dict[str, Any]
) -> None:
    """results.json: all that tells how the numbers came about."""
    content = {
        **about,
        "model_hash": result.model_hash,
        "settings": settings,
        "images": result.images,
        "left_out": [*source.damages, *result.left_out],
        "scores": result.scores,
    }
    write_json(out / "results.json", content)


def print_result(result: Result, source: ImageSource) -> None:
    """A table, and on standard error what is left out."""
    table = Table(f"{result.images} images", "")
    for name, scores in result.scores.items():
        for line, value in flatten(name, scores):
            table.add_row(line, f"{value:.4g}")
    Console().print(table)
    left_out = [*source.damages, *result.left_out]
    if left_out:
        print(f"note: {len(left_out)} that cannot be used are left out, e.g. {left_out[0]}", file=sys.stderr)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
