"""Images on the wire: data URIs, base64 and bytes, in memory only."""

import base64
import binascii
import re
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from tokenizer.transform import read_image

from .errors import Refusal
from .schema import FORMATS


def uri_bytes(uri: str, name: str) -> bytes:
    """The bytes of a data URI. Raises Refusal (422), which calls it `name`, for anything else. Paths are never read;
    http(s) addresses were fetched before."""
    head, _, data = uri.partition(",")
    if not head.lower().startswith("data:"):
        told = "send a data URI (data:image/png;base64,...); paths are never read, and addresses"
        told = f"{name}: {told} (http, https) only by servers that are started with --remote-images"
        raise Refusal(422, told, name)
    if not re.fullmatch(r"data:image/[^,]*;base64", head, re.IGNORECASE):
        raise Refusal(422, f"{name}: a data URI of an image begins with data:image/png;base64, or so", name)
    try:
        raw = base64.b64decode("".join(data.split()), validate=True)  # encoders break lines
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, f"{name} is not base64: {error}", name) from error
    if not raw:
        raise Refusal(422, f"{name}: nothing follows {head}, in the data URI", name)
    return raw


def read_bytes(raw: bytes, name: str, max_pixels: int, **options: bool) -> Image.Image:
    """A file's bytes as an upright RGB image; `options` are `still` and `alpha` of `read_image`. Raises Refusal (422),
    which calls it `name`."""
    try:
        return read_image(BytesIO(raw), name, FORMATS, max_pixels, **options)
    except ValueError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise Refusal(422, f"{name} is none of {', '.join(FORMATS)}, or damaged", name) from error
        raise Refusal(422, str(error), name) from error


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def png_base64(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()
