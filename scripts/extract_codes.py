"""Render scenes and store their image codes, so that training the language model need not encode; resumes.

python -m scripts.extract_codes --image-tokenizer runs/scenes_tokenizer/step_002500/model --out codes/train
"""

import argparse
import os
from pathlib import Path

from rich.progress import track

from tokenizer import ImageTokenizer
from training.config import ScenesConfig
from training.data import CHUNK, extract_codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=120_000, help=f"rounded up to whole files of {CHUNK}")
    parser.add_argument("--artwork", default="emoji")
    parser.add_argument("--split", default="train")
    args = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    image_tokenizer = ImageTokenizer.from_pretrained(args.image_tokenizer).eval()
    chunks = range(rank, -(-args.scenes // CHUNK), world)
    work = extract_codes(image_tokenizer, ScenesConfig(args.artwork, args.split), args.out, chunks)
    for _ in track(work, total=len(chunks) * CHUNK // 50, description="scenes / 50"):
        pass


if __name__ == "__main__":
    main()
