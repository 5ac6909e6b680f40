"""Files that a command line names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from scripts._errors import stop_at_once

if TYPE_CHECKING:
    from PIL import Image


def check_folder(folder: Path) -> None:
    """Raises ValueError when nothing can be written to `folder`, which need not exist and is not made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"cannot write to {folder}: {there} is not a folder; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {folder}: no permission in {there}; choose another --out")


def open_image(file: str) -> Image.Image:
    with stop_at_once():
        from tokenizer.transform import load_image
    if not file:
        raise ValueError("/image needs a file: /image cat.png")
    try:
        path = Path(file).expanduser()
    except RuntimeError as error:
        raise ValueError(f"no image file at {file}: nobody here is called {Path(file).parts[0][1:]!r}") from error
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name one image in it")
    return load_image(path)


def read_key(file: Path | None) -> str | None:
    """The API key: the one line of a file."""
    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text: --api-key-file holds one line, the key") from error
    if not key or len(key.split()) != 1:
        raise ValueError(f"{file} holds no key: write one line without spaces into it")
    return key
