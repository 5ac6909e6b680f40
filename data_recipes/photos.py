"""Photographs out of freely licensed software packages: wallpapers, and the pictures inside GCompris' resource files.

Which packages, and their licences: docs/data.md.
"""

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

SHORT, DETAIL = 400, 1000  # pixels of the short side, of a photograph and of one whose corners are taken as well
LARGE = 1200  # a wallpaper's long side is no less
SMALL = 160  # of pictures inside resource files, those with a shorter side are icons
STARTS = re.compile(rb"RIFF(....)WEBP|\xff\xd8\xff", re.DOTALL)


def photographs(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """(name, photograph) of unpacked packages: of a wallpaper the whole and its four corners, and what resource files
    (.rcc) hold. Files that Pillow cannot read are left out."""
    for file in sorted(folder.rglob("*.jpg")):
        with Image.open(file) as image:
            if max(image.size) < LARGE:
                continue
            image.draft("RGB", (2 * DETAIL, 2 * DETAIL))  # decodes large files at a fraction of their size
            whole = image.convert("RGB")
        name = "_".join(file.relative_to(folder).with_suffix("").parts[-4:])
        yield name, shrunk(whole, SHORT)
        large = shrunk(whole, DETAIL)
        half = DETAIL // 2
        for number, (left, top) in enumerate((x, y) for y in (0, large.height - half) for x in (0, large.width - half)):
            yield f"{name}_{number}", shrunk(large.crop((left, top, left + half, top + half)), SHORT)
    for file in sorted(folder.rglob("*.rcc")):
        for number, image in enumerate(embedded(file.read_bytes())):
            if min(image.size) >= SMALL and not image.has_transparency_data:
                yield f"{file.stem}_{number}", shrunk(image.convert("RGB"), SHORT)


def embedded(data: bytes) -> Iterator[Image.Image]:
    """The JPEG and WebP files stored as they are inside another one."""
    for start in STARTS.finditer(data):
        length = struct.unpack("<I", start[1])[0] + 8 if start[1] else None  # a JPEG's reader stops by itself
        try:
            image = Image.open(io.BytesIO(data[start.start() : length and start.start() + length]))
            image.load()
        except (OSError, SyntaxError, ValueError):
            continue  # bytes that only look like a start
        yield image


def shrunk(image: Image.Image, short: int) -> Image.Image:
    scale = short / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
