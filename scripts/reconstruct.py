"""Encode images to codes, decode them again, and compare: what an image tokenizer keeps.

python -m scripts.reconstruct cat.png photos/dog.jpg --model scenes --out out/reconstructed
python -m scripts.reconstruct photos/dog.jpg --model scenes --size 256 --out out/dog_256

Writes NAME.png for each image, original left and reconstruction right, and metrics.json with PSNR and SSIM.
An image whose sides are multiples of 16 is taken as it is, any other resized to the nearest ones, with a note.
With --size, the short side is resized to so many pixels and the long side in proportion; nothing is cut off.
A name that comes twice becomes NAME_2.png. Nothing that is in the folder already is overwritten.
"""

from pathlib import Path

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder
from scripts._load import load_image_tokenizer


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("image", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--out", type=Path, default=Path("out/reconstructed"), help="folder for the results (default: %(default)s)")
    add("--size", type=int, metavar="N", help="pixels of the short side, a multiple of 16 (default: as it is)")
    args = parser.parse_args(argv)
    check_folder(args.out)
    with stop_at_once():
        from eval.images.pairs import METRICS, check_new, check_short_side, plan, reconstruct_all

        check_short_side(args.size)
        jobs = plan(args.image, args.size)
        check_new(args.out, [*(job.file for job in jobs), METRICS])
    reconstruct_all(load_image_tokenizer(args.model), jobs, args.out, args.model, args.size)


if __name__ == "__main__":
    cli(main)
