"""What lmms-eval returns, as a table and as files."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_recipes.files import write_whole


def scores(results: dict) -> dict[str, dict[str, float]]:
    """{task: {metric: value}}. lmms-eval calls a metric "name,filter" and puts errors and names beside it."""
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in row.items()
            if isinstance(value, (int, float)) and "," in name and "_stderr" not in name
        }
        for task, row in results["results"].items()
    }


def print_report(results: dict) -> None:
    table = Table("task", "metric", "value")
    for task, row in scores(results).items():
        for place, (name, value) in enumerate(row.items()):
            table.add_row("" if place else task, name, f"{value:.4f}")
    Console().print(table)
    if results["unreadable"]:
        print(f"{len(results['unreadable'])} documents could not be read and count as wrong: see results.json")


def write_report(results: dict, out: Path, about: dict[str, Any], settings: dict[str, Any]) -> None:
    """results.json and a file of samples for each task: all that tells how the numbers came about."""
    for task, samples in results["samples"].items():
        rows = sorted(samples, key=lambda row: row["doc_id"])  # several processes hand in theirs one after another
        lines = [json.dumps({key: row[key] for key in ("doc_id", "doc", "target", "filtered_resps")}) for row in rows]
        write_whole(out / "samples" / f"{task}.jsonl", "\n".join(lines) + "\n")
    content = {
        **about,
        "model_hash": results["model_hash"],
        "settings": settings,
        "scores": scores(results),
        "documents": {task: count["effective"] for task, count in results["n-samples"].items()},
        "unreadable": results["unreadable"],
        "tasks": results["configs"],
    }
    content["versions"]["lmms-eval"] = version("lmms-eval")
    write_whole(out / "results.json", json.dumps(content, indent=2, default=str) + "\n")
