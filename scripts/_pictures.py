"""Images that a chat shows and saves."""

import logging
import os
import sys
from pathlib import Path

from PIL import Image
from rich.console import Console

from data_recipes.files import whole

CELLS = 40  # width


def picture(image: Image.Image) -> None:
    """Show an image in the best way that the terminal has; nothing where there is none, or one of no size."""
    # Both, as the library asks the terminal what it can, and reads the answer.
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or not os.get_terminal_size(sys.stdout.fileno()).columns:
        return
    from textual_image.renderable import Image as Shown

    logging.getLogger("textual_image").setLevel(logging.ERROR)  # that it was not answered is no news
    console = Console()
    console.print(Shown(image, width=min(CELLS, console.width), height="auto"))


def save(image: Image.Image, out: Path) -> Path:
    """The first free number is its name."""
    number = 1
    while (file := out / f"{number:04d}.png").exists():
        number += 1
    with whole(file) as part:
        image.save(part, "PNG")
    return file
