"""Draw the numbers of a training run over its steps.

python -m scripts.plot_run runs/scenes --out out/scenes.png
"""

from pathlib import Path

from scripts._errors import Parser, cli


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write")
    args = parser.parse_args(argv)
    from training.report import plot_run

    plot_run(args.run, args.out)


if __name__ == "__main__":
    cli(main)
