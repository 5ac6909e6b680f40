"""Text files and folders as people have them: encodings, ends of lines, Unicode forms of names, hidden and linked
folders. And writing files and folders that are whole, or not there at all."""

import codecs
import json
import os
import posixpath
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

ENCODINGS = {  # by the mark at the beginning; UTF-16's begins as UTF-32's does
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


# ---- texts


def decode(content: bytes, name: object) -> str:
    """UTF-8, or what a byte order mark says, with "\\n" for every end of a line. Raises ValueError, which calls it
    `name`, for any other encoding."""
    encoding = next((known for mark, known in ENCODINGS.items() if content.startswith(mark)), "utf-8")
    told = f"{name} is no text that can be read: it"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        kind, byte = encoding.upper().removesuffix("-SIG"), f"byte {content[error.start]:#04x} at {error.start}"
        raise ValueError(f"{told} is not {kind} text ({byte}); save it as UTF-8") from error
    if content and not text:
        raise ValueError(f"{told} is not UTF-8 text, but a byte order mark alone")
    if "\0" in text:
        raise ValueError(f"{told} holds zero bytes, as binary files do, and UTF-16 without a mark; save it as UTF-8")
    return text.replace("\r\n", "\n")


def read_text(file: Path) -> str:
    """Raises ValueError naming a file that is no text, and OSError for one that cannot be read."""
    return decode(file.read_bytes(), file)


def split_lines(text: str) -> list[str]:
    """Without their ends. `str.splitlines` also breaks at U+2028, U+0085 and others, which texts of people hold."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


def read_lines(file: Path) -> list[str]:
    """As `read_text`."""
    return split_lines(read_text(file))


# ---- names


def plain_name(name: str) -> str:
    """One form for all ways to write a path: slashes, no "./", Unicode's NFC (macOS writes NFD)."""
    return posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/")))


def find_file(folder: Path, name: str) -> Path | None:
    """The file whose name has the same plain form; None where there is none."""
    if (folder / name).is_file():
        return folder / name
    place = folder
    for part in plain_name(name).split("/"):
        place = place / part if (place / part).exists() else _listing(place).get(part, place / part)
    return place if place.is_file() else None


@lru_cache(maxsize=64)
def _listing(folder: Path) -> dict[str, Path]:
    return {plain_name(file.name): file for file in folder.iterdir()} if folder.is_dir() else {}


def walk(folder: Path) -> tuple[list[Path], list[str]]:
    """-> all files below, in order, and a line for each linked folder that is read already, by its own name or by
    another link. Hidden ones are what other programs leave: .ipynb_checkpoints, or the ._cat.png that macOS puts beside
    cat.png."""
    files, repeated, seen = [], [], set()
    own, linked = [folder], []
    while own or linked:
        place = own.pop() if own else linked.pop(0)
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            repeated.append(f"{place} is a link to a folder that is read already")
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    (linked if entry.is_symlink() else own).append(place / entry.name)
                else:
                    files.append(place / entry.name)
    return sorted(files), repeated


# ---- writing


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden path of this process's own, beside `path`, to write a file or a folder at. It becomes `path` at the end,
    and goes away if the end is not reached. Makes the folder around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def write_whole(file: Path, content: bytes | str) -> None:
    """Text as UTF-8."""
    with whole(file) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(file: Path, content: Any) -> None:
    write_whole(file, json.dumps(content, indent=2) + "\n")
