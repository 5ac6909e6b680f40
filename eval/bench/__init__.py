"""Times of a model beside plain baselines that must give the same result: a module for each subject.

This module imports nothing of them, so that a command line knows the names at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

# Command -> the module with its `bench_COMMAND(options, batch)`; "gpu" prints a page instead.
BENCHES = {
    "encode": "images",
    "decode": "images",
    "generate": "generation",
    "answer": "generation",
    "step": "steps",
    "kernels": "kernels",
    "prefill": "steps",
    "load": "loading",
    "train": "image_tokenizer_update",
    "update": "updates",
    "rl": "rl",
    "threads": "openmp",
    "gpu": "gpu",
}
# Widths of the language model: (width, layers); "7b-layers" is two of a 7B model's, to fit anywhere.
BACKBONES = {"tiny": (64, 2), "w320": (320, 6), "w576": (576, 30), "w2048": (2048, 16)}
BACKBONES |= {"7b-layers": (4096, 2), "7b": (4096, 32), "1b": (2048, 22)}
# What `kernels` times: a backbone, a code head, or both. UniTok's head is a quarter as wide as the released one.
KERNEL_SHAPES = {
    "scenes": {
        **{"dim": 256, "layers": 8, "heads": 4, "kv_heads": 4, "hidden": 768},
        "head": {"codebooks": 8, "entries": 256, "layers": 2, "width": 192, "heads": 4, "hidden": 512},
    },
    "smollm2-135m": {"dim": 576, "layers": 30, "heads": 9, "kv_heads": 3, "hidden": 1536},
    "unitok-head": {
        "dim": 1024,
        "head": {"codebooks": 8, "entries": 4096, "layers": 3, "heads": 8, "hidden": 2752, "shared_output": True},
    },
    "tiny": {
        **{"dim": 64, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 64, "head_dim": 32},
        "head": {"codebooks": 2, "entries": 16, "layers": 1, "heads": 1},
    },
}


@dataclass(frozen=True)
class Options:
    """What is timed, a `model` (a name or folder) or random weights of a named `shape`, and how often."""

    model: str | None = None
    shape: str | None = None
    repeats: int = 5
    tokens: int = 64
    positions: int | None = None
    form: str | None = None


def run_bench(command: str, options: Options, batches: Sequence[int]) -> list[Any]:
    """The `Figure`s of all batch sizes, with a line of progress on standard error if that is a terminal. Raises
    ValueError where both ways differ, and for an unknown shape."""
    from rich.console import Console

    bench = getattr(import_module(f".{BENCHES[command]}", __name__), f"bench_{command}")
    figures = []
    with Console(stderr=True).status(command) as status:
        for batch in batches:
            status.update(f"{command}, batch {batch}")
            for figure in bench(options, batch):
                figures.append(figure)
                status.update(f"{figure.name}: done")
    return figures


def print_gpu_page(shape: str | None, device: str) -> None:
    """See `gpu.print_page`."""
    import_module(".gpu", __name__).print_page(shape, device)
