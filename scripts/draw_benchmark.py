"""Draw a benchmark's prompts in the folder layout of its own scorer; run the same command again to go on.

python -m scripts.draw_benchmark dpg --prompts ELLA/dpg_bench/prompts --model scenes --out out/dpg
python -m scripts.draw_benchmark genai --prompts GenAI-Bench-1600/genai_image.json --out out/genai
python -m scripts.draw_benchmark mjhq --prompts MJHQ-30K/meta_data.json --out out/mjhq --limit 5000
python -m scripts.draw_benchmark parti --prompts PartiPrompts.tsv --out out/parti
python -m scripts.draw_benchmark imgedit --prompts Benchmark/singleturn/singleturn.json --out out/imgedit
torchrun --nproc_per_node 2 -m scripts.draw_benchmark dpg --prompts ELLA/dpg_bench/prompts --out out/dpg

dpg: DPG-Bench, four images a prompt as one grid. genai: GenAI-Bench. mjhq: MJHQ-30K, for FID by image_metrics. parti:
PartiPrompts (P2). Edits: imgedit (ImgEdit), gedit (GEdit-Bench, as JSON lines with key, task_type, instruction and its
language, instruction_language, and image). Paths of pictures are relative to the file of prompts.
A prompt that the model cannot read is told, and listed in not_drawn.json. GenEval has a script of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scripts._drawing import add_drawing_options, check_seed, drawing_options
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder
from scripts._load import load_model

# torch and transformers are imported inside functions: --help should not wait for them.
if TYPE_CHECKING:
    from eval.geneval.drawing import Settings

SCORERS = {
    "dpg": "dpg_bench/compute_dpg_bench.py --image-root-path {out}/images --resolution {side} --pic-num 4",
    "genai": "genai_bench/evaluate.py --output_dir {out} --gen_model images",
    "mjhq": "python -m scripts.image_metrics {out}/images --reference MJHQ-30K/mjhq30k_imgs",
    "parti": "none; people compare {out}/images with those of another model",
    "gedit": "GEdit-Bench/test_gedit_score.py, with {out} as the results of this model",
    "imgedit": "Benchmark/Basic/basic_bench.py --result_img_folder {out}",
}


def add_benchmark_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--out", type=Path, required=True, help="folder for the images")
    add("--limit", type=int, metavar="N", help="at most so many prompts, evenly over all")
    add("--seed", type=int, default=0, help="changes every image (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images drawn at a time (default: %(default)s)")
    add_drawing_options(parser)


def settings_of(args: argparse.Namespace, images_per_prompt: int) -> Settings:
    """Raises ValueError for impossible options, before a model is loaded."""
    check_folder(args.out)
    check_seed(args.seed)
    names = [name for name in ("limit", "seed", "batch_size", "image_cfg_scale") if name in args]
    chosen = {**{name: getattr(args, name) for name in names}, **drawing_options(args)}
    with stop_at_once():
        from eval.geneval.drawing import Settings
    return Settings(images_per_prompt=images_per_prompt, **chosen)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("benchmark", choices=list(SCORERS))
    parser.add_argument("--prompts", type=Path, required=True, help="the benchmark's own file or folder of prompts")
    add_benchmark_options(parser)
    add_drawing_options(parser, ["image_cfg_scale"])
    args = parser.parse_args(argv)
    settings = settings_of(args, 4 if args.benchmark == "dpg" else 1)
    with stop_at_once():
        from eval.geneval.drawing import PLANS, draw_all

        pictures = PLANS[args.benchmark](args.prompts, settings)
        model, processor = load_model(args.model)
    draw_all(args.model, model, processor, args.out, pictures, settings)
    print(f"score: {SCORERS[args.benchmark].format(out=args.out, side=processor.image_size)}")


if __name__ == "__main__":
    cli(main)
