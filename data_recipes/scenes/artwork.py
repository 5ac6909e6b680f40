"""Pictures of single objects: GenEval class -> glyph, in its own colours or in one of ten. Used by scenes.py.

Two kinds of artwork with one code path: "emoji" (Noto Color Emoji, a sheet of pictures in noto/) and "shapes" (drawn).
Glyphs are PIL RGBA images, cropped to what is visible.
"""

import colorsys
import math
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Classes without an honest glyph are left out: fire hydrant, parking meter, bench, baseball glove, tv remote,
# microwave, oven, toaster, refrigerator, hair drier. "stand-in" marks a glyph that shows the thing together with, or
# as, something close to it.
EMOJI = {
    "person": "\U0001f9cd",
    "bicycle": "\U0001f6b2",
    "car": "\U0001f697",
    "motorcycle": "\U0001f3cd",
    "airplane": "\u2708",
    "bus": "\U0001f68c",
    "train": "\U0001f682",
    "truck": "\U0001f69a",
    "boat": "\u26f5",
    "traffic light": "\U0001f6a6",
    "stop sign": "\U0001f6d1",
    "bird": "\U0001f426",
    "cat": "\U0001f408",
    "dog": "\U0001f415",
    "horse": "\U0001f40e",
    "sheep": "\U0001f411",
    "cow": "\U0001f404",
    "elephant": "\U0001f418",
    "bear": "\U0001f43b",
    "zebra": "\U0001f993",
    "giraffe": "\U0001f992",
    "backpack": "\U0001f392",
    "umbrella": "\u2602",
    "handbag": "\U0001f45c",
    "tie": "\U0001f454",  # stand-in: a shirt with a tie
    "suitcase": "\U0001f9f3",
    "frisbee": "\U0001f94f",
    "skis": "\U0001f3bf",
    "snowboard": "\U0001f3c2",  # stand-in: a rider on a snowboard
    "sports ball": "\u26bd",
    "kite": "\U0001fa81",
    "baseball bat": "\U0001f3cf",  # stand-in: a cricket bat and ball
    "skateboard": "\U0001f6f9",
    "surfboard": "\U0001f3c4",  # stand-in: a rider on a surfboard
    "tennis racket": "\U0001f3be",
    "bottle": "\U0001f37e",
    "wine glass": "\U0001f377",
    "cup": "\u2615",
    "fork": "\U0001f374",  # the left half of fork and knife
    "knife": "\U0001f52a",
    "spoon": "\U0001f944",
    "bowl": "\U0001f963",
    "banana": "\U0001f34c",
    "apple": "\U0001f34e",
    "sandwich": "\U0001f96a",
    "orange": "\U0001f34a",
    "broccoli": "\U0001f966",
    "carrot": "\U0001f955",
    "hot dog": "\U0001f32d",
    "pizza": "\U0001f355",
    "donut": "\U0001f369",
    "cake": "\U0001f382",
    "chair": "\U0001fa91",
    "couch": "\U0001f6cb",
    "potted plant": "\U0001fab4",
    "bed": "\U0001f6cf",
    "dining table": "\U0001f37d",  # stand-in: a table setting
    "toilet": "\U0001f6bd",
    "tv": "\U0001f4fa",
    "laptop": "\U0001f4bb",
    "computer mouse": "\U0001f5b1",
    "computer keyboard": "\u2328",
    "cell phone": "\U0001f4f1",
    "sink": "\U0001f6b0",  # stand-in: the sign of a tap over a basin
    "book": "\U0001f4d5",
    "clock": "\u23f0",
    "vase": "\U0001f3fa",
    "scissors": "\u2702",
    "teddy bear": "\U0001f9f8",
    "toothbrush": "\U0001faa5",
}
# Part of a glyph that shows the thing alone: left, top, right, bottom as shares of the cropped glyph.
PARTS = {"fork": (0.0, 0.0, 0.5, 1.0)}

# Dark, middle and light shade of each colour. Orange stops before brown, red before pink.
SHADES = {
    "red": ((150, 8, 14), (224, 28, 34), (250, 92, 84)),
    "orange": ((214, 94, 0), (250, 134, 10), (255, 184, 90)),
    "yellow": ((204, 164, 0), (250, 218, 24), (255, 242, 140)),
    "green": ((10, 88, 30), (34, 164, 60), (138, 220, 138)),
    "blue": ((14, 44, 140), (34, 94, 226), (120, 170, 250)),
    "purple": ((74, 18, 114), (134, 48, 186), (190, 128, 226)),
    "pink": ((226, 84, 146), (255, 144, 190), (255, 204, 226)),
    "brown": ((64, 34, 14), (120, 70, 34), (176, 122, 80)),
    "black": ((4, 4, 5), (34, 34, 38), (86, 86, 92)),
    "white": ((172, 175, 182), (240, 241, 243), (255, 255, 255)),
}

GLYPHS = Path(__file__).parent / "noto" / "glyphs.png"
CELL, COLUMNS = 128, 10  # of that sheet: a glyph lies in the top left corner of its cell, in the order of EMOJI
FONT_SIZE = 109  # the one size of the font's bitmaps
VISIBLE = 24  # alpha below this is the faint rim of a glyph


def sheet_from_font(font: Path) -> Image.Image:
    """The sheet anew, from NotoColorEmoji.ttf: noto/SOURCE.md says of which version, and how it is called.

    Raises OSError when the file has no bitmaps of FONT_SIZE, ValueError when a glyph is not in it.
    """
    face = ImageFont.truetype(font, FONT_SIZE)
    sheet = Image.new("RGBA", (COLUMNS * CELL, math.ceil(len(EMOJI) / COLUMNS) * CELL))
    for name, letter in EMOJI.items():
        canvas = Image.new("RGBA", (200, 200))
        ImageDraw.Draw(canvas).text((20, 20), letter, font=face, embedded_color=True)
        sheet.paste(crop(canvas, name), cell(name)[:2])
    return sheet


def cell(name: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom on the sheet."""
    row, column = divmod(list(EMOJI).index(name), COLUMNS)
    return column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL


@cache
def load_sheet() -> Image.Image:
    with Image.open(GLYPHS) as sheet:
        return sheet.convert("RGBA")


def draw_emoji(name: str) -> Image.Image:
    return load_sheet().crop(cell(name))


def draw_shape(name: str) -> Image.Image:
    """A polygon or star with dots; corners, kind, dots and colour follow from the place in EMOJI."""
    index = list(EMOJI).index(name)
    corners, kind, dots = 3 + index % 5, index // 5 % 2, index // 10
    canvas = Image.new("RGBA", (128, 128))
    draw = ImageDraw.Draw(canvas)
    points = []
    for i in range(2 * corners):
        radius = 60 if i % 2 == 0 else (26, 60 * math.cos(math.pi / corners))[kind]
        angle = math.pi * i / corners
        points.append((64 + radius * math.sin(angle), 64 - radius * math.cos(angle)))
    hue = index * 0.618 % 1
    fill, dark, light = (
        tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, s, v)) for s, v in ((0.8, 0.8), (0.8, 0.4), (0.3, 1))
    )
    draw.polygon(points, fill=fill)
    for i in range(dots):
        x = 64 + 14 * math.sin(2 * math.pi * i / dots)
        y = 64 - 14 * math.cos(2 * math.pi * i / dots)
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=(dark, light)[dots % 2])
    return canvas


ARTWORK = {"emoji": draw_emoji, "shapes": draw_shape}


@lru_cache(maxsize=256)
def glyph(artwork: str, name: str) -> Image.Image:
    """The class in its own colours, at full resolution, cropped to what is visible."""
    image = crop(ARTWORK[artwork](name), name)
    if artwork == "emoji" and name in PARTS:
        w, h = image.size
        left, top, right, bottom = PARTS[name]
        image = crop(image.crop((round(left * w), round(top * h), round(right * w), round(bottom * h))), name)
    return image


def crop(image: Image.Image, name: str) -> Image.Image:
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox()
    if box is None:
        raise ValueError(f"the emoji font has no glyph for {name!r} (U+{ord(EMOJI[name]):X})")
    return image.crop(box)


def glyph_size(artwork: str, name: str, longest: int) -> tuple[int, int]:
    """Width and height of the glyph when its longest side is `longest` pixels."""
    w, h = glyph(artwork, name).size
    return max(1, round(longest * w / max(w, h))), max(1, round(longest * h / max(w, h)))


@lru_cache(maxsize=1024)
def main_color(artwork: str, name: str) -> tuple[int, int, int]:
    """Mean colour of the glyph's visible pixels."""
    pixels = np.asarray(glyph(artwork, name)).reshape(-1, 4)
    return tuple(int(c) for c in pixels[pixels[:, 3] > 128, :3].mean(0))


@lru_cache(maxsize=1024)
def shade_tables(artwork: str, name: str, color: str) -> tuple[list[int], ...]:
    """For R, G and B a table from luminance to a shade of `color`; the median becomes the colour itself."""
    image = glyph(artwork, name)
    luminance = np.asarray(image.convert("L"))[np.asarray(image)[..., 3] > 128]
    low, middle, high = np.percentile(luminance, (2, 50, 98))
    # A glyph that is mostly its darkest or lightest tone would leave no room on one side.
    knots = (min(low, middle - 20), middle, max(high, middle + 20))
    return tuple(
        [round(v) for v in np.interp(range(256), knots, channel)] for channel in zip(*SHADES[color], strict=True)
    )


@lru_cache(maxsize=4096)
def sized_glyph(artwork: str, name: str, color: str | None, width: int, height: int) -> Image.Image:
    """The glyph at the wanted size, recoloured unless `color` is None."""
    if color is None:
        return glyph(artwork, name).resize((width, height), Image.Resampling.LANCZOS)
    image = sized_glyph(artwork, name, None, width, height)
    luminance = image.convert("L")
    channels = [luminance.point(table) for table in shade_tables(artwork, name, color)]
    return Image.merge("RGBA", [*channels, image.getchannel("A")])
