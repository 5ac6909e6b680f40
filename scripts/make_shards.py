"""Write webdataset shards for training from captioned images, messages, edits, LLaVA's JSON, or a saved `datasets`.

python -m scripts.make_shards photos shards/photos --format captions
python -m scripts.make_shards chats.jsonl shards/chats --format messages
python -m scripts.make_shards edits.jsonl shards/edits --format edits
python -m scripts.make_shards llava_v1_5_mix665k.json shards/llava --format llava --images /data/llava --per-shard 2000
torchrun --nproc_per_node 2 -m scripts.make_shards coco shards/coco --format datasets --task describe

data_recipes/messages.py describes the formats, and the samples in the shards. Run the same command again to go on:
finished shards are kept. Bad samples are left out, and named in a file beside their shard.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder

# PIL, torch and webdataset are imported inside functions: --help should not wait for them.
if TYPE_CHECKING:
    from data_recipes.messages import Reader
    from scripts._shards import Samples


def samples(reader: Reader, indices: range) -> Samples:
    """Of one shard; the key is the number in the input."""
    for index in indices:
        try:
            yield f"{index:09d}", reader[index]
        except ValueError as error:
            yield str(error)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("input", type=Path, help="a folder (captions, datasets) or a file (messages, edits, llava)")
    add("out", type=Path, help="folder for the shards")
    add("--format", required=True, help="what the input is, as in the commands above")
    add("--images", type=Path, metavar="FOLDER", help="where names of images start from (default: the file's folder)")
    add("--task", choices=("draw", "describe"), default="draw", help="what captions are for (default: %(default)s)")
    add("--per-shard", type=int, default=1000, help="samples in a shard (default: %(default)s)")
    add("--max-bad", type=int, default=100, help="more bad samples are an error (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.per_shard < 1:
        raise ValueError(f"--per-shard {args.per_shard} is below 1")
    check_folder(args.out)
    with stop_at_once():
        from data_recipes.messages import open_reader
        from eval.pieces import claim
        from scripts._shards import write_shards
    reader = open_reader(args.format, args.input, args.images, args.task)
    if not len(reader):
        raise ValueError(f"no samples in {args.input}")
    for note in reader.notes:
        print(f"note: {note}", file=sys.stderr)
    settings = {"format": args.format, "task": args.task, "per_shard": args.per_shard, "samples": len(reader)}
    claim(args.out, {"input": str(args.input.resolve()), **settings})
    firsts = range(0, len(reader), args.per_shard)
    names = [f"{number:06d}.tar" for number in range(len(firsts))]

    def of_shard(place: int) -> Samples:
        return samples(reader, range(firsts[place], min(firsts[place] + args.per_shard, len(reader))))

    print(write_shards(args.out, names, of_shard, args.max_bad))


if __name__ == "__main__":
    cli(main)
