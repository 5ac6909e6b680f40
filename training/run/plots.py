"""A run to look at: every logged number over steps, as one picture, or as a page with the run's pictures."""

import html
import math
import os
from pathlib import Path

from data_recipes.files import whole, write_whole
from data_recipes.page import make_page

from .metrics import read_rows

STYLE = """
body { font-family: sans-serif; margin: 2em auto; max-width: 75em } img { max-width: 100% }
table { border-collapse: collapse } td { padding: .2em .8em; border-bottom: 1px solid #ddd }
"""
BODY = """<h1>{title}</h1><p>{steps} steps logged until step {last}.</p>
<h2>Last values</h2><table>{values}</table>
<h2>Curves</h2><img src="{curves}" alt="every logged number over steps">
<h2>Pictures</h2>{pictures}
<h2>Texts</h2>{texts}
<h2>Recipe</h2><pre>{recipe}</pre>
"""


def read_metrics(run: Path) -> dict[str, list[float]]:
    """Columns of metrics.jsonl, NaN where a step has no such number. Raises ValueError when the folder is no run."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{run} is no run: it has no metrics.jsonl")
    rows = read_rows(file)
    if not rows:
        raise ValueError(f"{file} is empty: nothing was logged yet")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def write_report(run: Path, page: Path) -> None:
    """A page without scripts: last values, curves (in `NAME.png` beside it), the first and the newest picture and text
    of each kind, and the recipe."""
    columns = read_metrics(run)
    curves = page.with_suffix(".png")
    plot_run(run, curves)
    cells = "".join(f"<tr><td>{html.escape(name)}<td>{column[-1]:.5g}" for name, column in columns.items())
    body = BODY.format(
        title=html.escape(run.name),
        steps=len(columns["step"]),
        last=columns["step"][-1],
        values=cells,
        curves=curves.name,
        pictures="".join(_figure(file, page) for file in _first_and_last(run / "pictures")) or "<p>None.",
        texts="".join(_text(file) for file in _first_and_last(run / "texts")) or "<p>None.",
        recipe=html.escape((run / "config.yaml").read_text()),
    )
    write_whole(page, make_page(run.name, STYLE, body))


def _first_and_last(folder: Path) -> list[Path]:
    """Of each kind of file."""
    files = sorted(folder.glob("[!.]*"), key=lambda file: (len(file.stem), file.stem))  # ..._999999, ..._1000000
    kinds = dict.fromkeys(file.stem.rpartition("_")[0] for file in files)
    of_kinds = [[file for file in files if file.stem.rpartition("_")[0] == kind] for kind in kinds]
    return [file for of_kind in of_kinds for file in dict.fromkeys((of_kind[0], of_kind[-1]))]


def _figure(file: Path, page: Path) -> str:
    source = Path(os.path.relpath(file, page.parent)).as_posix()
    return f'<figure><img src="{html.escape(source)}"><figcaption>{html.escape(file.stem)}</figcaption></figure>'


def _text(file: Path) -> str:
    return f"<h3>{html.escape(file.stem)}</h3><pre>{html.escape(file.read_text())}</pre>"


def plot_run(run: Path, picture: Path) -> None:
    """Write one panel for each number, with its running mean; names with a slash share the panel of what is before."""
    from matplotlib.figure import Figure

    columns = read_metrics(run)
    steps = columns.pop("step")
    panels: dict[str, list[list[float]]] = {}
    for name, values in columns.items():
        panels.setdefault(name if "/" not in name else f"{name.partition('/')[0]} of each", []).append(values)
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    for place, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, 3, place + 1, title=name)
        for values in lines:
            if len(lines) == 1:
                axes.plot(steps, values, color="tab:blue", alpha=0.3)
            axes.plot(steps, _running_mean(values), color="tab:blue" if len(lines) == 1 else None)
        axes.grid(alpha=0.3)
    with whole(picture) as part:
        figure.savefig(part, format="png", dpi=80)


def _running_mean(values: list[float], decay: float = 0.9) -> list[float]:
    """Exponential, corrected for its start; NaN is left out."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        if not math.isnan(value):
            total, weight = decay * total + value, decay * weight + 1
        means.append(total / weight if weight else math.nan)
    return means
