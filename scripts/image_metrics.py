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

import argparse
import sys
from pathlib import Path

from data_recipes.files import write_json
from scripts._about import about
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder


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
        from eval.images.folder_metrics import Wanted, measure_folder
    result = measure_folder(Wanted(**vars(args)))
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
