"""The same result of both ways, then the time of each in turns; and the figures as a table and a plot."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from data_recipes.files import whole
from training.run.metrics import peak_memory

from ..pieces import device
from .reference import GUIDANCE, SAMPLING

TOLERANCE = 1e-4  # of pixels, relative to the largest; float32 leaves 1e-5
NEAR_TIE = 1e-4  # between the best entry and the second: rounding may swap them


@dataclass
class Figure:
    """`ratio` is how many times better `value` is than `baseline`; spreads are fractions of the median time."""

    name: str
    value: float
    unit: str
    baseline: float
    ratio: float
    spread: float
    baseline_spread: float


def gap(scores: torch.Tensor) -> torch.Tensor:
    """Between the best and the second-best of the last dimension."""
    best, second = scores.topk(2, -1).values.unbind(-1)
    return best - second


def check_codes(
    ours_NLK: torch.Tensor, baseline_NLK: torch.Tensor, gaps_NLK: torch.Tensor, in_turn: bool = False
) -> None:
    """Raises ValueError unless the codes are equal but for near ties. `in_turn`: each code depends on those before it,
    so that only the first difference of an image counts."""
    differ_NX = (ours_NLK != baseline_NLK).flatten(1)
    if in_turn:
        differ_NX &= differ_NX.cumsum(1) == 1
    wrong = (differ_NX.view_as(ours_NLK) & (gaps_NLK > NEAR_TIE)).nonzero().tolist()
    if wrong:
        image, position, k = wrong[0]
        raise ValueError(
            "not timed, as ours and the reference's loop give different codes, "
            f"first in image {image}, position {position}, sub-codebook {k}"
        )


def check_pixels(ours_N3HW: torch.Tensor, baseline_N3HW: torch.Tensor) -> None:
    error = ((ours_N3HW - baseline_N3HW).abs().max() / baseline_N3HW.abs().max()).item()
    if not error <= TOLERANCE:
        raise ValueError(f"not timed, as ours and the reference's loop give different images: {error:.1e} of the range")


def compare(name: str, ours: Callable, baseline: Callable, amounts: dict[str, float], repeats: int) -> list[Figure]:
    """`amounts`: what a run yields, by the unit of its rate. The check has warmed both ways up; taking turns, they
    share whatever else the machine does."""
    times = [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    mine, theirs = (median(column) for column in zip(*times, strict=True))
    spreads = [spread(column) for column in zip(*times, strict=True)]
    return [
        Figure(name, amount / mine, unit, amount / theirs, theirs / mine, *spreads) for unit, amount in amounts.items()
    ]


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(times: Sequence[float]) -> float:
    return (max(times) - min(times)) / median(times)


def last_line(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Of a command's output, with this `environment` alone (None: ours). Raises ValueError, with its line of errors,
    when it fails."""
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        raise ValueError((errors or lines or [f"{command[-1]} ended with status {run.returncode}"])[-1])
    return run.stdout.strip().splitlines()[-1]


# ---- what is printed


def print_table(figures: Sequence[Figure]) -> None:
    table = Table("", "", "ours", "spread", "baseline", "spread", "ratio")
    for figure in figures:
        values = (
            f"{figure.value:.4g}",
            f"{figure.spread:.0%}",
            f"{figure.baseline:.4g}",
            f"{figure.baseline_spread:.0%}",
        )
        table.add_row(figure.name, figure.unit, *values, f"{figure.ratio:.2f}")
    Console().print(table)
    print(f"peak memory: {peak_memory(device()) / 2**30:.2f} GB")


def plot(figures: Sequence[Figure], subject: str, file: Path) -> None:
    """A bar for each ratio; those of the roofline, which are fractions of a limit, are hatched."""
    from matplotlib.figure import Figure as Canvas

    ratios = {figure.name: figure.ratio for figure in figures}
    fractions = [", of " in name for name in ratios]
    canvas = Canvas(figsize=(8, 1.3 + 0.36 * len(ratios)), layout="constrained")
    threads = f"{torch.get_num_threads()} threads" if device().type == "cpu" else device().type
    canvas.suptitle(f"{subject}, {threads}, against the baseline")
    axes = canvas.add_subplot(xlim=(0, 1.12 * max(1, *ratios.values())))
    colors = ["#b9c9dd" if fraction else "#4c78a8" for fraction in fractions]
    hatches = ["//" if fraction else "" for fraction in fractions]
    bars = axes.barh([*ratios], [*ratios.values()], height=0.65, color=colors, edgecolor="white", hatch=hatches)
    labels = [f"{x:.0%}" if y else f"{x:.1f} x" for x, y in zip(ratios.values(), fractions, strict=True)]
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.bar_label(bars, labels, padding=3, bbox={"color": "white", "pad": 1})
    axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    axes.set_xlabel("times the baseline (line)" + "; hatched: part of the machine's own" * any(fractions))
    with whole(file) as part:
        canvas.savefig(part, format="png", dpi=120)


def report(settings: dict[str, Any], figures: Sequence[Figure]) -> dict[str, Any]:
    """Figures with how they came about, for JSON."""
    settings = {**settings, "device": device().type, "threads": torch.get_num_threads(), "torch": torch.__version__}
    settings["peak_memory_gb"] = peak_memory(device()) / 2**30
    if settings["command"] == "generate":
        settings |= {"cfg_scale": GUIDANCE, **SAMPLING}
    return {"settings": settings, "figures": [asdict(figure) for figure in figures]}
