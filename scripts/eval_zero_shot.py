"""Zero-shot classification by an image tokenizer's contrastive branch: the class whose texts are nearest to the image.

python -m scripts.eval_zero_shot scenes --model scenes --limit 600
python -m scripts.eval_zero_shot photos --model scenes --classes names.txt --templates templates.txt
python -m scripts.eval_zero_shot "imagenet/val-{000..063}.tar" --model checkpoints/unitok --imagenet

A file of class names has one a line, as one of templates, in which {} stands for the name and {a} for the name with its
article. An image's class is the name of its folder, or the cls of a shard: a name or a number, from 0; with --imagenet
also an id such as n01440764. Scenes have one thing each, classes and templates of their own, and need no files.
Images that are damaged or of no class are named and left out. Run the same command again to go on; torchrun shares
the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scripts._errors import Parser, cli, stop_at_once
from scripts._images import add_image_options, choose_images, report
from scripts._load import load_image_tokenizer

# torch and transformers are imported inside functions: --help should not wait for them.
if TYPE_CHECKING:
    from eval.images.zero_shot import Classes


def choose_classes(args: argparse.Namespace) -> Classes:
    """Raises ValueError when it is not clear which."""
    if args.imagenet and args.classes or args.templates and not args.classes:
        raise ValueError("give --classes and perhaps --templates, or --imagenet alone, which has templates of its own")
    with stop_at_once():
        from eval.images.zero_shot import imagenet_classes, read_classes, scene_classes

        if args.imagenet:
            return imagenet_classes()
        if args.classes:
            return read_classes(args.classes, args.templates)
        if args.data == ["scenes"]:
            return scene_classes()
    raise ValueError(f"which classes are in {' '.join(args.data)}? Name them with --classes FILE or --imagenet")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add_image_options(parser, "out/eval_zero_shot")
    add = parser.add_argument
    add("--classes", type=Path, metavar="FILE", help="their names")
    add("--templates", type=Path, metavar="FILE", help="default: a photo of {a}")
    add("--imagenet", action="store_true", help="OpenAI's names and templates, which come with open_clip")
    add("--text-tokenizer", metavar="FOLDER", help="default: the model's own, or OpenAI's where it reads that")
    args = parser.parse_args(argv)
    classes = choose_classes(args)
    images = choose_images(args, skill="single_object")
    image_tokenizer = load_image_tokenizer(args.model)
    with stop_at_once():
        from eval.images.zero_shot import evaluate_zero_shot, load_text_reader
        from eval.pieces import digest
        from mllm.folders import find_model

        read_texts = load_text_reader(image_tokenizer.config, args.text_tokenizer or find_model(args.model))
    result = evaluate_zero_shot(image_tokenizer, read_texts, classes, images, args.out / "pieces")
    config = image_tokenizer.config
    settings = {
        **{name: getattr(config, name) for name in ("image_size", "resize_ratio", "interpolation")},
        "classes": "imagenet" if args.imagenet else str(args.classes or "scenes"),
        "classes_hash": digest(classes),
        "class_count": len(classes.names),
        "template_count": len(classes.templates),
    }
    report("eval_zero_shot", argv, args, images, settings, result)


if __name__ == "__main__":
    cli(main)
