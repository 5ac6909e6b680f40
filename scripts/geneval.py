"""GenEval (arXiv 2310.11513): draw its prompts, then score the images. Both go on where they stopped.

python -m scripts.geneval generate --model scenes --out out/geneval
python -m scripts.geneval score out/geneval --detector scenes
python -m scripts.geneval score out/geneval --detector mask2former --clip openai/clip-vit-large-patch14
torchrun --nproc_per_node 2 -m scripts.geneval generate --model scenes --out out/geneval

generate writes GenEval's own layout (00000/metadata.jsonl, 00000/samples/0000.png ...), so that its scorer can read
it, too. score takes any folder of that layout, and writes results.json, results.jsonl with a line for each image, and
failures.html. The detector "scenes" knows the things of the scenes world, "mask2former" photographs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts._about import about
from scripts._errors import Parser, cli, stop_at_once
from scripts.draw_benchmark import add_drawing_options, draw_all, settings_of

# torch and transformers are imported inside functions: --help should not wait for them.
ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "data_recipes/geneval/evaluation_metadata.jsonl"
SCENES_DETECTOR = ROOT / "checkpoints/scenes/detector"


def generate(args: argparse.Namespace, argv: list[str] | None) -> None:
    settings = settings_of(args, args.images_per_prompt)
    with stop_at_once():
        from eval.geneval.drawing import plan_geneval, save_grids
    pictures = plan_geneval(args.prompts, settings)
    draw_all(args.model, args.out, pictures, settings)
    save_grids(args.out, pictures)


def load_detector(args: argparse.Namespace) -> tuple[Any, Sequence[str], dict[str, str]]:
    """-> the detector, the things it knows, and what names it in the results."""
    with stop_at_once():
        from eval.geneval import hf_detector
        from eval.images import clip
        from eval.scenes import detector
        from tokenizer.weights import weights_hash

        if args.detector == "scenes":
            scenes = detector.Detector.from_pretrained(args.weights or SCENES_DETECTOR)
            return scenes, scenes.config.classes, {"detector": "scenes", "detector_hash": weights_hash(scenes)}
        names = {"weights": args.weights or hf_detector.DEFAULT, "clip": args.clip or clip.DEFAULT}
        colors = clip.Clip.from_pretrained(names["clip"])
        hf = hf_detector.HfDetector.from_pretrained(names["weights"], colors)
        hashes = {"detector_hash": weights_hash(hf.model), "clip_hash": weights_hash(colors.model)}
        return hf, hf.classes, {"detector": "HF detector", **names, **hashes}


def score(args: argparse.Namespace, argv: list[str] | None) -> None:
    with stop_at_once():
        from eval.geneval.page import failures_page
        from eval.geneval.rules import read_drawings, report, score_folder
        from eval.pieces import digest, write_json, write_whole
    prompts = read_drawings(args.folder, args.images_per_prompt)  # refused before a detector is loaded
    detector, known, label = load_detector(args)
    rows = score_folder(args.folder, prompts, detector, digest(label))
    if rows is None:
        print("this process has judged its share; the one that ends last prints the score")
        return
    result = {"benchmark": "geneval", **about("geneval", argv), **report(args.folder, rows, known), **label}
    write_whole(args.folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    title = f"GenEval ({label['detector']}), {result['model']} {result['model_hash']}"
    write_whole(args.folder / "failures.html", failures_page(args.folder, title, rows))
    write_json(args.folder / "results.json", result)
    print_report(title, result)
    print(f"written: results.json, results.jsonl and failures.html in {args.folder}")


def print_report(title: str, result: dict[str, Any]) -> None:
    print(title)
    for task, value in result["scores"].items():
        print(f"  {task:15} {value:.4f}")
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    print(f"drawn with: {settings or 'unknown settings (no run.json)'}")
    shares = f"{result['correct_images']:.4f} of images, {result['correct_prompts']:.4f} of prompts with any"
    print(f"{result['images']} images; correct: {shares}")
    if result["not_judged"]:
        files = result["not_judged"]
        print(f"note: {len(files)} images count as wrong because they are damaged or missing, e.g. {files[0]}")
    if result["prompts_with_unknown_things"]:
        print(f"note: {result['prompts_with_unknown_things']} prompts name things this detector does not know")


def command_parser(prog: str, **_: Any) -> Parser:
    parser = Parser(__doc__)
    parser.prog = prog
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=command_parser)
    drawing = commands.add_parser("generate", help="draw the prompts")
    drawing.add_argument(
        "--prompts", type=Path, default=PROMPTS, help="records, as in GenEval's evaluation_metadata.jsonl"
    )
    add_drawing_options(drawing)
    scoring = commands.add_parser("score", help="judge a folder of drawings")
    scoring.add_argument("folder", type=Path)
    scoring.add_argument("--detector", choices=["scenes", "mask2former"], required=True)
    scoring.add_argument("--weights", help="the detector's folder or hub id")
    scoring.add_argument("--clip", help="mask2former names colours by this CLIP, a folder or hub id")
    for one in (drawing, scoring):
        one.add_argument("--images-per-prompt", type=int, default=4, help="default: %(default)s")
    args = parser.parse_args(argv)
    {"generate": generate, "score": score}[args.command](args, argv)


if __name__ == "__main__":
    cli(main)
