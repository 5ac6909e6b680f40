"""Image files and PIL images -> pixels in [-1, 1], and back.

Every picture that the project opens passes `load_image` or `read_image`. What only describes a picture (EXIF, colour
profiles, comments) never decides whether it is shown; what its numbers mean is known from its format, or it is refused.
"""

import io
import json
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # refused above; a 20,000 x 20,000 bomb would take 1.2 GB
MIN_SIDE = 2
LONGEST_STRIP = 16  # long side by short side; of longer ones only the middle is resized
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # formats whose several frames are one after the other in time
LARGEST_SQUARE = 8192  # pixels of a side; what is larger is shrunk before it is padded
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNKNOWN_FORMATS = {  # at byte 4 or 0 of a file, of formats that Pillow does not read
    b"ftyphe": "HEIC",
    b"ftypmif1": "HEIC",
    b"JXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"<svg": "SVG",
    b"%PDF": "PDF",
}

TIFF_PIXELS = {  # tags of TIFF 6.0 that say how pixels are stored
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 334, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 532),
}


# ---- files


def load_image(path: str | Path, **options: Any) -> Image.Image:
    """A file as an upright RGB image: EXIF rotation applied, transparency on white, first frame, 16 bit scaled to 8.
    Its `format` is Pillow's name of the file's. `options` are those of `read_image`.

    Raises ValueError, in one line, for what is missing, unreadable, damaged, too big or too small.
    """
    if not Path(path).is_file():
        raise ValueError(f"no image file at {path}")
    return read_image(Path(path), path, **options)


def read_image(
    source: Path | BinaryIO,
    name: object,
    formats: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    still: bool = False,
    alpha: bool = False,
) -> Image.Image:
    """`load_image` of a file or stream that is there; `name` is what errors call it, `formats` are Pillow's names of
    those that are read (None: all). With `still`, an animation is refused; with `alpha`, what has transparency is RGBA.
    """
    options = name, formats, max_pixels, still, alpha
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                return read_image(file, *options)
        except OSError as error:
            raise ValueError(f"cannot read {name} as an image: {error.strerror}") from error
    try:
        return _decode(source, *options)
    except _Refused:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
        source.seek(0)
        head = source.read(16)
        try:
            if strip := next((strip for mark, strip in DESCRIBED.items() if head.startswith(mark)), None):
                return _decode(io.BytesIO(strip(head + source.read())), *options)
        except _Refused:
            raise
        except Exception:  # the pixels are damaged as well: the first error says it
            pass
        raise ValueError(f"cannot read {name} as an image: {_reason(error, head)}") from error


class _Refused(ValueError):
    """Its message needs no words around it."""


def _decode(
    source: BinaryIO, name: object, formats: Sequence[str] | None, max_pixels: int, still: bool, alpha: bool
) -> Image.Image:
    with _quiet(), _whole_files(), Image.open(source, formats=formats) as file:
        _check_size(name, file.size, max_pixels)
        if still and file.format in ANIMATED and getattr(file, "is_animated", False):
            raise _Refused(f"{name} is an animation of {file.n_frames} frames: give one still picture")
        return _to_rgba(file) if alpha and file.has_transparency_data else to_rgb(file)


def read_note(path: Path, key: str) -> dict | None:
    """The JSON object that a PNG holds as a text called `key`, {} where it holds none; None for what cannot be read."""
    try:
        with _quiet(), Image.open(path) as file:
            note = json.loads(file.info.get(key, "{}"))
    except Exception:  # Pillow raises whatever it meets in a file of others
        return None
    return note if isinstance(note, dict) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _whole_files() -> Iterator[None]:
    """Pillow refuses cut-off files, unless a library, as lmms-eval does, has told it to fill them up for everybody."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check_size(name: object, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise _Refused(f"{name} has {size[0]} x {size[1]} pixels; at most {max_pixels:,} are read: make it smaller")
    if min(size) < MIN_SIDE:
        raise _Refused(f"{name} has {size[0]} x {size[1]} pixels; each side needs at least {MIN_SIDE}")


def _reason(error: Exception, head: bytes) -> str:
    """In words, with the first bytes of the file at hand."""
    if not head:
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):
        for mark, kind in UNKNOWN_FORMATS.items():
            if head.lstrip().startswith(mark) or head[4:].startswith(mark):
                return f"{kind} is not supported; save it as PNG or JPEG"
        return "it has no format that is known (PNG, JPEG, WebP, GIF, BMP, TIFF and others), or is damaged"
    return " ".join(str(error).split()) or type(error).__name__


def _png_pixels(content: bytes) -> bytes:
    """Chunks, each of length, kind, data and checksum (PNG specification, 5.3)."""
    kept, place = content[:8], 8
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + 12 + length]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept += chunk
        elif kind == b"eXIf":
            kept += chunk[:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4]))
        place += len(chunk)
    return kept


def _jpeg_pixels(content: bytes) -> bytes:
    """Segments, each of marker, length and data (ITU T.81, B.1.1), up to the first scan. JFIF's and Adobe's say how
    colours are stored."""
    kept, place = content[:2], 2
    while content[place + 1] != 0xDA:
        marker, length = struct.unpack_from(">xBH", content, place)
        segment = content[place : place + 2 + length]
        is_description = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_description or marker in (0xE0, 0xEE) or segment[4:10] == b"Exif\0\0":
            kept += segment
        place += len(segment)
    return kept + content[place:]


def _tiff_pixels(content: bytes) -> bytes:
    """The first directory: a count, entries of 12 bytes that begin with their tag, and where the next one is (TIFF 6.0,
    section 2)."""
    order = "<" if content.startswith(b"II") else ">"
    [place] = struct.unpack_from(f"{order}I", content, 4)
    [count] = struct.unpack_from(f"{order}H", content, place)
    end = place + 2 + 12 * count
    entries = [content[start : start + 12] for start in range(place + 2, end, 12)]
    kept = [entry for entry in entries if struct.unpack(f"{order}H", entry[:2])[0] in TIFF_PIXELS]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return content[:place] + directory + content[place + len(directory) :]


DESCRIBED = {b"\x89PNG": _png_pixels, b"\xff\xd8": _jpeg_pixels, b"II*\0": _tiff_pixels, b"MM\0*": _tiff_pixels}
"""Beginning of a file -> what takes from it all that only describes the picture, but for the orientation."""


# ---- modes


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB, upright, and without the metadata, so that nothing turns it again. Raises ValueError for
    numbers whose range is not known."""
    _scale_color_key(image)
    with _quiet():
        image.load()
        turn = _turn(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):  # convert("RGB") would clip these at 255
        rgb = _grey_8_bits(image).convert("RGB")
    elif image.has_transparency_data:
        rgba = _rgba(image)
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info, rgb.format = {}, image.format
    return rgb


def _to_rgba(image: Image.Image) -> Image.Image:
    """An image with transparency, upright."""
    _scale_color_key(image)
    turn, rgba = _turn(image), _rgba(image)
    return rgba if turn is None else rgba.transpose(turn)


def _rgba(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow's reader raises whatever it meets in a damaged block
        return None


def _scale_color_key(image: Image.Image) -> None:
    """Pillow brings a PNG's pixels to 8 bits, but leaves the transparent colour in the file's bits."""
    key, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or key is None or not tiles:
        return
    layout = tiles[0][3]
    if layout in ("L;2", "L;4"):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[layout]
    elif layout == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _grey_8_bits(image: Image.Image) -> Image.Image:
    """The modes of more than 8 bits as L; a transparent value becomes white. What is white follows from the format,
    never from how bright this picture is."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "F":
        values, white = _float_range(values)
        grey = (values * (255 / white)).round().astype(np.uint8)
    else:
        white = 65535 if image.mode != "I" or image.format in ("PNG", "PPM") else 255
        if tags.get(258) == (12,):  # BitsPerSample
            white = 4095
        if values.min() < 0 or values.max() > white:
            raise ValueError(f"integers from {values.min()} to {values.max()}, of which white is unknown: save 8 bits")
        grey = (np.arange(white + 1) * (255 / white)).round().astype(np.uint8)[values]
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero
        grey = 255 - grey
    key = image.info.get("transparency")
    return Image.fromarray(np.where(values == key, np.uint8(255), grey) if isinstance(key, int) else grey)


def _float_range(values: np.ndarray) -> tuple[np.ndarray, int]:
    """-> the values, and which is white: fractions up to 1, or whole numbers up to 255, as Pillow has them."""
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1:
        return values, 1
    if low >= 0 and high <= 255 and (values == values.round()).all():
        return values, 255
    raise ValueError(f"fractions from {low:g} to {high:g}, of which white is unknown: save 8 bits, or 0 to 1")


# ---- pixels


def to_pixels(image: Image.Image, size: int, resize_ratio: float = 1.0, interpolation: str = "bicubic") -> torch.Tensor:
    """PIL -> pixels [3, size, size]: short side resized to `size * resize_ratio`, centre crop."""
    image, method = to_rgb(image), INTERPOLATIONS[interpolation]
    if resize_ratio != 1.0:
        image = _resize_and_crop(image, int(size * resize_ratio), size, method)
    elif image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method)
    values = torch.from_numpy(np.array(image))
    return values.permute(2, 0, 1).float().div(127.5).sub(1.0)


def _resize_and_crop(image: Image.Image, short: int, size: int, method: Image.Resampling) -> Image.Image:
    """torchvision's Resize and CenterCrop, to the pixel: `ImageOps.fit` would centre to fractions of one."""
    side = min(image.size)
    # The whole of a strip of 2 x 30,000,000 pixels, resized, would not fit into memory.
    image = _centre_crop(image, min(image.width, LONGEST_STRIP * side), min(image.height, LONGEST_STRIP * side))
    image = image.resize((int(short * image.width / side), int(short * image.height / side)), method)
    return _centre_crop(image, size, size)


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The whole image in the middle of a square, RGB."""
    image = to_rgb(image)
    image.thumbnail((LARGEST_SQUARE, LARGEST_SQUARE))
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def to_images(pixels_N3HW: torch.Tensor) -> list[Image.Image]:
    """pixels in [-1, 1] (clamped) -> PIL images."""
    values = pixels_N3HW.detach().float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
    return [Image.fromarray(v) for v in values.permute(0, 2, 3, 1).cpu().numpy()]


def in_grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Images of one size as one, row by row; a single image as it is."""
    if len(images) == 1:
        return images[0]
    (width, height), columns = images[0].size, min(columns, len(images))
    grid = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for place, image in enumerate(images):
        grid.paste(image, (place % columns * width, place // columns * height))
    return grid
