"""A folder of drawings from prompts, or of edits of a picture: 0000.png, 0001.png, ..., a line for each in
metadata.jsonl, and a grid.

What is there already is kept, where it was drawn in the same way; a PNG holds its line, too.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image

from data_recipes.files import read_text, split_lines, whole, write_whole
from mllm import DrawingOptions, EditingOptions, Mllm, Processor, edit_images, generate_images
from mllm.decode.program import start_drawing
from tokenizer.transform import load_image, read_note

from .geneval.drawing import in_batches, save
from .geneval.rules import PNG_KEY
from .pieces import drawing_bar

GRID_IMAGES, GRID_SIDE = 100, 512  # at most so many, and so large each

Record = dict[str, Any]  # a line of metadata.jsonl
Make = Callable[[Sequence[Record], Callable[[int], None]], list[Image.Image]]
"""Draws the images of some records; the function says how many positions of them are done."""


def check_lengths(model: Mllm, processor: Processor, prompts: Sequence[str], candidates: int) -> None:
    """Refuse a prompt that does not fit before any is drawn."""
    for place, prompt in enumerate(prompts, 1):
        try:
            start_drawing(model, processor, prompt, candidates)
        except ValueError as error:
            raise ValueError(f"prompt {place} ({prompt[:20]!r}...) is too long: {error}") from error


def plan(prompts: Sequence[str], count: int, settings: Record) -> list[Record]:
    """A record for each image."""
    seed = settings["seed"]
    wanted = [prompt for prompt in prompts for _ in range(count)]
    return [
        {"file": f"{index:04d}.png", "prompt": prompt, **settings, "seed": seed + index}
        for index, prompt in enumerate(wanted)
    ]


def find_missing(out: Path, records: Sequence[Record]) -> list[Record]:
    """The records without an image in `out`. ValueError when what is there was drawn in another way."""
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
            append(out, before)
    return missing


def read_listed(file: Path) -> dict[str, Record]:
    """The records of metadata.jsonl by file; a last line that was cut short is dropped from it."""
    if not file.exists():
        return {}
    text = read_text(file)
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        write_whole(file, complete)
    try:
        return {record["file"]: record for record in map(json.loads, split_lines(complete))}
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


def draw(out: Path, records: Sequence[Record], batch_size: int, positions: int, make: Make) -> None:
    """Draw and save in batches. Words that come with an image become a record's `answer`."""
    listed = read_listed(out / "metadata.jsonl")  # an image that was removed still has its line
    with drawing_bar(len(records)) as bar:
        at_once = max(1, batch_size // records[0]["candidates"]) if records else 1
        for place, batch in enumerate(in_batches(records, at_once)):
            share = len(batch) / positions
            images = make(batch, lambda done, first=place * at_once, share=share: bar(first + share * done))
            for record, image in zip(batch, images, strict=True):
                record = {**record, **{name: image.info[name] for name in ("answer",) if name in image.info}}
                save(out / record["file"], image, record)
                if record["file"] not in listed:
                    append(out, record)


def fill(
    out: Path, records: Sequence[Record], prompts: int, batch_size: int, positions: int, make: Make
) -> tuple[int, int]:
    """Draw what is missing of the records, and the grid. -> images drawn now, and all."""
    missing = find_missing(out, records)
    draw(out, missing, batch_size, positions, make)
    save_grid(out, records, prompts)
    return len(missing), len(records)


def save_grid(out: Path, records: Sequence[Record], prompts: int) -> None:
    """grid.png: a row for each prompt; the images of a single one in a square."""
    columns = len(records) // prompts if prompts > 1 else math.isqrt(len(records) - 1) + 1
    images = [load_image(out / record["file"]) for record in records[:GRID_IMAGES]]
    for image in images:
        image.thumbnail((GRID_SIDE, GRID_SIDE))
    (width, height), columns = images[0].size, min(columns, len(images))
    grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for index, image in enumerate(images):
        grid.paste(image, (index % columns * width, index // columns * height))
    with whole(out / "grid.png") as part:
        grid.save(part, "PNG")


def draw_prompts(
    model: Mllm, processor: Processor, out: Path, prompts: Sequence[str], count: int, batch_size: int, options: Record
) -> tuple[int, int]:
    """Draw what is missing of `count` images for each prompt, and the grid. `options`: the `seed` of the first image,
    and those of `DrawingOptions`. -> images drawn now, and all. Raises ValueError for a prompt that is too long, and
    for a folder that holds other images."""
    check_lengths(model, processor, prompts, options["candidates"])
    records = plan(prompts, count, {**options, "model_hash": model.weights_hash()})

    def make(batch: Sequence[Record], progress: Callable[[int], None]) -> list[Image.Image]:
        prompts, seeds = ([record[name] for record in batch] for name in ("prompt", "seed"))
        chosen = {field.name: options[field.name] for field in fields(DrawingOptions)}
        return generate_images(model, processor, prompts, seeds=seeds, progress=progress, **chosen)

    return fill(out, records, len(prompts), batch_size, processor.num_positions, make)


def edit_picture(
    model: Mllm,
    processor: Processor,
    out: Path,
    picture: Path,
    mask: Path | None,
    prompt: str,
    count: int,
    batch_size: int,
    options: Record,
) -> tuple[int, int, list[str]]:
    """`count` edits of a picture, as `draw_prompts`; `options` are the `seed`, and those of `EditingOptions`. -> edits
    made now, all, and words of the model in place of edits. Raises ValueError for what cannot be edited."""
    about: Record = {}
    for name, file in (("image", picture), ("mask", mask)):
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file else None
        about |= {name: file and file.name, f"{name}_sha256": digest}
    image = load_image(picture, still=True)
    masked = load_image(mask, still=True, alpha=True) if mask else None
    records = plan([prompt], count, {**about, **options, "model_hash": model.weights_hash()})

    def make(batch: Sequence[Record], progress: Callable[[int], None]) -> list[Image.Image]:
        n, seeds = len(batch), [record["seed"] for record in batch]
        chosen = {field.name: options[field.name] for field in fields(EditingOptions)}
        return edit_images(model, processor, [image] * n, [prompt] * n, [masked] * n, seeds, progress, **chosen)

    done = fill(out, records, 1, batch_size, processor.num_positions, make)
    listed = read_listed(out / "metadata.jsonl")
    answers = [listed[record["file"]]["answer"] for record in records if "answer" in listed[record["file"]]]
    return *done, list(dict.fromkeys(answers))
