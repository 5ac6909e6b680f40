"""Shards of any files, and of samples of messages."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from webdataset.writer import TarWriter

from data_recipes.messages import checked, to_files

IMAGE = {"type": "image", "image": "x"}


def png(image: Image.Image | str) -> tuple[str, bytes]:
    """As `to_files` takes it; a word is a colour."""
    data = io.BytesIO()
    (Image.new("RGB", (48, 40), image) if isinstance(image, str) else image).save(data, "PNG")
    return "png", data.getvalue()


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def talk(asked: str | list, answer: str | list, *images: tuple[str, bytes], **codes_of: str) -> dict[str, bytes]:
    """A question and its answer, with `IMAGE` for each of the images."""
    return to_files(
        checked([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]), images, codes_of
    )


def write_shard(file: Path, samples: Mapping[str, dict[str, bytes]]) -> str:
    """`samples` are files by key. Makes the folder."""
    file.parent.mkdir(exist_ok=True)
    with TarWriter(str(file), encoder=False) as tar:
        for key, files in samples.items():
            tar.write({"__key__": key, **files})
    return str(file)


def write_tar(file: Path, contents: Mapping[str, bytes]) -> Path:
    """Content by name, in this order, with nothing else around them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file
