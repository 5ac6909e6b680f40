"""Captioned images as training samples of the image tokenizer.

Sample i is a function of (seed, i) alone, so a run resumes by counting, with any number of ranks and workers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from transformers import AutoTokenizer

from data_recipes.images import SCENES, CaptionedImage, Mixed, open_images
from mllm.text.ids import contrastive_ids
from tokenizer import ImageTokenizerConfig
from tokenizer.transform import to_pixels, to_rgb

from ..run.metrics import ignore_stop_signals
from ..run.recipe import TokenizerTrainConfig

RATIOS = (3 / 4, 4 / 3)  # of the sides of a random crop, as in UniTok's training


class ImageBatch(NamedTuple):
    """`problems` name the images that could not be used; if `complete`, the next ones in the order took their place."""

    pixels_N3HW: torch.Tensor
    ids_NT: torch.Tensor
    problems: list[str]
    complete: bool


class TrainingImages(Dataset):
    """Position in an endless run -> pixels [3, H, W] and ids [T] (None where too many in a row are bad), and problems
    met on the way."""

    def __init__(self, config: TokenizerTrainConfig, model: ImageTokenizerConfig):
        self.config, self.model = config, model
        self.text_tokenizer = AutoTokenizer.from_pretrained(config.text_tokenizer)
        data = config.data
        self.images = open_images(data.images, data.artwork, data.split, data.crop)
        self.photos = 0 if data.images == SCENES else len(self.images)  # indices of what is cropped at random
        if data.mixed:
            second = open_images(data.mixed)
            self.images, self.photos = Mixed(self.images, second, data.share), self.photos + len(second)
        self.order = self.images.order(config.run.seed)

    def __getitem__(self, position: int) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, list[str]]:
        problems: list[str] = []
        # As many as can be bad at the end of an epoch and at the start of the next.
        for place in range(position, position + 2 * self.config.data.max_bad + 1):
            try:
                index = self.order[place]
                sample = self.images[index]
                return (self._pixels(sample.image, position, index < self.photos), self._ids(sample)), problems
            except ValueError as error:
                problems.append(str(error))
        return None, problems

    def _pixels(self, image: Image.Image, position: int, is_photo: bool) -> torch.Tensor:
        data, model = self.config.data, self.model
        size = data.crop or model.image_size
        if data.scale < 1 and is_photo:
            crop = RandomResizedCrop(size, (data.scale, 1.0), RATIOS, InterpolationMode.BICUBIC)
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(self.config.run.seed * 1_000_000_007 + position)
                image = crop(to_rgb(image))
        return to_pixels(image, size, interpolation=model.interpolation)

    def _ids(self, sample: CaptionedImage) -> torch.Tensor:
        if not sample.caption and self.config.losses.contrastive:
            raise ValueError(f"{sample.name}: no caption, which the contrastive loss needs")
        ids_NT = contrastive_ids(
            self.text_tokenizer, [sample.caption], self.model.text_context, self.model.text_vocab_size
        )
        return ids_NT[0]


class RankPositions(Sequence):
    """The positions, after `first`, of one rank's batches among `batches` of all ranks together, by counting: a run may
    have hundreds of millions."""

    def __init__(self, rank: int, world: int, first: int, batches: int, batch_size: int):
        self.rank, self.world, self.first, self.batch_size = rank, world, first, batch_size
        self.batches = len(range(rank, batches, world))

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < len(self):
            raise IndexError(f"position {place} of {len(self)}")
        batch, inside = divmod(place, self.batch_size)
        return self.first + (batch * self.world + self.rank) * self.batch_size + inside


def image_loader(data: TrainingImages, rank: int, world: int, seen: int, steps: int) -> DataLoader:
    """This rank's batches of the next `steps` updates, after the `seen` images of the run so far."""
    run = data.config.run
    return DataLoader(
        Subset(data, RankPositions(rank, world, seen, steps * run.accumulate * world, run.batch_size)),
        batch_size=run.batch_size,
        num_workers=run.workers,
        collate_fn=_stack,
        worker_init_fn=ignore_stop_signals,
        pin_memory=torch.cuda.is_available(),  # see mllm.device.send
    )


def _stack(samples: list[tuple[tuple[torch.Tensor, torch.Tensor] | None, list[str]]]) -> ImageBatch:
    good = [sample for sample, _ in samples if sample is not None]
    pixels, ids = zip(*good, strict=True) if good else ([torch.empty(0)], [torch.empty(0)])
    problems = [line for _, lines in samples for line in lines]
    return ImageBatch(torch.stack(list(pixels)), torch.stack(list(ids)), problems, len(good) == len(samples))
