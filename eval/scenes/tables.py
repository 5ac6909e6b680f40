"""The scenes report on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from .suite import Line, report

DRAWN = {
    "model": "drawn",
    "held_out": "held-out prompts",
    "ceiling": "true renders",
    "tokenizer_ceiling": "true, through tokenizer",
}


def print_report(results: dict[str, Any]) -> None:
    table = Table("", "value", "goal", "")
    for line in report(results):
        if not line.name.startswith("drawing.") or line.goal:
            table.add_row(line.name, f"{line.value:.3f}", line.goal, mark(line))
    Console().print(table)
    if "tokenizer" in results and "zero_shot" not in results["tokenizer"]["scores"]:
        print("no zero-shot accuracy: the image tokenizer's text tower does not read this model's text tokenizer")
    if "drawing" in results:
        scores = results["drawing"]["scores"]
        table = Table("GenEval", *DRAWN.values())
        for task in scores["model"]:
            table.add_row(task, *(f"{scores[kind][task]:.3f}" if task in scores[kind] else "-" for kind in DRAWN))
        Console().print(table)


def mark(line: Line) -> str:
    if line.met is None:
        return ""
    return "[green]pass[/green]" if line.met else "[red]miss[/red]"
