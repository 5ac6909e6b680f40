"""Images for the prompts of a benchmark, in the folder layout that its own scorer reads.

What is there and whole is not drawn again, and processes (torchrun) share the rest, by prompt.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from data_recipes.files import read_text, split_lines, write_json, write_whole
from mllm import Mllm, Processor, edit_images, generate_images
from mllm.decode.options import DrawingOptions, EditingOptions
from tokenizer.transform import in_grid, load_image

from ..drawn_folder import Picture, draw_missing, refusals, save
from ..pieces import claim, digest, share, spread
from .rules import NOT_DRAWN, load_records

Entry = TypeVar("Entry")
MAX_SEED = 10**11  # times the 10 million below, it still is a seed of torch


@dataclass(frozen=True, kw_only=True)
class Settings(DrawingOptions):
    """What is drawn, and how. `limit`: at most so many scenes and prompts, None for all. `image_cfg_scale` is that of
    `EditingOptions`."""

    limit: int | None = None
    images_per_prompt: int = 4
    seed: int = 0
    batch_size: int = 32
    image_cfg_scale: float = EditingOptions.image_cfg_scale

    def __post_init__(self):
        super().__post_init__()
        for name in ("images_per_prompt", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; it must be 0 to {MAX_SEED:,}")

    @property
    def drawing(self) -> dict[str, Any]:
        """How an image is drawn, as JSON gives it back."""
        values = {field.name: getattr(self, field.name) for field in fields(DrawingOptions)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def editing(self) -> dict[str, Any]:
        """How an image is edited."""
        return {**self.drawing, "image_cfg_scale": self.image_cfg_scale}

    def image_seed(self, record: int, sample: int) -> int:
        """Of one drawn image: the same whatever the batches, and different for every prompt."""
        return self.seed * 10_000_000 + record * 1000 + sample


# ---- layouts


def plan_geneval(prompts: Path, settings: Settings) -> list[Picture]:
    """`00000/samples/0000.png` and so on; github djghosh13/geneval. `prompts` is a file like its
    evaluation_metadata.jsonl."""
    records = spread(list(enumerate(load_records(prompts))), settings.limit)
    return list(geneval_pictures(records, settings))


def geneval_pictures(records: Iterable[tuple[int, dict]], settings: Settings) -> Iterator[Picture]:
    for number, record in records:
        for sample in range(settings.images_per_prompt):
            file = f"{number:05d}/samples/{sample:04d}.png"
            yield Picture(number, file, record["prompt"], [settings.image_seed(number, sample)], record)


def plan_dpg(prompts: Path, settings: Settings) -> list[Picture]:
    """`images/NAME.png`, a prompt's images as one grid; github TencentQQGYLab/ELLA, whose folder dpg_bench/prompts
    `prompts` is: NAME.txt for each prompt."""
    texts = {file.stem: read_text(file) for file in sorted(prompts.glob("[!.]*.txt"))}
    if not texts:
        raise ValueError(f"{prompts} holds no prompts (*.txt): give the folder dpg_bench/prompts of ELLA")
    samples = range(settings.images_per_prompt)
    return [
        Picture(number, f"images/{name}.png", text, [settings.image_seed(number, sample) for sample in samples])
        for number, (name, text) in spread(list(enumerate(texts.items())), settings.limit)
    ]


def plan_entries(name: str, prompts: Path, settings: Settings) -> list[Picture]:
    """One image a prompt, from a JSON file {id: {"prompt": ...}}; `name` may use the entry's other fields, too."""
    try:
        entries = json.loads(read_text(prompts))
        files = [(name.format(**entry, id=id), str(entry["prompt"])) for id, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{prompts} is no JSON file with prompts by id, as {name} needs it: {error!r}") from error
    return [
        Picture(number, file, prompt, [settings.image_seed(number, 0)])
        for number, (file, prompt) in spread(list(enumerate(_checked(files, prompts))), settings.limit)
    ]


def plan_parti(prompts: Path, settings: Settings) -> list[Picture]:
    """`images/00000.png` and so on, one image a prompt, from PartiPrompts.tsv (github google-research/parti)."""
    rows = csv.DictReader(split_lines(read_text(prompts)), delimiter="\t", quoting=csv.QUOTE_NONE)
    texts = [row["Prompt"] for row in rows if row.get("Prompt")]
    if not texts:
        raise ValueError(f"{prompts} holds no prompts: give PartiPrompts.tsv, whose first column is Prompt")
    return [
        Picture(number, f"images/{number:05d}.png", text, [settings.image_seed(number, 0)])
        for number, text in spread(list(enumerate(texts)), settings.limit)
    ]


def plan_edits(name: str, prompt: str, source: str, prompts: Path, settings: Settings) -> list[Picture]:
    """One edit an entry, of a JSON object {key: entry}, or of one entry a line with its `key`. `prompt` and `source`
    are the entry's fields of the instruction and the picture; `name` may use all. Paths are relative to the file."""
    try:
        text = read_text(prompts)
        if prompts.suffix == ".jsonl":
            entries = [json.loads(line) for line in split_lines(text) if line.strip()]
        else:
            entries = [{**entry, "key": key} for key, entry in json.loads(text).items()]
        files = [(name.format(**entry), (str(entry[prompt]), prompts.parent / entry[source])) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        needed = f"entries with {prompt} and {source}, and what {name} needs"
        raise ValueError(f"{prompts} is no file of {needed}: {error!r}") from error
    return [
        Picture(number, file, asked, [settings.image_seed(number, 0)], source=picture)
        for number, (file, (asked, picture)) in spread(list(enumerate(_checked(files, prompts))), settings.limit)
    ]


def _checked(files: Sequence[tuple[str, Entry]], prompts: Path) -> Sequence[tuple[str, Entry]]:
    """Raises ValueError for a file outside of the folder to draw into, and for two entries of one file."""
    seen = set()
    for file, _ in files:
        if file.startswith("/") or ".." in file.split("/"):
            raise ValueError(
                f"{prompts}: an entry names the file {file!r}, which is outside of the folder to draw into"
            )
        if file in seen:
            raise ValueError(f"{prompts}: two entries name the file {file!r}")
        seen.add(file)
    return files


PLANS = {
    "geneval": plan_geneval,
    "dpg": plan_dpg,
    "parti": plan_parti,
    "genai": partial(plan_entries, "images/{id}.jpeg"),  # github linzhiqiu/t2v_metrics, genai_image.json
    "mjhq": partial(plan_entries, "images/{category}/{id}.png"),  # MJHQ-30K, meta_data.json
    # github stepfun-ai/Step1X-Edit; its data set as lines, each with a picture's path as `image`.
    "gedit": partial(plan_edits, "fullset/{task_type}/{instruction_language}/{key}.png", "instruction", "image"),
    "imgedit": partial(plan_edits, "{key}.png", "prompt", "id"),  # github PKU-YuanGroup/ImgEdit, singleturn.json
}


# ---- drawing


def identity(model_hash: str, pictures: Sequence[Picture], settings: Settings) -> dict:
    """What makes two drawn folders comparable, for `claim`."""
    prompts = {str(picture.number): picture.record or picture.prompt for picture in pictures}
    return {
        "model": model_hash,
        "prompts": len(prompts),
        "prompts_hash": digest(prompts),
        "images_per_prompt": settings.images_per_prompt,
        "seed": settings.seed,
        **(settings.editing if pictures and pictures[0].source else settings.drawing),
    }


def draw_all(
    name: str, model: Mllm, processor: Processor, folder: Path, pictures: Sequence[Picture], settings: Settings
) -> None:
    """Draw this process's share of what is missing, and say what there is. Raises ValueError for a folder of another
    run. `name` is the model's."""
    drawn_by = identity(model.weights_hash(), pictures, settings)
    claim(folder, drawn_by, {"model_name": name})
    refused = draw(model, processor, folder, pictures, settings, drawn_by)
    for file, reason in refused.items():
        print(f"not drawn: {file}: {reason}", file=sys.stderr)
    there = sum((folder / picture.file).is_file() for picture in pictures)
    print(f"{there} of {len(pictures)} files in {folder}")


def draw(
    model: Mllm, processor: Processor, folder: Path, pictures: Sequence[Picture], settings: Settings, note: dict
) -> dict[str, str]:
    """Draw this process's share of what is missing; `note` goes into every PNG. -> {file: why the model cannot draw
    it}, of all, which not_drawn.json holds, too."""
    refused = refusals(model, processor, pictures, settings.candidates)
    if refused:
        write_json(folder / NOT_DRAWN, refused)
    numbers = set(share(sorted({picture.number for picture in pictures})))
    mine = [picture for picture in pictures if picture.number in numbers]
    for number, record in {picture.number: picture.record for picture in mine if picture.record}.items():
        write_whole(folder / f"{number:05d}" / "metadata.jsonl", json.dumps(record) + "\n")
    wanted = [picture for picture in mine if picture.file not in refused]

    def make(
        prompts: list[str], seeds: list[int], batch: Sequence[Picture], progress: Callable[[int], None]
    ) -> list[Image.Image]:
        if not batch[0].source:
            return generate_images(model, processor, prompts, seeds=seeds, progress=progress, **settings.drawing)
        sources = [load_image(picture.source, still=True) for picture in batch]
        return edit_images(model, processor, sources, prompts, None, seeds, progress, **settings.editing)

    def about(picture: Picture) -> dict:
        return {"prompt": picture.prompt, "seeds": picture.seeds, **note}

    at_once = settings.batch_size // settings.candidates
    for _ in draw_missing(folder, wanted, at_once, processor.num_positions, make, about):
        pass
    return refused


def save_grids(folder: Path, pictures: Sequence[Picture]) -> None:
    """GenEval's grid.png beside the samples of each prompt of this process that has all."""
    for number in share(sorted({picture.number for picture in pictures})):
        files = [folder / picture.file for picture in pictures if picture.number == number]
        grid = files[0].parents[1] / "grid.png"
        if not grid.is_file() and all(file.is_file() for file in files):
            with suppress(ValueError):  # scoring tells of damaged images
                save(grid, in_grid([load_image(file) for file in files], 2), {})
