"""Encode images to codes, decode them again, and compare: what an image tokenizer keeps.

python -m scripts.reconstruct cat.png photos/dog.jpg --model scenes --out out/reconstructed
python -m scripts.reconstruct photos/dog.jpg --model scenes --size 256 --out out/dog_256

Writes NAME.png for each image, original left and reconstruction right, and metrics.json with PSNR and SSIM.
An image whose sides are multiples of 16 is taken as it is, any other resized to the nearest ones, with a note.
With --size, the short side is resized to so many pixels and the long side in proportion; nothing is cut off.
A name that comes twice becomes NAME_2.png. Nothing that is in the folder already is overwritten.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder, save_png, save_text
from scripts._load import load_image_tokenizer

# torch, rich and scikit-image are imported inside functions: --help should not wait for them.
if TYPE_CHECKING:
    from PIL import Image

    from tokenizer import ImageTokenizer

MAX_PIXELS = 2048 * 1024  # attention is over all positions at once: on a CPU, a 12-megapixel photo would take hours
METRICS = "metrics.json"


class Job(NamedTuple):
    """An image file, the file to write, and (width, height) before and after resizing."""

    path: Path
    file: str
    original_size: tuple[int, int]
    size: tuple[int, int]


# ---- before anything is computed


def plan(paths: Sequence[Path], short_side: int | None) -> list[Job]:
    """Reads every image once, so that a bad one is told before there is a result. Raises ValueError naming it."""
    with stop_at_once():
        from tokenizer.transform import load_image
    jobs: list[Job] = []
    taken: set[str] = set()
    for path in paths:
        original_size = load_image(path).size
        file, number = f"{path.stem}.png", 1
        while file in taken:
            number += 1
            file = f"{path.stem}_{number}.png"
        taken.add(file)
        jobs.append(Job(path, file, original_size, fitting_size(path, original_size, short_side)))
    return jobs


def fitting_size(path: Path, size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """The (width, height) to reconstruct at: nearest multiples of 16. Raises ValueError for too small and too big."""
    from tokenizer.sizes import STRIDE

    if short_side is None and min(size) < STRIDE:
        raise ValueError(f"{path} has {size[0]} x {size[1]} pixels, each side needs {STRIDE}: enlarge it with --size")
    scale = short_side / min(size) if short_side else 1
    width, height = (max(1, round(side * scale / STRIDE)) * STRIDE for side in size)
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{path} would be reconstructed at {width} x {height}, the limit is {MAX_PIXELS:,} pixels: "
            "make it smaller with --size"
        )
    return width, height


def check_short_side(short_side: int | None) -> None:
    with stop_at_once():
        from tokenizer.sizes import STRIDE
    if short_side is not None and (short_side < STRIDE or short_side % STRIDE):
        raise ValueError(f"--size {short_side} is not a positive multiple of {STRIDE}")


def check_new(out: Path, files: Sequence[str]) -> None:
    """Raises ValueError when one of the files is there."""
    for file in files:
        if (out / file).exists():
            raise ValueError(f"{out / file} is there already: choose another --out, or remove it")


# ---- work


def reconstruct(image_tokenizer: ImageTokenizer, image: Image.Image) -> Image.Image:
    """RGB with sides that are multiples of 16 -> the same size, after encoding and decoding."""
    import numpy as np
    import torch

    from tokenizer.sizes import STRIDE

    pixels_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1.0)
    codes_NLK = image_tokenizer.encode(pixels_3HW[None])
    return image_tokenizer.decode(codes_NLK, (image.height // STRIDE, image.width // STRIDE))[0]


def run(image_tokenizer: ImageTokenizer, job: Job, out: Path) -> dict[str, Any]:
    """Writes the pair of images; -> the record of metrics.json."""
    from PIL import Image

    from eval.images.similarity import psnr, ssim
    from tokenizer.transform import load_image

    original = load_image(job.path)
    if original.size != job.size:
        original = original.resize(job.size, Image.Resampling.BICUBIC)
    result = reconstruct(image_tokenizer, original)
    scores = {"psnr": psnr(original, result), "ssim": ssim(original, result)}
    pair = Image.new("RGB", (2 * original.width, original.height))
    pair.paste(original, (0, 0))
    pair.paste(result, (original.width, 0))
    save_png(pair, out / job.file)
    return {"image": str(job.path), "file": job.file, "original_size": job.original_size, "size": job.size, **scores}


def mean(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: sum(record[name] for record in records) / len(records) for name in ("psnr", "ssim")}


# ---- what is printed


def print_note(job: Job) -> None:
    (old_width, old_height), (width, height) = job.original_size, job.size
    print(f"note: {job.path} has {old_width} x {old_height} pixels, resized to {width} x {height}", file=sys.stderr)


def print_table(records: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "pixels", "PSNR, dB", "SSIM")
    for record in records:
        width, height = record["size"]
        table.add_row(Text(record["file"]), f"{width} x {height}", f"{record['psnr']:.2f}", f"{record['ssim']:.3f}")
    if len(records) > 1:
        scores = mean(records)
        table.add_section()
        table.add_row("mean", "", f"{scores['psnr']:.2f}", f"{scores['ssim']:.3f}")
    Console().print(table)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("image", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--out", type=Path, default=Path("out/reconstructed"), help="folder for the results (default: %(default)s)")
    add("--size", type=int, metavar="N", help="pixels of the short side, a multiple of 16 (default: as it is)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_folder(args.out)
    check_short_side(args.size)
    jobs = plan(args.image, args.size)
    check_new(args.out, [*(job.file for job in jobs), METRICS])
    image_tokenizer = load_image_tokenizer(args.model)
    from eval.pieces import watch
    from tokenizer.weights import weights_hash

    for job in jobs:
        if job.size != job.original_size and not args.size:
            print_note(job)
    records = [run(image_tokenizer, job, args.out) for job in watch(jobs, "reconstructing")]
    settings = {"model": args.model, "image_tokenizer_hash": weights_hash(image_tokenizer), "size": args.size}
    report = {"settings": settings, "images": records, "mean": mean(records)}
    save_text(json.dumps(report, indent=2) + "\n", args.out / METRICS)
    print_table(records)


if __name__ == "__main__":
    cli(main)
