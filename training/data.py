"""Scenes as training sequences. Every sample is a function of (seed, index) alone, so a run resumes by counting.

Shapes: N images, L positions, K sub-codebooks.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset

from data_recipes.scenes import Scene, World, captions, questions
from mllm.processor import Batch, MllmProcessor, Sample
from tokenizer import ImageTokenizer

from .config import MixConfig, ScenesConfig

CHUNK = 2048  # scenes in one file of codes
ENCODED_TOGETHER = 32


def scene_seed(split: str, index: int) -> int:
    """Seed of scene `index` of a split; the splits share no seeds."""
    return 2 * index + (split != "train")


def extract_codes(
    image_tokenizer: ImageTokenizer, config: ScenesConfig, folder: Path, chunks: Iterable[int], chunk: int = CHUNK
) -> Iterator[int]:
    """Render and encode scenes, `chunk` to a file; files that exist are kept. Yields the number of scenes done."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(config.artwork)
    for number in chunks:
        path = folder / f"codes_{number:05d}.safetensors"
        if path.exists():
            yield chunk
            continue
        parts = []
        for first in range(number * chunk, (number + 1) * chunk, ENCODED_TOGETHER):
            seeds = [scene_seed(config.split, index) for index in range(first, first + ENCODED_TOGETHER)]
            images = [world.render(world.scene(seed, config.split)) for seed in seeds]
            parts.append(image_tokenizer.encode(images).to(torch.int16))
            yield len(images)
        temporary = path.with_suffix(".writing")
        save_file({"codes_NLK": torch.cat(parts)}, temporary)
        temporary.rename(path)


class CodedScenes:
    """Extracted codes with the scenes they belong to."""

    def __init__(self, config: ScenesConfig, folder: str | Path):
        files = sorted(Path(folder).glob("codes_*.safetensors"))
        if not files:
            raise ValueError(f"no codes in {folder}: make them with scripts.extract_codes")
        self.config, self.world = config, World(config.artwork)
        self.codes_NLK = torch.cat([_read(path) for path in files])

    def __len__(self) -> int:
        return len(self.codes_NLK)

    def __getitem__(self, index: int) -> tuple[Scene, torch.Tensor]:
        scene = self.world.scene(scene_seed(self.config.split, index), self.config.split)
        return scene, self.codes_NLK[index]


def _read(path: Path) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor("codes_NLK")


@dataclass
class MixedBatches(Dataset):
    """Item `step` is one update's micro-batches on this rank: images to draw, then images to answer about.

    The two kinds differ in length, so each is padded on its own; their losses meet in `train_step`.
    """

    config: MixConfig
    processor: MllmProcessor
    seed: int
    batch_size: int
    rank: int
    world_size: int
    steps: int

    def __post_init__(self):
        self.scenes = CodedScenes(self.config.scenes, self.config.codes)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[Batch]:
        draws = round(self.batch_size * self.config.draw / (self.config.draw + self.config.answer))
        first = (step * self.world_size + self.rank) * self.batch_size
        samples = [self._sample(first + place, draw=place < draws) for place in range(self.batch_size)]
        groups = [group for group in (samples[:draws], samples[draws:]) if group]
        return [self.processor.collate(group) for group in groups]

    def _sample(self, index: int, draw: bool) -> Sample:
        rng = random.Random(f"{self.seed} {index}")
        scene, codes_LK = self.scenes[self._scene_index(index)]
        if draw:
            return drawing_sample(self.processor, scene, codes_LK, self.config, rng)
        return answering_sample(self.processor, scene, codes_LK, self.config, rng)

    def _scene_index(self, index: int) -> int:
        # A fixed multiplier coprime to the count walks through all scenes once an epoch, in another order each time.
        epoch, place = divmod(index, len(self.scenes))
        return (place * 7919 + epoch * 104729) % len(self.scenes)


def drawing_sample(
    processor: MllmProcessor, scene: Scene, codes_LK: torch.Tensor, config: MixConfig, rng: random.Random
) -> Sample:
    """Caption -> image. The first caption has GenEval's wording and is drawn half of the time."""
    options = captions(scene)
    caption = options[0] if rng.random() < 0.5 else rng.choice(options)
    unconditional = rng.random() < config.caption_dropout
    return processor.encode_drawing(None if unconditional else caption, codes_LK)


def answering_sample(
    processor: MllmProcessor, scene: Scene, codes_LK: torch.Tensor, config: MixConfig, rng: random.Random
) -> Sample:
    """Image, then a few questions with answers as turns of one chat."""
    asked = questions(scene, rng)
    chosen = rng.sample(asked, min(len(asked), config.questions_per_image))
    messages = []
    for turn, question in enumerate(chosen):
        text = {"type": "text", "text": question.text}
        image = [{"type": "image", "image": codes_LK}] if turn == 0 else []
        messages.append({"role": "user", "content": [*image, text]})
        messages.append({"role": "assistant", "content": question.answer})
    return processor.encode(messages, open_answer=False)
