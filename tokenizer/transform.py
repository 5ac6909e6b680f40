"""Image files and PIL images -> pixels in [-1, 1], and back."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps

MAX_PIXELS = 64_000_000  # refused above; a 20,000 x 20,000 bomb would take 1.2 GB
MIN_SIDE = 2
LONGEST_STRIP = 16  # long side by short side; of longer ones only the middle is resized
LARGEST_SQUARE = 8192  # pixels of a side; what is larger is shrunk before it is padded
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def load_image(path: str | Path) -> Image.Image:
    """A file as an upright RGB image: EXIF rotation applied, transparency on white, first frame, 16 bit scaled to 8.

    Raises ValueError, in one line, for what is missing, unreadable, damaged, too big or too small.
    """
    if not Path(path).is_file():
        raise ValueError(f"no image file at {path}")
    return read_image(Path(path), path)


def read_image(
    source: Path | BinaryIO, name: object, formats: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """`load_image` of a file or stream that is there; `name` is what errors call it, `formats` are Pillow's names of
    those that are read (None: all)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on odd metadata
        try:
            file = Image.open(source, formats=formats)
        except Exception as error:
            raise _unreadable(name, error) from error
        with file:
            _check_size(name, file.size, max_pixels)
            try:
                with _whole_files():
                    file.load()
                return to_rgb(file)
            except Exception as error:  # Pillow's decoders raise whatever they meet in a damaged file
                raise _unreadable(name, error) from error


@contextmanager
def _whole_files() -> Iterator[None]:
    """Pillow refuses cut-off files, unless a library, as lmms-eval does, has told it to fill them up for everybody."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _unreadable(name: object, error: Exception) -> ValueError:
    return ValueError(f"cannot read {name} as an image: {' '.join(str(error).split()) or type(error).__name__}")


def _check_size(name: object, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise ValueError(f"{name} has {size[0]} x {size[1]} pixels; at most {max_pixels:,} are read: make it smaller")
    if min(size) < MIN_SIDE:
        raise ValueError(f"{name} has {size[0]} x {size[1]} pixels; each side needs at least {MIN_SIDE}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB, upright."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):  # convert("RGB") would clip these at 255
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if values.max() > 255 else 255
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


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
