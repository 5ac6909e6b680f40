"""Draw the numbers of a training run over its steps: a picture, or a page with the run's pictures and recipe.

python -m scripts.plot_run runs/scenes --out out/scenes.png
python -m scripts.plot_run runs/scenes_tokenizer --out out/scenes_tokenizer.html
"""

from pathlib import Path

from scripts._errors import Parser, cli
from scripts._files import check_folder

WRITERS = {".png": "plot_run", ".html": "write_report"}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="picture (.png) or page (.html) to write"
    )
    args = parser.parse_args(argv)
    if args.out.suffix not in WRITERS:
        raise ValueError(f"--out {args.out}: the name must end in {' or '.join(WRITERS)}")
    check_folder(args.out.parent)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    from training.run import plots as report

    getattr(report, WRITERS[args.out.suffix])(args.run, args.out)


if __name__ == "__main__":
    cli(main)
