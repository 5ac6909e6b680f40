"""Render scenes and store their image codes, so that training the language model need not encode; resumes.

python -m scripts.extract_codes --image-tokenizer runs/scenes_tokenizer/step_000400/model --out codes/train
torchrun --nproc_per_node 2 -m scripts.extract_codes --image-tokenizer checkpoints/unitok --out codes/train
"""

import os
from pathlib import Path

from rich.progress import Progress

from scripts._errors import Parser, cli, stop_at_once


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--image-tokenizer", required=True, metavar="FOLDER", help="the image tokenizer that encodes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files of codes")
    parser.add_argument("--scenes", type=int, default=120_000, help="rounded up to whole files (default: %(default)s)")
    parser.add_argument("--artwork", default="emoji", help="emoji or shapes (default: %(default)s)")
    parser.add_argument("--split", default="train", help="train or held_out (default: %(default)s)")
    args = parser.parse_args(argv)
    with stop_at_once():
        from tokenizer import ImageTokenizer
        from training.config import ScenesConfig
        from training.data import CHUNK, extract_codes
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    image_tokenizer = ImageTokenizer.from_pretrained(args.image_tokenizer).eval()
    chunks = range(rank, -(-args.scenes // CHUNK), world)
    work = extract_codes(image_tokenizer, ScenesConfig(args.artwork, args.split), args.out, chunks)
    with Progress(disable=rank > 0) as progress:
        scenes = progress.add_task("scenes", total=len(chunks) * CHUNK)
        for done in work:
            progress.advance(scenes, done)


if __name__ == "__main__":
    cli(main)
