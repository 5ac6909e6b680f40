"""Change a picture by words, into a folder; run the same command again to make what is still missing.

python -m scripts.edit_image dog.png "make the dog blue" --out out/dog -n 4
python -m scripts.edit_image room.png "remove the clock" --mask mask.png --out out/room

Writes 0000.png, 0001.png, ..., grid.png, and metadata.jsonl with a line for each image. Image i is made with
seed --seed + i. A mask is a PNG as large as the picture, fully transparent where it may change; all else stays as
it is. If the model answers in words, the picture comes back as it was, and the words are printed.
"""

import argparse
import sys
from pathlib import Path

from scripts._drawing import EDITING, add_drawing_options, check_seed, drawing_options
from scripts._errors import Parser, cli, plain, stop_at_once
from scripts._files import check_folder
from scripts._load import QUANTIZATIONS, load_model


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("image", type=Path, metavar="IMAGE", help="the picture")
    add("prompt", metavar="PROMPT", help="what to change, in quotes")
    add("--mask", type=Path, metavar="FILE", help="where it may change")
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--out", type=Path, default=Path("out/edits"), help="folder for the images (default: %(default)s)")
    add("-n", type=int, default=1, help="images to make (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    add_drawing_options(parser, EDITING)
    add("--quantize", choices=QUANTIZATIONS, help="weights of the language model, on a CPU")
    add("--batch-size", type=int, default=8, help="images at a time, candidates too (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for name, value in (("-n", args.n), ("--batch-size", args.batch_size)):
        if value < 1:
            raise ValueError(f"{name} {value} is below 1: give the number of images")
    if not args.prompt.strip():
        raise ValueError("the prompt is empty: say what to change")
    for file in filter(None, (args.image, args.mask)):
        if not file.is_file():
            raise ValueError(f"no image file at {file}")
    check_folder(args.out)
    check_seed(args.seed)
    options = {"seed": args.seed, **drawing_options(args, EDITING)}
    model, processor = load_model(args.model, args.quantize)
    with stop_at_once():
        from eval.drawn_folder import edit_picture
    files = args.out, args.image, args.mask
    made, total, answers = edit_picture(model, processor, *files, args.prompt, args.n, args.batch_size, options)
    for answer in answers:
        print(f"note: the picture is as it was: {plain(' '.join(answer.split()))}", file=sys.stderr)
    print(f"{made} images made, {total} in {args.out}; see {args.out / 'grid.png'}")


if __name__ == "__main__":
    cli(main)
