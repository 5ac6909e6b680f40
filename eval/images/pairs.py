"""Images beside what an image tokenizer keeps of them, with PSNR and SSIM; each at its own size."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_recipes.files import whole, write_json
from tokenizer import ImageTokenizer
from tokenizer.sizes import STRIDE
from tokenizer.transform import in_grid, load_image
from tokenizer.weights import weights_hash

from ..pieces import watch
from .similarity import psnr, ssim

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
    pixels_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1.0)
    codes_NLK = image_tokenizer.encode(pixels_3HW[None])
    return image_tokenizer.decode(codes_NLK, (image.height // STRIDE, image.width // STRIDE))[0]


def run(image_tokenizer: ImageTokenizer, job: Job, out: Path) -> dict[str, Any]:
    """Writes the pair of images; -> the record of metrics.json."""
    original = load_image(job.path)
    if original.size != job.size:
        original = original.resize(job.size, Image.Resampling.BICUBIC)
    result = reconstruct(image_tokenizer, original)
    scores = {"psnr": psnr(original, result), "ssim": ssim(original, result)}
    with whole(out / job.file) as part:
        in_grid([original, result], 2).save(part, "PNG")
    return {"image": str(job.path), "file": job.file, "original_size": job.original_size, "size": job.size, **scores}


def mean(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: sum(record[name] for record in records) / len(records) for name in ("psnr", "ssim")}


# ---- what is printed


def print_note(job: Job) -> None:
    (old_width, old_height), (width, height) = job.original_size, job.size
    print(f"note: {job.path} has {old_width} x {old_height} pixels, resized to {width} x {height}", file=sys.stderr)


def print_table(records: Sequence[dict[str, Any]]) -> None:
    table = Table("image", "pixels", "PSNR, dB", "SSIM")
    for record in records:
        width, height = record["size"]
        table.add_row(Text(record["file"]), f"{width} x {height}", f"{record['psnr']:.2f}", f"{record['ssim']:.3f}")
    if len(records) > 1:
        scores = mean(records)
        table.add_section()
        table.add_row("mean", "", f"{scores['psnr']:.2f}", f"{scores['ssim']:.3f}")
    Console().print(table)


def reconstruct_all(
    image_tokenizer: ImageTokenizer, jobs: Sequence[Job], out: Path, model: str, short_side: int | None
) -> None:
    """The pairs and metrics.json in `out`, and a table; `model` and `short_side` are what the user asked for."""
    for job in jobs:
        if job.size != job.original_size and not short_side:
            print_note(job)
    records = [run(image_tokenizer, job, out) for job in watch(jobs, "reconstructing")]
    settings = {"model": model, "image_tokenizer_hash": weights_hash(image_tokenizer), "size": short_side}
    write_json(out / METRICS, {"settings": settings, "images": records, "mean": mean(records)})
    print_table(records)
