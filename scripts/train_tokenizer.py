"""Train the image tokenizer by a recipe; run again to resume.

python -m scripts.train_tokenizer training/stages/tokenizer.yaml run.name=try2 optim.lr=5e-4
"""

import argparse

from training.config import TokenizerTrainConfig, load_config
from training.tokenizer_train import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML file, e.g. training/stages/tokenizer.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="changes to the recipe")
    args = parser.parse_args()
    print(train_tokenizer(load_config(TokenizerTrainConfig, args.recipe, args.overrides)))


if __name__ == "__main__":
    main()
