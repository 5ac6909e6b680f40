"""A run as one picture: every logged number over steps."""

import json
from pathlib import Path


def read_metrics(run: Path) -> dict[str, list[float]]:
    """Columns of metrics.jsonl. Raises ValueError when the folder is no run."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{run} is no run: it has no metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if not rows:
        raise ValueError(f"{file} is empty: nothing was logged yet")
    return {name: [row[name] for row in rows] for name in rows[0]}


def plot_run(run: Path, picture: Path) -> None:
    """Write one panel for each number, with its running mean."""
    from matplotlib.figure import Figure

    columns = read_metrics(run)
    steps = columns.pop("step")
    rows = -(-len(columns) // 3)
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    for place, (name, values) in enumerate(columns.items()):
        axes = figure.add_subplot(rows, 3, place + 1, title=name)
        axes.plot(steps, values, color="tab:blue", alpha=0.3)
        axes.plot(steps, _running_mean(values), color="tab:blue")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)


def _running_mean(values: list[float], decay: float = 0.9) -> list[float]:
    """Exponential, corrected for its start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        means.append(total / weight)
    return means
