"""Shards with images -> shards with codes, encoded as one model prepares and encodes them.

Shapes: L positions an image, K sub-codebooks.
"""

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from data_recipes.messages import CODES, Messages, from_files, images_of, to_files
from data_recipes.shards import Shards, index_shard
from mllm import Processor
from tokenizer import ImageTokenizer

from .mixture import ImageForm, to_sample

TOGETHER = 32  # images that are encoded at once


class Waiting(NamedTuple):
    """A sample whose images are not encoded yet."""

    key: str
    messages: Messages
    pixels: list[torch.Tensor]


class ShardEncoder:
    """Without a processor, images are only resized, as our own template has it."""

    def __init__(self, image_tokenizer: ImageTokenizer, processor: Processor | None = None):
        if image_tokenizer.config.codebook_size > 2**16:
            raise ValueError(f"{image_tokenizer.config.codebook_size} codebook entries; codes are stored in 16 bits")
        self.image_tokenizer, self.processor = image_tokenizer, processor
        self.form = ImageForm(image_tokenizer, processor.preparation if processor else "mllm")

    def samples(self, shards: Shards, place: int) -> Iterator[tuple[str, dict[str, bytes]] | str]:
        """Of the shard at this place: (key, files), or what is wrong with a sample or the shard."""
        url = shards.urls[place]
        yield from [damage for damage in shards.damages if damage.startswith(f"{url}:")]
        waiting: list[Waiting] = []
        for index, (key, _) in enumerate(index_shard(url)[0], start=shards.starts[place]):
            try:
                waiting.append(self._read(shards, index, key))
            except ValueError as error:
                yield str(error)
            if sum(len(sample.pixels) for sample in waiting) >= TOGETHER:
                yield from self._encode(waiting)
                waiting = []
        yield from self._encode(waiting)

    def _read(self, shards: Shards, index: int, key: str) -> Waiting:
        files = shards[index]
        try:
            conversation = from_files(files)
            if conversation.codes_of:
                raise ValueError("it holds codes already")
            messages = self.form.load(conversation)
            images = to_sample(self.processor, messages).images if self.processor else images_of(messages)
        except ValueError as error:
            raise ValueError(f"{shards.name(index)}: {error}") from error
        return Waiting(key, messages, [self.form.pixels(image) for image in images])

    def _encode(self, waiting: list[Waiting]) -> Iterator[tuple[str, dict[str, bytes]]]:
        pixels = [pixels for sample in waiting for pixels in sample.pixels]
        left = iter(self.image_tokenizer.encode(torch.stack(pixels)).cpu() if pixels else [])
        for key, messages, images in waiting:
            codes = [(CODES, _file(next(left))) for _ in images]
            yield key, to_files(messages, codes, self.form.codes_of)


def _file(codes_LK: torch.Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, codes_LK.numpy().astype(np.uint16))
    return file.getvalue()
