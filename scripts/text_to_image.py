"""Draw images from prompts into a folder; run the same command again to draw what is still missing.

python -m scripts.text_to_image "a photo of a red car" "a photo of two dogs" --out out/cars -n 4
python -m scripts.text_to_image --prompts prompts.txt --out out/many -n 1 --batch-size 16

Writes 0000.png, 0001.png, ... (all of the first prompt, then the second, ...), grid.png with a row for each
prompt (at most the first 100 images), and metadata.jsonl with a line for each image. Image i is drawn with
seed --seed + i, and is the same whatever the batch size.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_recipes.files import read_lines
from scripts._drawing import add_drawing_options, check_seed, drawing_options
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder
from scripts._load import QUANTIZATIONS, load_model


def read_prompts(words: Sequence[str], file: Path | None) -> list[str]:
    """Prompts of the command line, then those of a file, one a line; empty lines of the file are left out. Raises
    ValueError for an empty prompt, none at all, and a file that is no text."""
    for place, prompt in enumerate(words, 1):
        if not prompt.strip():
            raise ValueError(f"prompt {place} is empty: say what to draw")
    lines = read_lines(file) if file else []
    prompts = [prompt.strip() for prompt in [*words, *lines] if prompt.strip()]
    if not prompts:
        raise ValueError("no prompts: give some on the command line, or a file with --prompts")
    return prompts


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("prompt", nargs="*", metavar="PROMPT", help="what to draw, each prompt in quotes")
    add("--prompts", type=Path, metavar="FILE", help="a text file with more of them, one a line")
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--out", type=Path, default=Path("out/images"), help="folder for the images (default: %(default)s)")
    add("-n", type=int, default=4, help="images for each prompt (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    add_drawing_options(parser)
    add("--quantize", choices=QUANTIZATIONS, help="weights of the language model, on a CPU")
    add("--batch-size", type=int, default=8, help="drawings at a time, candidates too (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for name, value in (("-n", args.n), ("--batch-size", args.batch_size)):
        if value < 1:
            raise ValueError(f"{name} {value} is below 1: give the number of images")
    prompts = read_prompts(args.prompt, args.prompts)
    check_folder(args.out)
    check_seed(args.seed)
    options = {"seed": args.seed, **drawing_options(args)}
    model, processor = load_model(args.model, args.quantize)
    with stop_at_once():
        from eval.drawn_folder import draw_prompts
    drawn, total = draw_prompts(model, processor, args.out, prompts, args.n, args.batch_size, options)
    print(f"{drawn} images drawn, {total} in {args.out}; see {args.out / 'grid.png'}")


if __name__ == "__main__":
    cli(main)
