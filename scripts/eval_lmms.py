"""Evaluate a model on tasks of lmms-eval (pip install -e ".[eval]"). Run again to go on where it was stopped.

python -m scripts.eval_lmms --model scenes --tasks scenes_vqa,scenes_pope,scenes_draw --out out/eval_lmms
python -m scripts.eval_lmms --model scenes --tasks mme,pope --data saved --batch-size 16
torchrun --nproc_per_node 2 -m scripts.eval_lmms --model scenes --tasks gqa --limit 100

Prints the scores and writes results.json, a file for each task in samples/, and the drawings in images/.
--data takes tasks' data sets from the folders saved/mme, saved/pope, ..., for machines without a network. They are
made on another machine, by the data set's name in the task's file:
datasets.load_dataset("lmms-lab-encoder/MME").save_to_disk("saved/mme")
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

from scripts._about import about
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder, save_text
from scripts._load import CFG_SCALE, check_sampling


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
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "metric", "value")
    for task, row in scores(results).items():
        for place, (name, value) in enumerate(row.items()):
            table.add_row("" if place else task, name, f"{value:.4f}")
    Console().print(table)
    if results["unreadable"]:
        print(f"{len(results['unreadable'])} documents could not be read and count as wrong: see results.json")


def write_report(results: dict, args: argparse.Namespace, argv: list[str] | None) -> None:
    """Everything that is needed to tell how the numbers came about."""
    for task, samples in results["samples"].items():
        rows = sorted(samples, key=lambda row: row["doc_id"])  # several processes hand in theirs one after another
        lines = [json.dumps({key: row[key] for key in ("doc_id", "doc", "target", "filtered_resps")}) for row in rows]
        save_text("\n".join(lines) + "\n", args.out / "samples" / f"{task}.jsonl")
    content = {
        **about("eval_lmms", argv),
        "model": args.model,
        "model_hash": results["model_hash"],
        "settings": {key: getattr(args, key) for key in ("batch_size", "limit", "mode", "cfg_scale", "simple")},
        "scores": scores(results),
        "documents": {task: count["effective"] for task, count in results["n-samples"].items()},
        "unreadable": results["unreadable"],
        "tasks": results["configs"],
    }
    content["versions"]["lmms-eval"] = version("lmms-eval")
    save_text(json.dumps(content, indent=2, default=str) + "\n", args.out / "results.json")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--tasks", required=True, help="names with commas between; * stands for anything")
    add("--batch-size", type=int, default=8, help="default: %(default)s")
    add("--limit", type=int, help="at most so many documents of each task")
    add("--out", type=Path, default=Path("out/eval_lmms"), help="default: %(default)s")
    add("--simple", action="store_true", help="lmms-eval's older interface: multiple choice needs it")
    add("--mode", choices=("understand", "generate"), default="understand", help="generate: draw the answers")
    add("--cfg-scale", type=float, default=CFG_SCALE, help="guidance of drawings (default: %(default)s)")
    add("--data", type=Path, help="folder with saved copies of tasks' data sets")
    add("--include", type=Path, action="append", default=[], help="folder with further tasks (YAML)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_folder(args.out)
    check_sampling(cfg_scale=args.cfg_scale)
    with stop_at_once():
        from transformers.utils import logging

        from eval.lmms.run_tasks import evaluate_lmms

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    results = evaluate_lmms(
        args.model,
        args.tasks.split(","),
        args.out,
        batch_size=args.batch_size,
        limit=args.limit,
        simple=args.simple,
        data=args.data,
        include=args.include,
        mode=args.mode,
        cfg_scale=args.cfg_scale,
    )
    if results:  # in the first process
        write_report(results, args, argv)
        print_report(results)


if __name__ == "__main__":
    cli(main)
