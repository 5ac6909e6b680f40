"""Train variants of an image tokenizer or a language model with equal budgets and seeds, measure each, and compare
them; resumes.

python -m scripts.ablate data_recipes/ablation.yaml --out out/ablation
python -m scripts.ablate data_recipes/orders.yaml --out out/orders --jobs 1   # times an image, so nothing beside it
python -m scripts.ablate data_recipes/ablation.yaml run.steps=100 --out out/try

Each run is one process; --jobs of them work side by side. Language models are measured by what they draw: steps of the
backbone and seconds for an image, nats, and GenEval's rules. Image tokenizers are measured on scenes that no run has
seen, or crops of them (rFID over EfficientNet-Lite0's features, PSNR, ST-LPIPS, zero-shot class accuracy), and on
scikit-image's photographs (PSNR). Where the file names a recipe as `language`, that language model learns to draw with
the codes of each: nats an image, of its last quarter, tell how hard they are to predict.
"""

from pathlib import Path

from data_recipes.files import write_json
from scripts._about import about
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="a YAML file, e.g. data_recipes/ablation.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes to the recipe that is varied")
    parser.add_argument("--out", type=Path, default=Path("out/ablation"), help="folder (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs} is below 1")
    check_folder(args.out)
    with stop_at_once():
        from eval.images.ablation import ablate, plot, show
    results = ablate(args.recipe, args.overrides, args.out, args.jobs)
    write_json(args.out / "results.json", {**about("ablate", argv), **results})
    plot(results["variants"], args.out / "ablation.png")
    show(results["variants"])


if __name__ == "__main__":
    cli(main)
