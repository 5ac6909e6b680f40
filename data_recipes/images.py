"""Captioned images by number: of the scenes world, of a folder, or of webdataset shards.

Which image comes when in training is a function of (seed, position), so a run resumes by counting.
"""

import dataclasses
import io
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tokenizer.transform import load_image, read_image

from .scenes import SIZE, Scene, Thing, World, captions
from .shards import Shards, Shuffled

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
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
    even be counted, such as the rest of a shard that breaks off."""

    damages: Sequence[str] = ()

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
        """Position in an endless run -> index."""
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
    if isinstance(source, str) and not source.endswith(".tar"):
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
    """The same picture, as one whose caption names no colours."""
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
    """Image files, in folders of any depth. A caption is the text of `NAME.txt` beside `NAME.png`, or the `text` of the
    line with this `file_name` in `metadata.jsonl` (the layout of Hugging Face's image folders); without either, the
    name of the file's folder is its class, and the caption says "a photo of" it."""

    def __init__(self, folder: Path):
        self.folder = folder
        # Hidden files are what other programs leave: macOS puts ._cat.png beside cat.png.
        self.files = sorted(file for file in folder.rglob("[!.]*") if file.suffix[1:].lower() in EXTENSIONS)
        if not self.files:
            raise ValueError(f"no images in {folder}; known are {', '.join(EXTENSIONS)}")
        self.texts = _read_metadata(folder / "metadata.jsonl")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> CaptionedImage:
        file = self.files[index]
        caption, label = self._caption(file)
        return CaptionedImage(load_image(file), caption, label, str(file))

    def fingerprint(self) -> Any:
        states = [file.stat() for file in self.files]
        return [(str(file), s.st_size, s.st_mtime_ns) for file, s in zip(self.files, states, strict=True)]

    def _caption(self, file: Path) -> tuple[str, str]:
        text = file.with_suffix(".txt")
        name = file.relative_to(self.folder).as_posix()
        if name in self.texts:
            return self.texts[name], ""
        if text.is_file():
            return text.read_text(encoding="utf-8", errors="replace").strip(), ""
        label = "" if file.parent == self.folder else file.parent.name.replace("_", " ")
        return f"a photo of {label}" if label else "", label


def _read_metadata(file: Path) -> dict[str, str]:
    """file_name -> text. Raises ValueError naming the line that is something else."""
    texts = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else [], start=1):
        try:
            record = json.loads(line)
            texts[str(record["file_name"])] = str(record["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{file}, line {number}: not {{"file_name": ..., "text": ...}}') from error
    return texts


class ShardImages(ImageSource):
    """Webdataset shards of images (jpg, png, webp) with a caption (txt, or the `caption` or `text` of json) or a class
    (cls, a word or a number)."""

    def __init__(self, patterns: str | Sequence[str]):
        self.shards = Shards(patterns)
        self.damages = self.shards.damages

    def __len__(self) -> int:
        return len(self.shards)

    def counts(self) -> Sequence[int]:
        return self.shards.counts

    def __getitem__(self, index: int) -> CaptionedImage:
        name, files = self.shards.name(index), self.shards[index]
        data = next((files[extension] for extension in EXTENSIONS if extension in files), None)
        if data is None:
            raise ValueError(f"{name}: no image; known are {', '.join(EXTENSIONS)}")
        label = files.get("cls", b"").decode("utf-8", "replace").strip()
        return CaptionedImage(read_image(io.BytesIO(data), name), _caption(files, name, label), label, name)

    def fingerprint(self) -> Any:
        return self.shards.checksums()


def _caption(files: dict[str, bytes], name: str, label: str) -> str:
    if "txt" in files:
        return files["txt"].decode("utf-8", "replace").strip()
    try:
        record = json.loads(files.get("json", b"{}"))
        text = record.get("caption") or record.get("text") or ""
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{name}: its json is damaged") from error
    return str(text) or (f"a photo of {label}" if label else "")
