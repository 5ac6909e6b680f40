"""Drawings in a folder: what is there and whole is kept, the rest is drawn in batches, each with a note inside.

`draw_missing` is what all drawing into folders goes through. `draw_prompts` and `edit_picture` lay a folder out for a
person: 0000.png, 0001.png, ..., a line for each in metadata.jsonl, and a grid. For benchmarks there is
`geneval/drawing.py`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_recipes.files import read_text, split_lines, whole, write_whole
from mllm import Mllm, Processor, edit_images, generate_images
from mllm.decode.program import start_drawing, start_editing
from tokenizer.transform import in_grid, load_image, read_note

from .geneval.rules import PNG_KEY
from .pieces import drawing_bar, in_batches

GRID_IMAGES, GRID_SIDE = 100, 512  # at most so many, and so large each

Record = dict[str, Any]  # a line of metadata.jsonl


class Picture(NamedTuple):
    """A file to draw. More than one seed: a grid of so many images. `number` is the prompt's, `record` what GenEval
    knows about it, `source` the picture that is to be edited."""

    number: int
    file: str
    prompt: str
    seeds: Sequence[int]
    record: dict | None = None
    source: Path | None = None


Make = Callable[[list[str], list[int], Sequence[Picture], Callable[[int], None]], list[Image.Image]]
"""(prompts, seeds, their pictures, progress) -> an image for each prompt and seed; `progress` hears how many positions
of them are done."""


def draw_missing(
    folder: Path, pictures: Sequence[Picture], at_once: int, positions: int, make: Make, note: Callable[[Picture], dict]
) -> Iterator[tuple[Picture, dict]]:
    """Draw the pictures that are not there, or damaged, `at_once` images of so many `positions` together. Yields each
    once it is saved, and the note in it; words that came with an image are the note's `answer`."""
    missing = [picture for picture in pictures if not readable(folder / picture.file)]
    size = max(1, at_once // len(missing[0].seeds)) if missing else 1
    with drawing_bar(len(missing)) as bar:
        for place, batch in enumerate(in_batches(missing, size)):
            part = len(batch) / positions
            prompts = [picture.prompt for picture in batch for _ in picture.seeds]
            seeds = [seed for picture in batch for seed in picture.seeds]
            left = iter(
                make(prompts, seeds, batch, lambda done, first=place * size, part=part: bar(first + part * done))
            )
            for picture in batch:
                images = [next(left) for _ in picture.seeds]
                answer = {name: images[0].info[name] for name in ("answer",) if name in images[0].info}
                about = {**note(picture), **answer}
                save(folder / picture.file, in_grid(images, 2), about)
                yield picture, about


def readable(file: Path) -> bool:
    try:
        load_image(file)
    except ValueError:
        return False
    return True


def refusals(model: Mllm, processor: Processor, pictures: Sequence[Picture], candidates: int) -> dict[str, str]:
    """{file: reason} of the prompts that are empty, no Unicode, or longer than the model reads, and of pictures that
    cannot be edited."""
    refused = {}
    for picture in pictures:
        try:
            if picture.source:
                start_editing(model, processor, picture.prompt, [load_image(picture.source, still=True)])
            else:
                start_drawing(model, processor, picture.prompt, candidates)
        except ValueError as error:
            refused[picture.file] = str(error)
    return refused


def save(file: Path, image: Image.Image, note: dict) -> None:
    """As PNG with `note` inside, or, for a name that ends so, as JPEG."""
    info = PngInfo()
    info.add_text(PNG_KEY, json.dumps(note))
    with whole(file) as part:
        if file.suffix == ".jpeg":
            image.save(part, "JPEG")  # Pillow's usual quality: the benchmark's own script takes it
        else:
            image.save(part, "PNG", pnginfo=info)


# ---- what a person asks for


def draw_prompts(
    model: Mllm, processor: Processor, out: Path, prompts: Sequence[str], count: int, batch_size: int, options: Record
) -> tuple[int, int]:
    """Draw what is missing of `count` images for each prompt, and the grid. `options`: the `seed` of the first image,
    and those of `DrawingOptions`. -> images drawn now, and all. Raises ValueError for a prompt that is too long, and
    for a folder that holds other images."""
    seed, chosen = _divided(options)
    pictures = _plan(prompts, count, seed)
    refused = refusals(model, processor, pictures[::count], options["candidates"])
    for number, file, prompt, *_ in pictures:
        if file in refused:
            raise ValueError(f"prompt {number} ({prompt[:20]!r}...) is too long: {refused[file]}")

    def make(prompts: list[str], seeds: list[int], _: Any, progress: Callable[[int], None]) -> list[Image.Image]:
        return generate_images(model, processor, prompts, seeds=seeds, progress=progress, **chosen)

    settings = {**chosen, "model_hash": model.weights_hash()}
    return _fill(out, pictures, settings, batch_size, processor.num_positions, make)


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
    seed, chosen = _divided(options)

    def make(prompts: list[str], seeds: list[int], _: Any, progress: Callable[[int], None]) -> list[Image.Image]:
        n = len(prompts)
        return edit_images(model, processor, [image] * n, prompts, [masked] * n, seeds, progress, **chosen)

    pictures = _plan([prompt], count, seed)
    settings = {**about, **chosen, "model_hash": model.weights_hash()}
    done = _fill(out, pictures, settings, batch_size, processor.num_positions, make)
    listed = read_listed(out / "metadata.jsonl")
    answers = [listed[one.file]["answer"] for one in pictures if "answer" in listed[one.file]]
    return *done, list(dict.fromkeys(answers))


def _divided(options: Record) -> tuple[int, Record]:
    """-> the seed, and all others."""
    return options["seed"], {name: value for name, value in options.items() if name != "seed"}


def _plan(prompts: Sequence[str], count: int, seed: int) -> list[Picture]:
    """`count` images for each prompt, each with the next seed."""
    wanted = [pair for pair in enumerate(prompts, 1) for _ in range(count)]
    return [Picture(number, f"{i:04d}.png", prompt, [seed + i]) for i, (number, prompt) in enumerate(wanted)]


def _fill(
    out: Path, pictures: Sequence[Picture], settings: Record, batch_size: int, positions: int, make: Make
) -> tuple[int, int]:
    """Draw what is missing, and the grid. -> images drawn now, and all."""
    records = {one.file: {"file": one.file, "prompt": one.prompt, **settings, "seed": one.seeds[0]} for one in pictures}
    listed, drawn = check_same(out, records), 0
    at_once = batch_size // settings["candidates"]
    for picture, record in draw_missing(out, pictures, at_once, positions, make, lambda one: records[one.file]):
        drawn += 1
        if picture.file not in listed:  # an image that was removed still has its line
            append(out, record)
    images = [load_image(out / picture.file) for picture in pictures[:GRID_IMAGES]]
    for image in images:
        image.thumbnail((GRID_SIDE, GRID_SIDE))
    # A row for each prompt; the images of a single one in a square.
    prompts = pictures[-1].number
    columns = len(pictures) // prompts if prompts > 1 else math.isqrt(len(pictures) - 1) + 1
    with whole(out / "grid.png") as part:
        in_grid(images, columns).save(part, "PNG")
    return drawn, len(pictures)


def check_same(out: Path, records: Mapping[str, Record]) -> set[str]:
    """The files that metadata.jsonl lists. Writes the line of an image that lacks it. Raises ValueError when what is
    there was drawn in another way."""
    listed = read_listed(out / "metadata.jsonl")
    for name, record in records.items():
        file = out / name
        before = listed.get(name) or (read_note(file, PNG_KEY) if file.exists() else None)
        if not before and file.exists():
            raise ValueError(f"{file} is there but was not drawn by this script: choose another --out")
        for key, value in record.items() if before else ():
            if before.get(key) != value:
                change = f"{key} {before.get(key)!r}, now it is {value!r}"
                raise ValueError(f"{file} was drawn with {change}: choose another --out")
        if file.exists() and name not in listed:  # stopped between an image and its line
            append(out, before)
            listed[name] = before
    return set(listed)


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


def append(out: Path, record: Record) -> None:
    with open(out / "metadata.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
