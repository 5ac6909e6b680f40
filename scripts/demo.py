"""See a model at work: it answers questions about example images, and draws from prompts.

python -m scripts.demo --model scenes --out out/demo

Prints both, and writes them as a page to look at: index.html in the folder --out. The example images are
held out: scenes with a combination of things, colours or places that was never in training.
"""

from pathlib import Path

from scripts._drawing import add_drawing_options, check_seed, drawing_options
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--out", type=Path, default=Path("out/demo"), help="folder for the page (default: %(default)s)")
    add("--seed", type=int, default=0, help="of examples and drawings (default: %(default)s)")
    add_drawing_options(parser, ["cfg_scale"])
    args = parser.parse_args(argv)
    check_folder(args.out)
    check_seed(args.seed)
    drawing_options(args, ["cfg_scale"])
    with stop_at_once():
        from eval.demo import run_demo
    run_demo(args.model, args.seed, args.cfg_scale, args.out)


if __name__ == "__main__":
    cli(main)
