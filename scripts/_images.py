"""What the evaluations of image tokenizers share: which images, and the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts._about import about
from scripts._errors import stop_at_once
from scripts._files import check_folder

if TYPE_CHECKING:
    from eval.images.image_pieces import Images, Result


def add_image_options(parser: argparse.ArgumentParser, out: str) -> None:
    add = parser.add_argument
    add("data", nargs="+", help='"scenes" (the held-out ones), a folder of images, or webdataset shards')
    add("--model", default="scenes", help="an image tokenizer, or a model that holds one (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="at most so many images, evenly over all; of the scenes the first")
    add("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    add("--max-bad", type=int, default=10, help="more images that cannot be used are an error (default: %(default)s)")
    add("--out", type=Path, default=Path(out), help="folder for results.json (default: %(default)s)")


def choose_images(args: argparse.Namespace, skill: str | None = None) -> Images:
    """`skill` is of the scenes. Raises ValueError for what is not there."""
    for name, value, least in (
        ("limit", args.limit, 1),
        ("batch-size", args.batch_size, 1),
        ("max-bad", args.max_bad, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value} is below {least}")
    check_folder(args.out)
    with stop_at_once():
        from data_recipes.images import SCENES, open_images
        from eval.images.image_pieces import Images
        from eval.pieces import spread

        data = args.data[0] if len(args.data) == 1 else args.data
        if data == SCENES and args.limit is None:
            raise ValueError("the scenes have no end: say how many with --limit")
        source = open_images(data, split="held_out", skill=skill)
    numbers = range(args.limit) if data == SCENES else spread(range(len(source)), args.limit)
    return Images(source, numbers, args.batch_size, args.max_bad)


def report(
    script: str,
    argv: list[str] | None,
    args: argparse.Namespace,
    images: Images,
    settings: dict[str, Any],
    result: Result | None,
) -> None:
    """results.json and a table, by the process that ends last."""
    from eval.images.image_pieces import print_result, write_result

    if result is None:
        print("this process has done its share; the one that ends last prints the numbers")
        return
    chosen = {"data": " ".join(args.data), "limit": args.limit, "batch_size": args.batch_size, **settings}
    write_result(args.out, result, images.source, {**about(script, argv), "model": args.model}, chosen)
    print_result(result, images.source)
