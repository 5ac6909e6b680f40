"""How much small detail an image tokenizer keeps: characters and faces that are drawn here, and read again from what
is decoded. TokBench (arXiv 2505.18142) asks the same of photographs, with networks that read text and know faces.

The reader knows where a thing is and how large, but not which one: it takes the one whose picture correlates most with
what lies there, dark on light or light on dark. It reads all of what was drawn; of what has no detail, it guesses one
of 36 characters, or one of 16 faces. Shapes: P things on a page, S known ones, D pixels of a thing.
"""

import random
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from statistics import fmean

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

from tokenizer import ImageTokenizer
from tokenizer.transform import to_pixels

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
FACES = tuple(product(("open", "shut"), ("raised", "none"), ("smile", "frown", "flat", "round")))  # eyes, brows, mouth
SIDES = (8, 12, 16, 24, 32)  # pixels of a thing
FINE = 8  # a face is drawn so many times as large, and made small
SHOWN = 48  # things of each size, at least
CONTRAST = 96  # of 255, at least, between things and the ground


def draw_character(character: str, side: int) -> Image.Image:
    """White on black, [side, side]."""
    image = Image.new("L", (side, side))
    font = ImageFont.load_default(0.85 * side)
    ImageDraw.Draw(image).text((side / 2, side / 2), character, fill=255, font=font, anchor="mm")
    return image


def draw_face(face: tuple[str, str, str], side: int) -> Image.Image:
    """As `draw_character`."""
    eyes, brows, mouth = face
    image = Image.new("L", (FINE * side, FINE * side))
    draw, unit = ImageDraw.Draw(image), FINE * side / 32
    line = {"fill": 255, "width": round(2 * unit)}

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        return tuple(unit * edge for edge in (left, top, right, bottom))

    draw.ellipse(box(1, 1, 31, 31), outline=255, width=line["width"])
    for middle in (11, 21):
        if eyes == "open":
            draw.ellipse(box(middle - 2, 11, middle + 2, 15), fill=255)
        else:
            draw.line(box(middle - 3, 13, middle + 3, 13), **line)
        if brows == "raised":
            draw.line(box(middle - 3, 8, middle + 3, 8), **line)
    if mouth == "smile":
        draw.arc(box(9, 12, 23, 26), 30, 150, **line)
    elif mouth == "frown":
        draw.arc(box(9, 20, 23, 34), 210, 330, **line)
    elif mouth == "flat":
        draw.line(box(10, 22, 22, 22), **line)
    else:
        draw.ellipse(box(13, 19, 19, 26), fill=255)
    return image.resize((side, side), Image.Resampling.BOX)


KINDS: Mapping[str, Callable[[int], list[Image.Image]]] = {
    "text": cache(lambda side: [draw_character(character, side) for character in CHARACTERS]),
    "faces": cache(lambda side: [draw_face(face, side) for face in FACES]),
}


def page(things: list[Image.Image], size: int, draw: random.Random) -> tuple[Image.Image, list[int], list[Box]]:
    """An image of `size` pixels full of things, which may come again -> it, which things they are, and where. The first
    may lie anywhere, so that no thing is better off where the positions of codes begin."""
    side = things[0].width
    across = max(1, (size - 1) // side)
    left, top = (draw.randint(0, size - across * side) for _ in range(2))
    corners = [(left + side * column, top + side * row) for row in range(across) for column in range(across)]
    chosen = [draw.randrange(len(things)) for _ in corners]
    mask = Image.new("L", (size, size))
    for number, corner in zip(chosen, corners, strict=True):
        mask.paste(things[number], corner)
    back, front = (Image.new("RGB", (size, size), color) for color in _two_colors(draw))
    return Image.composite(front, back, mask), chosen, [(x, y, x + side, y + side) for x, y in corners]


def read(image: Image.Image, things: list[Image.Image], boxes: list[Box]) -> list[int]:
    """Which of the things lies in each box."""
    grey = image.convert("L")
    cells_PD, known_SD = _standard([grey.crop(box) for box in boxes]), _standard(things)
    return np.abs(cells_PD @ known_SD.T).argmax(1).tolist()


def _two_colors(draw: random.Random) -> list[tuple[int, int, int]]:
    while True:
        colors = [(draw.randrange(256), draw.randrange(256), draw.randrange(256)) for _ in range(2)]
        light, dark = (ImageColor.getcolor(f"rgb{color}", "L") for color in colors)
        if abs(light - dark) >= CONTRAST:
            return colors


def _standard(images: list[Image.Image]) -> np.ndarray:
    """Each a row of mean 0 and length 1; of zeros if it is flat."""
    values = np.stack([np.asarray(image, np.float64).ravel() for image in images])
    values -= values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


@torch.inference_mode()
def kept_detail(image_tokenizer: ImageTokenizer) -> dict[str, dict[str, float]]:
    """{kind: {side: share that is read right, "mean": over sides}}, of images of the image tokenizer's size, always the
    same ones. Things larger than these are left out."""
    size = image_tokenizer.config.image_size
    shares = {
        kind: {str(side): _share(image_tokenizer, things_of(side), f"{kind} {side}") for side in SIDES if side <= size}
        for kind, things_of in KINDS.items()
    }
    return {kind: {"mean": fmean(of_kind.values()), **of_kind} for kind, of_kind in shares.items()}


def _share(image_tokenizer: ImageTokenizer, things: list[Image.Image], seed: str) -> float:
    draw, pages, size = random.Random(seed), [], image_tokenizer.config.image_size
    while sum(len(chosen) for _, chosen, _ in pages) < SHOWN:
        pages.append(page(things, size, draw))
    images, chosen, boxes = zip(*pages, strict=True)
    pixels_N3HW = torch.stack([to_pixels(image, size) for image in images])  # `encode` resizes and crops images
    decoded = image_tokenizer.decode(image_tokenizer.encode(pixels_N3HW))
    found = [read(image, things, of_page) for image, of_page in zip(decoded, boxes, strict=True)]
    return fmean(one == other for pair in zip(chosen, found, strict=True) for one, other in zip(*pair, strict=True))
