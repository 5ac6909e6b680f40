"""Writing files so that a stopped script leaves none half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo


def check_folder(folder: Path) -> None:
    """Raises ValueError when nothing can be written to `folder`, which need not exist and is not made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"cannot write to {folder}: {there} is not a folder; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {folder}: no permission in {there}; choose another --out")


def save_png(image: Image.Image, file: Path, info: PngInfo | None = None) -> None:
    """Makes the folder; `info` holds texts to store in the file."""
    with finished(file) as part:
        image.save(part, "PNG", pnginfo=info)


def save_text(text: str, file: Path) -> None:
    """Makes the folder."""
    with finished(file) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def finished(file: Path) -> Iterator[Path]:
    """Another name to write under; it becomes `file` at the end, and goes away if the end is not reached."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
