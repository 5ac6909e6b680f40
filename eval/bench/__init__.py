"""Times of a model beside plain baselines that must give the same result: a module for each subject.

This module imports nothing of them, so that a command line knows the names at once.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

# Command -> the module with its `bench_COMMAND(options, batch)`.
BENCHES = {
    "encode": "images",
    "decode": "images",
    "generate": "generation",
    "answer": "generation",
    "step": "steps",
    "prefill": "steps",
    "load": "loading",
    "train": "image_tokenizer_update",
    "update": "updates",
    "threads": "openmp",
}
# Widths of the language model: (width, layers); "7b-layers" is two of a 7B model's, to fit anywhere.
BACKBONES = {"tiny": (64, 2), "w320": (320, 6), "w576": (576, 30), "w2048": (2048, 16)}
BACKBONES |= {"7b-layers": (4096, 2), "7b": (4096, 32)}


@dataclass(frozen=True)
class Options:
    """What is timed, a `model` (a name or folder) or random weights of a named `shape`, and how often."""

    model: str | None = None
    shape: str | None = None
    repeats: int = 5
    tokens: int = 64
    positions: int | None = None
    form: str | None = None


def run_bench(command: str, options: Options, batch: int) -> list[Any]:
    """-> the `Figure`s of one batch size. Raises ValueError where both ways differ, or for an unknown shape."""
    module = import_module(f".{BENCHES[command]}", __name__)
    return getattr(module, f"bench_{command}")(options, batch)
