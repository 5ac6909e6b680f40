"""Encode images once, so that training the language model need not: the scenes world's, or those in shards; resumes.

python -m scripts.extract_codes --image-tokenizer runs/scenes_tokenizer/step_000400/model --out codes/train
python -m scripts.extract_codes --image-tokenizer scenes --shards "shards/chats/*.tar" --out codes/chats
torchrun --nproc_per_node 2 -m scripts.extract_codes --image-tokenizer checkpoints/unitok --out codes/train

From shards with images, as scripts.make_shards writes them, come shards of the same names with codes. They say whose
codes they are, and no other model takes them. Where a model's template prepares images in its own way, as UniTok's
does, give the whole model.
"""

import argparse
from pathlib import Path
from typing import Any

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder
from scripts._load import load_image_tokenizer


def of_scenes(image_tokenizer: Any, args: argparse.Namespace) -> None:
    """Files of codes, as training/data/scene_samples.py reads them."""
    from rich.progress import Progress

    from eval.pieces import share
    from training.data.scene_samples import CHUNK, extract_codes
    from training.run.recipe import ScenesConfig

    chunks = share(range(-(-args.scenes // CHUNK)))
    config = ScenesConfig(args.artwork, args.split)
    with Progress(disable=0 not in chunks) as progress:  # of the first process
        scenes = progress.add_task("scenes", total=len(chunks) * CHUNK)
        for done in extract_codes(image_tokenizer, config, args.out, chunks, CHUNK, args.language):
            progress.advance(scenes, done)


def of_shards(image_tokenizer: Any, args: argparse.Namespace) -> None:
    """Shards of codes, each with the name of the shard it comes from."""
    with stop_at_once():
        from data_recipes.shards import Shards
        from eval.pieces import claim
        from mllm import Processor
        from mllm.folders import find_model
        from scripts._shards import write_shards
        from training.data.shard_codes import ShardEncoder
    shards = Shards(args.shards)
    names = [url.rpartition("/")[2] for url in shards.urls]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"several shards are called {name}: extract each folder to an --out of its own")
    is_whole = (Path(find_model(args.image_tokenizer)) / "processor_config.json").is_file()
    encoder = ShardEncoder(image_tokenizer, Processor.from_pretrained(args.image_tokenizer) if is_whole else None)
    claim(args.out, encoder.form.codes_of)
    print(write_shards(args.out, names, lambda place: encoder.samples(shards, place), args.max_bad))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--image-tokenizer", required=True, metavar="MODEL", help="what encodes: an image tokenizer or a whole model")
    add("--out", type=Path, required=True, help="folder for the codes")
    add("--shards", nargs="+", metavar="TAR", help="shards with images, by name or pattern (default: scenes)")
    add("--max-bad", type=int, default=100, help="more bad samples in shards are an error (default: %(default)s)")
    add("--scenes", type=int, default=120_000, help="rounded up to whole files (default: %(default)s)")
    add("--artwork", default="emoji", help="emoji or shapes (default: %(default)s)")
    add("--split", default="train", help="train or held_out (default: %(default)s)")
    add("--language", action="store_true", help="pictures of conversations about scenes, changed ones included")
    args = parser.parse_args(argv)
    check_folder(args.out)
    image_tokenizer = load_image_tokenizer(args.image_tokenizer)
    (of_shards if args.shards else of_scenes)(image_tokenizer, args)


if __name__ == "__main__":
    cli(main)
