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
from pathlib import Path

from scripts._about import about
from scripts._drawing import add_drawing_options, drawing_options
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder


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
    add_drawing_options(parser, ["cfg_scale"])
    add("--data", type=Path, help="folder with saved copies of tasks' data sets")
    add("--include", type=Path, action="append", default=[], help="folder with further tasks (YAML)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_folder(args.out)
    drawing_options(args, ["cfg_scale"])
    with stop_at_once():
        from transformers.utils import logging

        from eval.lmms.results import print_report, write_report
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
        settings = {key: getattr(args, key) for key in ("batch_size", "limit", "mode", "cfg_scale", "simple")}
        write_report(results, args.out, {**about("eval_lmms", argv), "model": args.model}, settings)
        print_report(results)


if __name__ == "__main__":
    cli(main)
