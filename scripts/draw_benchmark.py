"""Draw a benchmark's prompts in the folder layout of its own scorer; run the same command again to go on.

python -m scripts.draw_benchmark dpg --prompts ELLA/dpg_bench/prompts --model scenes --out out/dpg
python -m scripts.draw_benchmark genai --prompts GenAI-Bench-1600/genai_image.json --out out/genai
python -m scripts.draw_benchmark mjhq --prompts MJHQ-30K/meta_data.json --out out/mjhq --limit 5000
torchrun --nproc_per_node 2 -m scripts.draw_benchmark dpg --prompts ELLA/dpg_bench/prompts --out out/dpg

dpg: DPG-Bench, four images a prompt as one grid. genai: GenAI-Bench. mjhq: MJHQ-30K, for FID by image_metrics.
A prompt that the model cannot read is told, and listed in not_drawn.json. GenEval has a script of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder
from scripts._load import CFG_SCALE, DRAWING_TEMPERATURE, check_sampling, load_model

# torch and transformers are imported inside functions: --help should not wait for them.
if TYPE_CHECKING:
    from eval.geneval.drawing import Picture, Settings

IMAGES_PER_PROMPT = {"dpg": 4, "genai": 1, "mjhq": 1}
SCORERS = {
    "dpg": "dpg_bench/compute_dpg_bench.py --image-root-path {out}/images --resolution {side} --pic-num 4",
    "genai": "genai_bench/evaluate.py --output_dir {out} --gen_model images",
    "mjhq": "python -m scripts.image_metrics {out}/images --reference MJHQ-30K/mjhq30k_imgs",
}


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--out", type=Path, required=True, help="folder for the images")
    add("--limit", type=int, metavar="N", help="at most so many prompts, evenly over all")
    add("--seed", type=int, default=0, help="changes every image (default: %(default)s)")
    add("--cfg-scale", type=float, default=CFG_SCALE, help="guidance; 1 is none (default: %(default)s)")
    add("--temperature", type=float, default=DRAWING_TEMPERATURE, help="0: the most likely (default: %(default)s)")
    add("--top-k", type=int, default=0, help="draw from the k likeliest; 0: from all (default: %(default)s)")
    add("--top-p", type=float, default=1.0, help="draw from this much probability (default: %(default)s)")
    add("--candidates", type=int, default=1, help="for an image; the model keeps its favourite (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images drawn at a time (default: %(default)s)")


def settings_of(args: argparse.Namespace, images_per_prompt: int) -> Settings:
    """Raises ValueError for impossible options, before a model is loaded."""
    check_folder(args.out)
    sampling = {name: getattr(args, name) for name in ("cfg_scale", "temperature", "top_k", "top_p", "candidates")}
    check_sampling(args.seed, **sampling)
    with stop_at_once():
        from eval.geneval.drawing import Settings
    return Settings(args.limit, images_per_prompt, args.seed, batch_size=args.batch_size, **sampling)


def draw_all(name: str, out: Path, pictures: list[Picture], settings: Settings) -> int:
    """Draw this process's share of what is missing. -> pixels of an image's side."""
    from eval.geneval.drawing import draw, identity
    from eval.pieces import claim

    model, processor = load_model(name)
    with stop_at_once():  # reads whole weights
        drawn_by = identity(model.weights_hash(), pictures, settings)
    claim(out, drawn_by, {"model_name": name})
    refused = draw(model, processor, out, pictures, settings, drawn_by)
    for file, reason in refused.items():
        print(f"not drawn: {file}: {reason}", file=sys.stderr)
    there = sum((out / picture.file).is_file() for picture in pictures)
    print(f"{there} of {len(pictures)} files in {out}")
    return processor.image_size


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("benchmark", choices=list(SCORERS))
    parser.add_argument("--prompts", type=Path, required=True, help="the benchmark's own file or folder of prompts")
    add_drawing_options(parser)
    args = parser.parse_args(argv)
    settings = settings_of(args, IMAGES_PER_PROMPT[args.benchmark])
    with stop_at_once():
        from eval.geneval.drawing import PLANS
    side = draw_all(args.model, args.out, PLANS[args.benchmark](args.prompts, settings), settings)
    print(f"score: {SCORERS[args.benchmark].format(out=args.out, side=side)}")


if __name__ == "__main__":
    cli(main)
