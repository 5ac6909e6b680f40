"""GenEval (arXiv 2310.11513): draw its prompts, then score the images. Both go on where they stopped.

python -m scripts.geneval generate --model scenes --out out/geneval
python -m scripts.geneval score out/geneval --detector scenes
python -m scripts.geneval score out/geneval --detector mask2former --clip openai/clip-vit-large-patch14
torchrun --nproc_per_node 2 -m scripts.geneval generate --model scenes --out out/geneval

generate writes GenEval's own layout (00000/metadata.jsonl, 00000/samples/0000.png ...), so that its scorer can read
it, too. score takes any folder of that layout, and writes results.json, results.jsonl with a line for each image, and
failures.html. The detector "scenes" knows the things of the scenes world, "mask2former" photographs.
"""

import argparse
import json
from pathlib import Path

from scripts._about import about
from scripts._errors import Parser, cli, stop_at_once
from scripts._load import load_model
from scripts.draw_benchmark import add_benchmark_options, settings_of

# torch and transformers are imported inside functions: --help should not wait for them.
ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "data_recipes/geneval/evaluation_metadata.jsonl"


def generate(args: argparse.Namespace, argv: list[str] | None) -> None:
    settings = settings_of(args, args.images_per_prompt)
    with stop_at_once():
        from eval.geneval.drawing import draw_all, plan_geneval, save_grids
    pictures = plan_geneval(args.prompts, settings)
    draw_all(args.model, *load_model(args.model), args.out, pictures, settings)
    save_grids(args.out, pictures)


def score(args: argparse.Namespace, argv: list[str] | None) -> None:
    with stop_at_once():
        from data_recipes.files import write_json, write_whole
        from eval.geneval.detectors import load_detector
        from eval.geneval.page import failures_page
        from eval.geneval.rules import print_report, read_drawings, report, score_folder
        from eval.pieces import digest
    prompts = read_drawings(args.folder, args.images_per_prompt)  # refused before a detector is loaded
    with stop_at_once():
        detector, label = load_detector(args.detector, args.weights, args.clip)
    rows = score_folder(args.folder, prompts, detector, digest(label))
    if rows is None:
        print("this process has judged its share; the one that ends last prints the score")
        return
    result = {"benchmark": "geneval", **about("geneval", argv), **report(args.folder, rows, detector.classes), **label}
    write_whole(args.folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    title = f"GenEval ({label['detector']}), {result['model']} {result['model_hash']}"
    write_whole(args.folder / "failures.html", failures_page(args.folder, title, rows))
    write_json(args.folder / "results.json", result)
    print_report(title, result)
    print(f"written: results.json, results.jsonl and failures.html in {args.folder}")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=lambda prog, **_: Parser(__doc__, prog)
    )
    drawing = commands.add_parser("generate", help="draw the prompts")
    told = "records, as in GenEval's evaluation_metadata.jsonl"
    drawing.add_argument("--prompts", type=Path, default=PROMPTS, help=told)
    add_benchmark_options(drawing)
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
