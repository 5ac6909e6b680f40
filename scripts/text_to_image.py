"""Draw images from prompts into a folder; run the same command again to draw what is still missing.

python -m scripts.text_to_image "a photo of a red car" "a photo of two dogs" --out out/cars -n 4
python -m scripts.text_to_image --prompts prompts.txt --out out/many -n 1 --batch-size 16

Writes 0000.png, 0001.png, ... (all of the first prompt, then the second, ...), grid.png with a row for each
prompt (at most the first 100 images), and metadata.jsonl with a line for each image. Image i is drawn with
seed --seed + i, and is the same whatever the batch size.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_recipes.files import read_lines, read_text, split_lines
from scripts._bar import drawing_bar
from scripts._errors import Parser, cli, stop_at_once
from scripts._files import check_folder, save_png
from scripts._load import CFG_SCALE, DRAWING_TEMPERATURE, QUANTIZATIONS, check_sampling, load_model

# torch, transformers and rich are imported inside functions: they take seconds, in which wrong options should
# already be told and Ctrl-C be heard.
if TYPE_CHECKING:
    from mllm import Mllm, Processor

GRID_IMAGES = 100
SAMPLING = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p", "code_context", "candidates")
PNG_KEY = "mllm"  # the PNG text that holds an image's metadata, too

Record = dict[str, Any]  # a line of metadata.jsonl


def read_prompts(words: Sequence[str], file: Path | None) -> list[str]:
    """Prompts of the command line, then those of a file, one a line; empty lines of the file are left out. Raises
    ValueError for an empty prompt, none at all, and a file that is no text."""
    for place, prompt in enumerate(words, 1):
        if not prompt.strip():
            raise ValueError(f"prompt {place} is empty: say what to draw")
    lines = read_lines(file) if file else []
    prompts = [prompt.strip() for prompt in [*words, *lines] if prompt.strip()]
    if not prompts:
        raise ValueError("no prompts: give some on the command line, or a file with --prompts")
    return prompts


def check_lengths(model: Mllm, processor: Processor, prompts: Sequence[str], candidates: int) -> None:
    """Refuse a prompt that does not fit before any is drawn."""
    from mllm.decode.program import start_drawing

    for place, prompt in enumerate(prompts, 1):
        try:
            start_drawing(model, processor, prompt, candidates)
        except ValueError as error:
            raise ValueError(f"prompt {place} ({prompt[:20]!r}...) is too long: {error}") from error


def plan(prompts: Sequence[str], count: int, seed: int, settings: dict[str, Any]) -> list[Record]:
    """A record for each image."""
    wanted = [prompt for prompt in prompts for _ in range(count)]
    return [
        {"file": f"{index:04d}.png", "prompt": prompt, "seed": seed + index, **settings}
        for index, prompt in enumerate(wanted)
    ]


def find_missing(out: Path, records: Sequence[Record]) -> list[Record]:
    """The records without an image in `out`. ValueError when what is there was drawn in another way."""
    from tokenizer.transform import read_note

    listed = read_listed(out / "metadata.jsonl")
    missing = []
    for record in records:
        exists = (out / record["file"]).exists()
        before = listed.get(record["file"]) or (read_note(out / record["file"], PNG_KEY) if exists else None)
        if exists or before:
            check_same(out, record, before)
        if not exists:
            missing.append(record)
        elif record["file"] not in listed:  # stopped between an image and its line
            append(out, record)
    return missing


def read_listed(file: Path) -> dict[str, Record]:
    """The records of metadata.jsonl by file; a last line that was cut short is dropped from it."""
    if not file.exists():
        return {}
    text = read_text(file)
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    try:
        return {record["file"]: record for record in map(json.loads, split_lines(whole))}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} was not written by this script: choose another --out") from error


def check_same(out: Path, record: Record, before: Record | None) -> None:
    """Raises ValueError unless the image that is there was drawn as this record says."""
    name = record["file"]
    if not before:
        raise ValueError(f"{out / name} is there but was not drawn by this script: choose another --out")
    for key, value in record.items():
        if before.get(key) != value:
            change = f"{key} {before.get(key)!r}, now it is {value!r}"
            raise ValueError(f"{out / name} was drawn with {change}: choose another --out")


def append(out: Path, record: Record) -> None:
    with open(out / "metadata.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def draw(model: Mllm, processor: Processor, out: Path, records: Sequence[Record], batch_size: int) -> None:
    """Draw and save in batches."""
    from PIL.PngImagePlugin import PngInfo

    from mllm import generate_images

    listed = read_listed(out / "metadata.jsonl")  # an image that was removed still has its line
    with drawing_bar(len(records)) as bar:
        at_once = max(1, batch_size // records[0]["candidates"]) if records else 1
        for first in range(0, len(records), at_once):
            batch = records[first : first + at_once]
            share = len(batch) / processor.num_positions
            images = generate_images(
                model,
                processor,
                [record["prompt"] for record in batch],
                seeds=[record["seed"] for record in batch],
                progress=lambda done, first=first, share=share: bar(first + share * done),
                **{name: batch[0][name] for name in SAMPLING},
            )
            for record, image in zip(batch, images, strict=True):
                info = PngInfo()
                info.add_itxt(PNG_KEY, json.dumps(record))
                save_png(image, out / record["file"], info)
                if record["file"] not in listed:
                    append(out, record)


def save_grid(out: Path, records: Sequence[Record], prompts: int) -> None:
    """grid.png: a row for each prompt; the images of a single one in a square."""
    from PIL import Image

    from tokenizer.transform import load_image

    columns = len(records) // prompts if prompts > 1 else math.isqrt(len(records) - 1) + 1
    images = [load_image(out / record["file"]) for record in records[:GRID_IMAGES]]
    (width, height), columns = images[0].size, min(columns, len(images))
    grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for index, image in enumerate(images):
        grid.paste(image, (index % columns * width, index // columns * height))
    save_png(grid, out / "grid.png")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("prompt", nargs="*", metavar="PROMPT", help="what to draw, each prompt in quotes")
    add("--prompts", type=Path, metavar="FILE", help="a text file with more of them, one a line")
    add("--model", default="scenes", help="a model's name or folder (default: %(default)s)")
    add("--out", type=Path, default=Path("out/images"), help="folder for the images (default: %(default)s)")
    add("-n", type=int, default=4, help="images for each prompt (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
    add("--cfg-scale", type=float, default=CFG_SCALE, help="guidance; 1 is none (default: %(default)s)")
    add("--cfg-interval", type=float, nargs=2, default=[0.0, 1.0], metavar=("A", "B"), help="part of it with guidance")
    add("--temperature", type=float, default=DRAWING_TEMPERATURE, help="0: the most likely (default: %(default)s)")
    add("--top-k", type=int, default=0, help="draw from the k likeliest; 0: from all (default: %(default)s)")
    add("--top-p", type=float, default=1.0, help="draw from this much probability (default: %(default)s)")
    add("--candidates", type=int, default=1, help="for an image; the model keeps its favourite (default: %(default)s)")
    add("--code-context", default="exact", help="exact, or published: as UniTok's released loop (default: %(default)s)")
    add("--quantize", choices=QUANTIZATIONS, help="weights of the language model, on a CPU")
    add("--batch-size", type=int, default=8, help="drawings at a time, candidates too (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for name, value in (("-n", args.n), ("--batch-size", args.batch_size)):
        if value < 1:
            raise ValueError(f"{name} {value} is below 1: give the number of images")
    prompts = read_prompts(args.prompt, args.prompts)
    check_folder(args.out)
    sampling = {name: getattr(args, name) for name in SAMPLING}
    check_sampling(args.seed, **sampling)
    model, processor = load_model(args.model, args.quantize)
    check_lengths(model, processor, prompts, args.candidates)
    with stop_at_once():  # reads whole weights
        settings = {**sampling, "model_hash": model.weights_hash()}
    records = plan(prompts, args.n, args.seed, settings)
    missing = find_missing(args.out, records)
    draw(model, processor, args.out, missing, args.batch_size)
    save_grid(args.out, records, len(prompts))
    print(f"{len(missing)} images drawn, {len(records)} in {args.out}; see {args.out / 'grid.png'}")


if __name__ == "__main__":
    cli(main)
