"""Train the image tokenizer by a recipe; run again to resume.

python -m scripts.train_tokenizer training/stages/tokenizer.yaml run.name=try2 optim.lr=5e-4
"""

from argparse import SUPPRESS

from scripts._errors import Parser, cli, stop_at_once


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="a YAML file, e.g. training/stages/tokenizer.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes to the recipe")
    parser.add_argument("--local_rank", help=SUPPRESS)  # the deepspeed launcher adds it; torch reads the environment
    args = parser.parse_args(argv)
    with stop_at_once():
        from training.image_tokenizer.train import train_tokenizer
        from training.run.recipe import TokenizerTrainConfig, load_config
    print(train_tokenizer(load_config(TokenizerTrainConfig, args.recipe, args.overrides)))


if __name__ == "__main__":
    cli(main)
