"""Train the sentencepiece text tokenizer of the scenes world.

python -m scripts.train_text_tokenizer --out checkpoints/scenes/text_tokenizer
"""

import argparse
from pathlib import Path

from training.text_tokenizer import train_text_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=768)
    args = parser.parse_args()
    train_text_tokenizer(args.out, args.vocab_size)


if __name__ == "__main__":
    main()
