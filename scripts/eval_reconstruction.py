"""What an image tokenizer keeps of images: rFID, PSNR, SSIM, ST-LPIPS, LPIPS, and the use of each sub-codebook.

python -m scripts.eval_reconstruction scenes --model scenes --limit 600
python -m scripts.eval_reconstruction photos --model runs/mine/step_001000/model --out out/photos
python -m scripts.eval_reconstruction "imagenet/val-{000..063}.tar" --model checkpoints/unitok --out out/imagenet \\
    --inception pt_inception-2015-12-05-6726825d.pth --lpips lpips_with_vgg.pth
torchrun --nproc_per_node 2 -m scripts.eval_reconstruction photos --model checkpoints/unitok

Images are resized and cropped as the model's config says, reconstructions rounded to 8 bits. rFID over features of
EfficientNet-Lite0, whose weights come with pip, compares only with itself, and at equal numbers of images; published
numbers need Inception's weights as a file. pFID is the same of images some of whose codes are exchanged for near ones,
as those that a language model gets wrong would be. With --detail, also the share of small characters and faces, drawn
by this program, that can still be told apart. Damaged images are named and left out. Run the same command again to go
on.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from scripts._errors import Parser, cli, stop_at_once
from scripts._images import add_image_options, choose_images, report
from scripts._load import load_image_tokenizer

# torch is imported inside functions: --help should not wait for it.


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add_image_options(parser, "out/eval_reconstruction")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="weights of FID's Inception, for rFID")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="weights of LPIPS on VGG16 (lpips_with_vgg.pth)")
    parser.add_argument("--perturbed", type=float, default=0.0, metavar="SHARE", help="of codes, for pFID (e.g. 0.1)")
    parser.add_argument("--detail", action="store_true", help="read small characters and faces from what is decoded")
    args = parser.parse_args(argv)
    if not 0 <= args.perturbed <= 1:
        raise ValueError(f"--perturbed {args.perturbed} is outside 0 to 1")
    images = choose_images(args)
    with stop_at_once():
        from eval.images.detail import kept_detail
        from eval.images.distribution import efficientnet, inception
        from eval.images.reconstruction import evaluate_reconstruction, load_judges

        judges = load_judges(inception(args.inception) if args.inception else efficientnet(), args.lpips)
    image_tokenizer = load_image_tokenizer(args.model)
    result = evaluate_reconstruction(image_tokenizer, images, judges, args.out / "pieces", args.perturbed)
    if result and args.detail:
        result = result._replace(scores={**result.scores, **kept_detail(image_tokenizer)})
    config, extractor = image_tokenizer.config, judges.extractor
    settings = {
        **{name: getattr(config, name) for name in ("image_size", "resize_ratio", "interpolation")},
        "features": extractor.name,
        "features_hash": extractor.weights_hash,
        "features_size": extractor.size,
        "lpips_hash": judges.lpips_hash,
        "perturbed": args.perturbed,
        **{name: version(name) for name in ("torchmetrics", "scikit-image", "stlpips-pytorch")},
    }
    report("eval_reconstruction", argv, args, images, settings, result)


if __name__ == "__main__":
    cli(main)
