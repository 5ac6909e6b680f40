"""Train the sentencepiece text tokenizer of the scenes world.

python -m scripts.train_text_tokenizer --out checkpoints/scenes/text_tokenizer
"""

from pathlib import Path

from scripts._errors import Parser, cli, stop_at_once


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the text tokenizer")
    parser.add_argument("--vocab-size", type=int, default=768, help="pieces, 256 bytes included (default: %(default)s)")
    args = parser.parse_args(argv)
    with stop_at_once():
        from training.lm.text_tokenizer import train_text_tokenizer
    train_text_tokenizer(args.out, args.vocab_size)


if __name__ == "__main__":
    cli(main)
