"""Evaluate a scenes model: questions, drawings by GenEval's rules, tokenizer, speed. Run again to go on.

python -m scripts.eval_scenes --model scenes --out out/eval_scenes
python -m scripts.eval_scenes --model scenes --parts questions,speed --limit 50 --out out/eval_quick
"""

import json
import platform
import shlex
import sys
from dataclasses import fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from data_recipes.scenes import SKILLS
from eval.detector import Detector
from eval.scenes import PARTS, Line, Settings, Subject, evaluate_scenes, report
from scripts._errors import Parser, cli
from scripts._load import check_sampling, load_model

PACKAGES = ("torch", "transformers", "timm", "numpy", "pillow", "sentencepiece")
DRAWN = {
    "model": "drawn",
    "held_out": "held-out prompts",
    "ceiling": "true renders",
    "tokenizer_ceiling": "true, through tokenizer",
}


def print_report(results: dict, console: Console) -> None:
    lines = report(results)
    table = Table("", "value", "goal", "")
    for line in lines:
        if not line.name.startswith("drawing.") or line.goal:
            table.add_row(line.name, f"{line.value:.3f}", line.goal, mark(line))
    console.print(table)
    if "drawing" in results:
        scores = results["drawing"]["scores"]
        table = Table("GenEval", *DRAWN.values())
        for task in (*SKILLS, "overall"):
            table.add_row(task, *(f"{scores[k][task]:.3f}" if task in scores[k] else "-" for k in DRAWN))
        console.print(table)


def mark(line: Line) -> str:
    if line.met is None:
        return ""
    return "[green]pass[/green]" if line.met else "[red]miss[/red]"


def write_results(file: Path, subject: Subject, results: dict) -> None:
    """Everything that is needed to tell how the numbers came about."""
    goals = [line._asdict() for line in report(results) if line.goal]
    about = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "scripts.eval_scenes", *sys.argv[1:]]),
        "model": subject.name,
        "model_hash": subject.model.weights_hash(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "threads": torch.get_num_threads(),
        "parts": results,
        "goals": goals,
    }
    file.write_text(json.dumps(about, indent=2) + "\n")


def main() -> None:
    defaults = {field.name: field.default for field in fields(Settings)}
    parser = Parser(__doc__)
    parser.add_argument("--model", default="scenes", help="a model's name or folder")
    parser.add_argument("--detector", type=Path, default=Path("checkpoints/scenes/detector"))
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out/eval_scenes"))
    parser.add_argument("--limit", type=int, help="at most so many scenes and prompts")
    for name in ("images_per_prompt", "seed", "cfg_scale", "temperature", "top_k", "top_p", "batch_size"):
        kind = type(defaults[name])
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=defaults[name], help="default %(default)s"
        )
    args = parser.parse_args()
    settings = Settings(**{name: getattr(args, name) for name in defaults})
    check_sampling(settings.seed, **settings.sampling)
    detector = Detector.from_pretrained(args.detector)
    subject = Subject(args.model, *load_model(args.model), detector)
    results = evaluate_scenes(subject, settings, args.out, args.parts.split(","))
    write_results(args.out / "results.json", subject, results)
    print_report(results, Console())


if __name__ == "__main__":
    cli(main)
