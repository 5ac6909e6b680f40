"""Captioned images by number: of the scenes world, of a folder, or of webdataset shards.

Which image comes when in training is a function of (seed, position), so a run resumes by counting.
"""

import csv
import dataclasses
import io
import json
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tokenizer.transform import load_image, read_image

from .files import decode, plain_name, read_lines, read_text, walk
from .scenes.world import SIZE, Scene, Thing, World, captions
from .shards import Shards, Shuffled

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
SCENES = "scenes"
COLORLESS_SHARE = 0.6  # of the captions; where colours are named they tell images apart, and classes are not learned


class CaptionedImage(NamedTuple):
    """`label` is the image's class, "" where it has none or several, `caption` "" where it has none; `name` is what
    messages call it."""

    image: Image.Image
    caption: str
    label: str
    name: str


class ImageSource(ABC):
    """`source[index]` -> CaptionedImage; ValueError, naming it, for one that is damaged. `damages` name what could not
    even be counted, such as the rest of a shard that breaks off; `notes` say what was taken, and what was left out."""

    damages: Sequence[str] = ()
    notes: Sequence[str] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> CaptionedImage: ...

    @abstractmethod
    def fingerprint(self) -> Any:
        """Changes with the images, as far as their files tell, for results that are kept; JSON can hold it."""

    def counts(self) -> Sequence[int]:
        """Images in each stretch that is read together."""
        return [len(self)]

    def order(self, seed: int) -> Shuffled:
        """A sequence: position in an endless run -> index of an image."""
        return Shuffled(self.counts(), seed)


def open_images(
    source: str | Sequence[str],
    artwork: str = "emoji",
    split: str = "train",
    crop: int = 0,
    skill: str | None = None,
) -> ImageSource:
    """`source` is "scenes" (for which the other options are), a folder, or patterns of shards.

    Raises ValueError for what is not there.
    """
    if source == SCENES:
        return Scenes(artwork, split, crop, skill)
    if isinstance(source, str) and Path(source).is_dir():
        return Folder(Path(source))
    if isinstance(source, str) and not source.lower().endswith(".tar"):
        raise ValueError(f"no images at {source!r}: give {SCENES!r}, a folder, or shards (names that end in .tar)")
    return ShardImages(source)


class Scenes(ImageSource):
    """The scenes world, all of it or of one `skill`. `crop` (pixels, 0: none) cuts a square around one thing, which the
    caption is then about."""

    def __init__(self, artwork: str = "emoji", split: str = "train", crop: int = 0, skill: str | None = None):
        self.world, self.split, self.crop, self.skill = World(artwork), split, crop, skill

    def __len__(self) -> int:
        return 2**62  # no end, but len() takes no more

    def order(self, seed: int) -> range:
        return range(seed * 1_000_000_007, len(self))

    def __getitem__(self, index: int) -> CaptionedImage:
        scene, rng = self.world.scene(index, self.split, self.skill), random.Random(index)
        image = self.world.render(scene)
        if self.crop:
            thing = rng.choice(scene.things)
            scene = dataclasses.replace(scene, skill="single_object", things=(thing,))
            image = crop_around(image, thing, self.crop, rng)
        label = scene.things[0].name if len(scene.things) == 1 else ""
        caption = rng.choice(captions(colorless(scene) if rng.random() < COLORLESS_SHARE else scene))
        return CaptionedImage(image, caption, label, f"{self.split} scene {index}")

    def fingerprint(self) -> Any:
        return [SCENES, self.world.artwork, self.split, self.crop, self.skill]


def colorless(scene: Scene) -> Scene:
    """A scene of the same picture whose captions name no colours."""
    skill = {"colors": "single_object", "color_attr": "two_object"}.get(scene.skill, scene.skill)
    things = tuple(dataclasses.replace(thing, color=None) for thing in scene.things)
    return dataclasses.replace(
        scene, skill=skill, things=things, background=dataclasses.replace(scene.background, name=None)
    )


def crop_around(image: Image.Image, thing: Thing, size: int, rng: random.Random) -> Image.Image:
    """A square of `size` pixels with the centre of the thing in its middle half, as far as the image reaches."""
    scale = image.width / SIZE
    x1, y1, x2, y2 = thing.box

    def start(low: float, high: float) -> int:
        middle = scale * (low + high) / 2 - size / 2 + rng.uniform(-size / 4, size / 4)
        return round(min(max(middle, 0), image.width - size))

    left, top = start(x1, x2), start(y1, y2)
    return image.crop((left, top, left + size, top + size))


class Folder(ImageSource):
    """Image files, in folders of any depth; hidden ones are passed over, linked ones followed.

    Captions are the `text` (or `caption`) of the lines with this `file_name` in a metadata.jsonl or metadata.csv of the
    image's folder or one above it, as in Hugging Face's image folders, or else the text of `NAME.txt` beside
    `NAME.png`. Of several, one is picked, always the same. Without any, the name of the image's folder is its class,
    and the caption says "a photo of" it. Raises ValueError for a folder without images, and for metadata that cannot be
    read; a caption that is no text makes its image a bad one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        found, repeated = walk(folder)
        kinds = {file: file.suffix[1:].lower() for file in found}
        self.files = [file for file in found if kinds[file] in EXTENSIONS]
        if not self.files:
            raise ValueError(f"no images in {folder}; known are {', '.join(EXTENSIONS)}")
        metadata = [file for file in found if file.stem == "metadata" and kinds[file] in METADATA]
        self.captions, unmatched = _read_metadata(folder, metadata, set(map(self._key, self.files)))
        texts = {self._key(file.with_suffix("")): file for file in found if kinds[file] == "txt"}
        self.texts = {stem: texts[stem] for stem in (self._stem(file) for file in self.files) if stem in texts}
        self._read = [*self.files, *metadata, *self.texts.values()]
        others = Counter(file.suffix.lower() or "without an ending" for file in sorted({*found} - {*self._read}))
        self.notes = [self._taken(), *repeated]
        if others:
            counts = ", ".join(f"{count} {kind}" for kind, count in others.items())
            self.notes.append(f"{folder}: left out, neither images of a known kind nor their captions: {counts}")
        if unmatched:
            self.notes.append(f"{len(unmatched)} lines of metadata name no image that is there, e.g. {unmatched[0]}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> CaptionedImage:
        file = self.files[index]
        try:
            caption, label = self.caption(index)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return CaptionedImage(load_image(file), caption, label, str(file))

    def fingerprint(self) -> Any:
        there = [(file, file.stat()) for file in self._read if file.exists()]  # a link may lead nowhere
        return [(str(file), state.st_size, state.st_mtime_ns) for file, state in there]

    def caption(self, index: int) -> tuple[str, str]:
        """-> caption and label, without the image. Raises ValueError for a caption that is no text."""
        file = self.files[index]
        key = self._key(file)
        if key in self.captions:
            return pick_caption(self.captions[key], key), ""
        if self._stem(file) in self.texts:
            return read_text(self.texts[self._stem(file)]).strip(), ""
        label = self._label(file)
        return f"a photo of {label}" if label else "", label

    def _key(self, file: Path) -> str:
        return plain_name(file.relative_to(self.folder).as_posix())

    def _stem(self, file: Path) -> str:
        return self._key(file.with_suffix(""))

    def _label(self, file: Path) -> str:
        return "" if file.parent == self.folder else file.parent.name.replace("_", " ")

    def _taken(self) -> str:
        """How many images, and where their captions come from."""
        sources: Counter[str] = Counter()
        for file in self.files:
            if self._key(file) in self.captions:
                sources["in metadata"] += 1
            elif self._stem(file) in self.texts:
                sources["in .txt files"] += 1
            else:
                sources["by the folder's name" if self._label(file) else "none"] += 1
        return f"{self.folder}: {len(self.files)} images; captions: {', '.join(f'{n} {s}' for s, n in sources.items())}"


def pick_caption(value: Any, seed: str) -> str:
    """A text as it is; one of a list of texts, always the same for this `seed`. Raises ValueError for anything else."""
    texts = value if isinstance(value, list) else [value]
    wrong = [text for text in texts if not isinstance(text, str)] if texts else [texts]
    if wrong:
        raise ValueError(f"its caption is {str(wrong[0])[:60]}; give a text, or a list of texts")
    filled = [text.strip() for text in texts if text.strip()]
    return random.Random(seed).choice(filled) if filled else ""


class Mixed(ImageSource):
    """Two sources as one: of the images of a run, a `share` is of `second`, drawn by position."""

    def __init__(self, first: ImageSource, second: ImageSource, share: float):
        self.first, self.second, self.share = first, second, share
        self.damages, self.notes = [*first.damages, *second.damages], [*first.notes, *second.notes]

    def __len__(self) -> int:
        return len(self.second) + len(self.first)

    def __getitem__(self, index: int) -> CaptionedImage:
        before = len(self.second)  # it comes first in the numbering, as the other may have no end
        return self.second[index] if index < before else self.first[index - before]

    def order(self, seed: int) -> "MixedOrder":
        return MixedOrder(self, seed)

    def fingerprint(self) -> Any:
        return [self.share, self.first.fingerprint(), self.second.fingerprint()]


class MixedOrder:
    """Position in an endless run of mixed sources -> index."""

    def __init__(self, mixed: Mixed, seed: int):
        self.seed, self.share, self.before = seed, mixed.share, len(mixed.second)
        self.first, self.second = mixed.first.order(seed), mixed.second.order(seed)

    def __getitem__(self, position: int) -> int:
        if random.Random(f"{self.seed} {position}").random() < self.share:
            return self.second[position]
        return self.before + self.first[position]


def _read_metadata(folder: Path, files: Sequence[Path], keys: AbstractSet[str]) -> tuple[dict[str, list], list[str]]:
    """-> {key of an image: its captions}, and the lines that name no image. Names start from the metadata's folder.
    Raises ValueError naming the line that is something else."""
    captions: dict[str, list] = {}
    unmatched = []
    for file in files:
        for line, record in METADATA[file.suffix[1:].lower()](file):
            name = record.get("file_name") if isinstance(record, dict) else None
            if not isinstance(name, str) or not {"text", "caption"} & set(record):
                raise ValueError(f'{file}, line {line}: not {{"file_name": ..., "text": ...}}')
            value = _first(record, "text", "caption")
            key = plain_name(f"{file.parent.relative_to(folder).as_posix()}/{name}")
            if key in keys:
                captions.setdefault(key, []).extend(value if isinstance(value, list) and value else [value])
            else:
                unmatched.append(f"{file}, line {line}: {name}")
    return captions, unmatched


def _first(record: dict[str, Any], *fields: str) -> Any:
    """The first of the fields that says something."""
    return next((record[field] for field in fields if record.get(field) is not None), None)


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: not JSON: {error}") from error


def _csv_lines(file: Path) -> Iterator[tuple[int, Any]]:
    rows = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {rows.line_num}: {error}") from error


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    raise ValueError(f"{file} is not read: write it as metadata.jsonl")


METADATA = {"jsonl": _json_lines, "csv": _csv_lines, "parquet": _parquet}


class ShardImages(ImageSource):
    """Webdataset shards of images with a caption (txt, or the `caption` or `text` of json) or a class (cls, a word or a
    number)."""

    def __init__(self, patterns: str | Sequence[str]):
        self.shards = Shards(patterns)
        self.damages = self.shards.damages
        self.notes = [self.shards.taken()]

    def __len__(self) -> int:
        return len(self.shards)

    def counts(self) -> Sequence[int]:
        return self.shards.counts

    def __getitem__(self, index: int) -> CaptionedImage:
        name, files = self.shards.name(index), self.shards[index]
        data = next((files[extension] for extension in EXTENSIONS if extension in files), None)
        if data is None:
            raise ValueError(f"{name}: no image; known are {', '.join(EXTENSIONS)}")
        try:
            label = decode(files.get("cls", b""), "its cls").strip()
            caption = _caption(files, name, label)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return CaptionedImage(read_image(io.BytesIO(data), name), caption, label, name)

    def fingerprint(self) -> Any:
        return self.shards.checksums()


def _caption(files: dict[str, bytes], name: str, label: str) -> str:
    if "txt" in files:
        return decode(files["txt"], "its txt").strip()
    try:
        record = json.loads(files.get("json", b"{}"))
    except ValueError as error:
        raise ValueError(f"its json is damaged: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("its json is damaged: no object")
    if {"caption", "text"} & set(record):
        return pick_caption(_first(record, "caption", "text"), name)
    return f"a photo of {label}" if label else ""
