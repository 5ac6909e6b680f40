"""Collect the results files of evaluations: all of them in RESULTS.md, the few that matter in README.md's table.

python -m scripts.results
python -m scripts.results checkpoints out/geneval/results.json out/eval_lmms

Takes files, and folders with all results*.json below them. The numbers of README.md are those of
checkpoints/scenes/results.json; of its table everything but the head is written anew.
"""

from pathlib import Path

from data_recipes.files import write_whole
from scripts._errors import Parser, cli, stop_at_once

ROOT = Path(__file__).resolve().parent.parent
README_RESULTS = ROOT / "checkpoints/scenes/results.json"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("places", nargs="*", type=Path, default=[ROOT / "checkpoints"], help="default: checkpoints")
    parser.add_argument("--out", type=Path, default=ROOT / "RESULTS.md", help="default: RESULTS.md")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="default: README.md")
    args = parser.parse_args(argv)
    with stop_at_once():
        from eval.results import find_files, read_results, results_page, with_table

        page = results_page(find_files(args.places))
        readme = with_table(args.readme.read_text(encoding="utf-8"), read_results(README_RESULTS))
    write_whole(args.out, page)
    write_whole(args.readme, readme)
    print(f"written: {args.out} and the table of {args.readme}")


if __name__ == "__main__":
    cli(main)
