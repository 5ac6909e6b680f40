"""Compare a folder of images with another or with saved statistics: FID, KID, precision and recall; and CLIPScore.

python -m scripts.image_metrics out/mjhq/images --reference MJHQ-30K/mjhq30k_imgs --out out/metrics
python -m scripts.image_metrics out/images --reference coco.npz --inception pt_inception-2015-12-05-6726825d.pth
python -m scripts.image_metrics MJHQ-30K/mjhq30k_imgs --save-statistics mjhq.npz
python -m scripts.image_metrics out/images --clip openai/clip-vit-large-patch14

Features are EfficientNet-Lite0's, whose weights come with pip: such numbers compare only with each other. Published
FID needs Inception's weights as a file. CLIPScore takes prompts from the images where our scripts drew them, else
from --prompts: a metadata.jsonl with file and prompt, or MJHQ's meta_data.json. Run the same command again to go on;
torchrun shares the work.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from scripts._about import about
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder

# torch is imported inside functions: --help should not wait for it.


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """Everything asked for; None while other processes are still at work."""
    from eval.pieces import origin

    result = origin(args.images) or origin(args.images.parent) or {"settings": {}}
    result = {**result, "settings": {**result["settings"], "images": str(args.images)}, "scores": {}, "damaged": []}
    parts = [add_distances] if args.reference or args.save_statistics else []
    parts += [add_clip_score] if args.clip else []
    done = [part(args, args.out / "pieces", result) for part in parts]  # this process's share of all, first
    return result if all(done) else None


def add_distances(args: argparse.Namespace, cache: Path, result: dict[str, Any]) -> bool:
    """Into `result`; False while other processes are still at work."""
    from eval.images import distribution

    extractor = distribution.inception(args.inception) if args.inception else distribution.efficientnet()
    images = distribution.folder_features(distribution.image_files(args.images), extractor, cache)
    reference = None
    if args.reference and args.reference.is_file():
        reference = distribution.load_statistics(args.reference, extractor)
    elif args.reference:
        reference = distribution.folder_features(distribution.image_files(args.reference), extractor, cache)
    if images is None or (args.reference and reference is None):
        return False
    network = {"features": extractor.name, "weights_hash": extractor.weights_hash, "resized_to": extractor.size}
    result["settings"] |= network
    result["images"], result["damaged"] = images.count, [*images.damaged]
    if args.save_statistics:
        distribution.save_statistics(args.save_statistics, images, extractor)
    if reference:
        result["settings"]["reference"] = str(args.reference)
        result["reference_images"] = reference.count
        result["damaged"] += reference.damaged
        result["scores"][extractor.name] = distribution.compare(images, reference)
    return True


def add_clip_score(args: argparse.Namespace, cache: Path, result: dict[str, Any]) -> bool:
    """Into `result`; False while other processes are still at work."""
    from eval.images.clip import Clip
    from eval.images.distribution import clip_score, read_prompts
    from tokenizer.weights import weights_hash

    prompts, clip = read_prompts(args.images, args.prompts), Clip.from_pretrained(args.clip)
    result["settings"] |= {"clip": args.clip, "clip_hash": weights_hash(clip.model)}
    found = clip_score(prompts, clip, result["settings"]["clip_hash"], cache)
    if found is None:
        return False
    result["scores"]["clip_score"], damaged = found
    result["damaged"] += [file for file in damaged if file not in result["damaged"]]
    return True


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("images", type=Path, help="a folder, with all folders below it")
    add("--reference", type=Path, help="another folder, or an .npz file with mu and sigma")
    add("--inception", type=Path, metavar="FILE", help="weights of FID's Inception (default: EfficientNet-Lite0)")
    add("--save-statistics", type=Path, metavar="FILE", help="an .npz file for a later --reference")
    add("--clip", help="CLIPScore by this CLIP, a folder or hub id")
    add("--prompts", type=Path, metavar="FILE", help="prompts for CLIPScore, where the images do not hold them")
    add("--out", type=Path, default=Path("out/image_metrics"), help="folder for results.json (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if not (args.reference or args.save_statistics or args.clip):
        raise ValueError("nothing to do: give --reference, --save-statistics or --clip")
    if not args.images.is_dir():
        raise ValueError(f"no folder {args.images}")
    if args.reference and not args.reference.exists():
        raise ValueError(f"neither folder nor statistics at {args.reference}")
    check_folder(args.out)
    with stop_at_once():
        from eval.pieces import finish, write_json
    result = finish(lambda: measure(args))
    if result is None:
        print("this process has done its share; the one that ends last prints the numbers")
        return
    write_json(args.out / "results.json", {"benchmark": "image_metrics", **about("image_metrics", argv), **result})
    for features, value in result["scores"].items():
        for name, number in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{f'{name} ({features})' if name else features:32} {number:.4f}")
    if "reference_images" in result:
        print(f"{result['images']} images, {result['reference_images'] or 'statistics alone as'} reference")
    damaged = result["damaged"]
    if damaged:
        print(f"note: {len(damaged)} damaged images are left out, e.g. {damaged[0]}", file=sys.stderr)


if __name__ == "__main__":
    cli(main)
