"""Conversations with images: the schema of a training sample, and readers of the raw formats it is made from.

A sample is one JSON object, and the files of its images:

    {"messages": [
        {"role": "user", "content": [{"type": "image", "image": "0.jpg"}, {"type": "text", "text": "what is this?"}]},
        {"role": "assistant", "content": "a dog"}]}

Messages alternate, user first, assistant last. A content is a text, or a list of texts and images: any number, in any
order, in any turn. So an image in an assistant's turn is one to draw: alone after a text it is text-to-image, after
an image and a text it is an edit; and a sample without images is a chat.

In a webdataset shard, `000017.json` is the object, and `000017.0.jpg` is its image "0.jpg". Where codes are extracted,
the image is called "0.codes.npy" (uint16 [L, K]), and the object also says whose codes they are: "image_tokenizer" (a
hash of its weights) and "template" (which decides how images are prepared).
"""

import codecs
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.transform import read_image

from .files import decode, find_file, plain_name, read_text
from .images import EXTENSIONS, Folder, pick_caption

Messages = list[dict[str, Any]]
"""As in the schema, every content a list."""

CODES = "codes.npy"
CODES_FIELDS = ("image_tokenizer", "template")
IMAGE_MARK = "<image>"  # LLaVA's, inside texts
ROLES = {"human": "user", "gpt": "assistant"}  # LLaVA's -> ours
DESCRIBE = "Describe the image."
KEPT_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


class Conversation(NamedTuple):
    """`images` are the contents of files, in order of appearance in the messages, which hold their names.
    `codes_of` says whose codes they are; {} for images."""

    messages: Messages
    images: list[bytes]
    codes_of: dict[str, str]


def checked(messages: Any) -> Messages:
    """Messages with every content as a list. Raises ValueError for what is not in the schema."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("no messages")
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            f"roles are {', '.join(map(str, roles))}; they alternate user, assistant, and end on assistant"
        )
    return [{"role": message["role"], "content": _parts(message.get("content"))} for message in messages]


def _parts(content: Any) -> list[dict[str, str]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise ValueError("a message has no content")
    kept = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image"):
            raise ValueError(f"unknown content type {kind!r}; known: text, image")
        value = part.get(kind)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"a part of type {kind} holds {value!r}")
        other = {"text": "image", "image": "text"}[kind]
        if part.get(other):
            raise ValueError(f"a part of type {kind} also holds {other} {part[other]!r}: make it a part of its own")
        kept.append({"type": kind, kind: value})
    return kept


def images_of(messages: Messages) -> list[str]:
    """The values of the image parts, in order of appearance."""
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def with_images(messages: Messages, values: Iterable[Any]) -> Messages:
    """The same messages with other values for their images, in order of appearance."""
    left = iter(values)
    return [
        {
            **message,
            "content": [
                {"type": "image", "image": next(left)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def to_files(
    messages: Messages, images: Sequence[tuple[str, bytes]], codes_of: Mapping[str, str] | None = None
) -> dict[str, bytes]:
    """A sample of a shard: extension -> content. `images` are (kind of file, content), in order of appearance."""
    names = [f"{place}.{kind}" for place, (kind, _) in enumerate(images)]
    record = {"messages": with_images(messages, names), **(codes_of or {})}
    contents = [content for _, content in images]
    return {"json": json.dumps(record, ensure_ascii=False).encode(), **dict(zip(names, contents, strict=True))}


def from_files(files: Mapping[str, bytes]) -> Conversation:
    """The reverse of `to_files`; names of images may differ in case from those of their files, as endings in a shard
    are lower-case. Raises ValueError for what is missing, unused, or not in the schema."""
    if "json" not in files:
        raise ValueError("no json")
    try:
        record = json.loads(files["json"])
    except ValueError as error:
        raise ValueError(f"its json is damaged: {error}") from error
    messages = checked(record.get("messages") if isinstance(record, dict) else None)
    messages = with_images(messages, [plain_name(name).lower() for name in images_of(messages)])
    names = images_of(messages)
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(f"no {missing[0]}, which its messages show")
    unused = [name for name in files if name.endswith((*EXTENSIONS, CODES)) and name not in names]
    if unused:
        raise ValueError(f"no message shows its {unused[0]}")
    codes_of = {name: record[name] for name in CODES_FIELDS if name in record}
    return Conversation(messages, [files[name] for name in names], codes_of)


def stored_image(content: bytes, name: str) -> tuple[str, bytes]:
    """(kind of file, content) for a shard: JPEG, PNG and WebP as they are, others as PNG. Raises ValueError for what
    cannot be read to its end."""
    image = read_image(io.BytesIO(content), name)
    if image.format in KEPT_FORMATS:
        return KEPT_FORMATS[image.format], content
    png = io.BytesIO()
    image.save(png, "PNG")
    return "png", png.getvalue()


class Reader(ABC):
    """Raw samples by number: `reader[index]` -> the files of a shard's sample; ValueError, saying which and why, for a
    bad one. `notes` say what is not among the samples, and why."""

    notes: Sequence[str] = ()

    def __init__(self, path: Path, images: Path | None = None, task: str = "draw"):
        """`images` is the folder that names of images start from (None: the one `path` is in). `task` is what a
        caption is for: to draw the image, or to describe it. Raises ValueError when `path` is something else."""
        self.path, self.images, self.task = path, images or path.parent, task
        self.open()

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str: ...

    @abstractmethod
    def read(self, index: int) -> Conversation: ...

    def __getitem__(self, index: int) -> dict[str, bytes]:
        try:
            messages, contents, _ = self.read(index)
            images = [stored_image(*pair) for pair in zip(contents, images_of(messages), strict=True)]
            return to_files(messages, images)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.name(index)}: a field is missing or of another type: {error}") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.name(index)}: {error}") from error

    def with_files(self, messages: Messages) -> Conversation:
        """The sample with the files of the images that its messages name."""
        files = {name: find_file(self.images, name) for name in images_of(messages)}
        missing = [name for name, file in files.items() if file is None]
        if missing:
            raise ValueError(f"no image file at {self.images / missing[0]}")
        return Conversation(messages, [files[name].read_bytes() for name in images_of(messages)], {})

    def captioned(self, image: bytes, name: str, caption: str) -> Conversation:
        """Messages of an image and its caption, for the task."""
        if not caption.strip():
            raise ValueError("no caption")
        part = {"type": "image", "image": name}
        turns = (caption, [part]) if self.task == "draw" else ([part, {"type": "text", "text": DESCRIBE}], caption)
        messages = [{"role": role, "content": turn} for role, turn in zip(("user", "assistant"), turns, strict=True)]
        return Conversation(checked(messages), [image], {})


class Captions(Reader):
    """A folder of images with captions, as `images.Folder` reads it."""

    def open(self) -> None:
        if not self.path.is_dir():
            raise ValueError(f"no folder {self.path}")
        self.folder = Folder(self.path)
        self.notes = self.folder.notes

    def __len__(self) -> int:
        return len(self.folder)

    def name(self, index: int) -> str:
        return str(self.folder.files[index])

    def read(self, index: int) -> Conversation:
        file = self.folder.files[index]
        return self.captioned(file.read_bytes(), file.name, self.folder.caption(index)[0])


class JsonLines(Reader):
    """Samples of the schema, one a line, with names of image files."""

    def open(self) -> None:
        self.lines, start = [], 0  # (number, offset): the file may be larger than memory
        with _existing(self.path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ValueError(f"{self.path} is UTF-16 text: save it as UTF-8")
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    self.lines.append((number, start))
                start += len(line)

    def __len__(self) -> int:
        return len(self.lines)

    def name(self, index: int) -> str:
        return f"{self.path}, line {self.lines[index][0]}"

    def record(self, index: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self.lines[index][1])
            return json.loads(decode(file.readline(), "the line"))

    def read(self, index: int) -> Conversation:
        return self.with_files(checked(self.record(index)["messages"]))


class Edits(JsonLines):
    """Changes to images, one a line: the names of two image files and an instruction, under any of the names that
    public data sets use for them."""

    FIELDS = {
        "image before": ("before", "source", "source_image", "source_img", "original_image", "input_image"),
        "instruction": ("instruction", "edit_prompt", "edit", "prompt", "text"),
        "image after": ("after", "target", "target_image", "target_img", "edited_image", "output_image"),
    }

    def read(self, index: int) -> Conversation:
        record = self.record(index)
        before, instruction, after = (self._field(record, what) for what in self.FIELDS)
        asked = [{"type": "image", "image": before}, {"type": "text", "text": instruction}]
        answer = [{"type": "image", "image": after}]
        return self.with_files(checked([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]))

    def _field(self, record: dict[str, Any], what: str) -> str:
        """The value of a field under any of its names. Raises ValueError when none of them is there, or several."""
        found = [name for name in self.FIELDS[what] if name in record]
        if len(found) != 1:
            problem = f"several fields for the {what}: {', '.join(found)}" if found else f"no field for the {what}"
            raise ValueError(f"{problem}; give one of {', '.join(self.FIELDS[what])}")
        return record[found[0]]


class Llava(Reader):
    """LLaVA's (arXiv 2304.08485): a list of {"image": a name or several, "conversations": [{"from", "value"}]}, where
    each "<image>" in a text stands for the next image."""

    def open(self) -> None:
        try:
            self.records = json.loads(read_text(_existing(self.path)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path} is no JSON: {error}") from error
        if not isinstance(self.records, list):
            raise ValueError(f"{self.path} is no list of conversations; lines of JSON are --format messages")

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return f"{self.path}, entry {index}"

    def read(self, index: int) -> Conversation:
        record = self.records[index]
        names = record.get("image") or []
        names = [names] if isinstance(names, str) else names
        texts = [turn["value"] for turn in record["conversations"]]
        marks = sum(text.count(IMAGE_MARK) for text in texts)
        if marks != len(names):
            raise ValueError(f"{marks} {IMAGE_MARK} in the texts, {len(names)} images given")
        roles = [ROLES.get(turn["from"], turn["from"]) for turn in record["conversations"]]
        messages = [{"role": role, "content": _llava_parts(text)} for role, text in zip(roles, texts, strict=True)]
        return self.with_files(with_images(checked(messages), names))


def _llava_parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for place, words in enumerate(text.split(IMAGE_MARK)):
        parts += [{"type": "image", "image": IMAGE_MARK}] if place else []
        parts += [{"type": "text", "text": words.strip()}] if words.strip() else []
    return parts


class SavedDataset(Reader):
    """A dataset of Hugging Face's `datasets`, saved to disk. Columns are `messages` and, where they show any, `images`
    in order of appearance, or one `image`; or `image` and its `caption` or `text`, or a list of them."""

    def open(self) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ValueError("--format datasets needs a package: pip install datasets") from error
        if not self.path.is_dir():
            raise ValueError(f"no folder {self.path}")
        dataset = datasets.load_from_disk(str(self.path))
        if isinstance(dataset, datasets.DatasetDict):
            raise ValueError(f"{self.path} holds the splits {', '.join(dataset)}: give the folder of one")
        columns = dataset.column_names
        self.text = next((name for name in ("messages", "caption", "text") if name in columns), None)
        if self.text is None or (self.text != "messages" and "image" not in columns):
            raise ValueError(f"{self.path} has the columns {', '.join(columns)}; give messages, or image and caption")
        self.rows = dataset.with_format("arrow")  # images as their files, not decoded

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"{self.path}, row {index}"

    def read(self, index: int) -> Conversation:
        row = self.rows[index : index + 1].to_pylist()[0]
        if self.text != "messages":
            return self.captioned(_content(row["image"]), "image", pick_caption(row[self.text], self.name(index)))
        column = row.get("images") or [row.get("image")]
        images = [_content(image) for image in column if image is not None]
        for message in row["messages"]:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image":
                    part["image"] = "image"  # the column's, whatever the part holds
        messages = checked(row["messages"])
        shown = len(images_of(messages))
        if shown != len(images):
            raise ValueError(f"{shown} images in the messages, {len(images)} in the column images")
        return Conversation(messages, images, {})


def _content(image: dict[str, Any]) -> bytes:
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"no file {path}")
    return path


READERS: dict[str, type[Reader]] = {
    "captions": Captions,
    "messages": JsonLines,
    "edits": Edits,
    "llava": Llava,
    "datasets": SavedDataset,
}


def open_reader(name: str, path: Path, images: Path | None = None, task: str = "draw") -> Reader:
    """One of READERS, which says what the rest means. Raises ValueError for an unknown name, too."""
    if name not in READERS:
        raise ValueError(f"--format {name}: unknown; known: {', '.join(READERS)}")
    return READERS[name](path, images, task)
