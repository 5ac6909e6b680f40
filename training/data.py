"""Scenes as training sequences. Every sample is a function of (seed, index) alone, so a run resumes by counting.

Shapes: N images, L positions, K sub-codebooks.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data_recipes.scenes import Question, Scene, World, layout, layout_questions, questions, some_caption
from mllm.decode.rerank import ASKED_FOR_PROMPT
from mllm.processor import MllmProcessor
from mllm.templates import Sample, join
from tokenizer import ImageTokenizer
from tokenizer.transform import to_pixels
from tokenizer.weights import codes_hash

from .config import MixConfig, ScenesConfig

CHUNK = 2048  # scenes in one file of codes
ENCODED_TOGETHER = 32
LABELLED_BACKGROUND = 0.3
RENDERED = 1_000_000  # scenes in an epoch without codes


def scene_seed(split: str, index: int) -> int:
    """Seed of scene `index` of a split; the splits share no seeds."""
    return 2 * index + (split != "train")


def extract_codes(
    image_tokenizer: ImageTokenizer, config: ScenesConfig, folder: Path, chunks: Iterable[int], chunk: int = CHUNK
) -> Iterator[int]:
    """Render and encode scenes, `chunk` to a file that says whose codes they are; files that exist are kept. Yields the
    number of scenes done. Raises ValueError for files of another image tokenizer, or of other scenes."""
    codes_of = {"image_tokenizer": codes_hash(image_tokenizer), "template": "mllm"}
    about = {**codes_of, "artwork": config.artwork, "split": config.split}
    folder.mkdir(parents=True, exist_ok=True)
    world = World(config.artwork)
    dtype = torch.int16 if image_tokenizer.config.codebook_size <= 2**15 else torch.int32
    for number in chunks:
        path = folder / f"codes_{number:05d}.safetensors"
        if path.exists():
            made_by = _read(path)[1]
            if any(made_by.get(key) != value for key, value in codes_of.items()):
                raise ValueError(f"{path} holds codes of another image tokenizer: take another folder")
            _check_scenes(path, made_by, config)
            yield chunk
            continue
        parts = []
        for first in range(number * chunk, (number + 1) * chunk, ENCODED_TOGETHER):
            seeds = [scene_seed(config.split, index) for index in range(first, first + ENCODED_TOGETHER)]
            images = [world.render(world.scene(seed, config.split)) for seed in seeds]
            parts.append(image_tokenizer.encode(images).to(dtype))
            yield len(images)
        temporary = path.with_suffix(".writing")
        save_file({"codes_NLK": torch.cat(parts)}, temporary, metadata=about)
        temporary.rename(path)


class CodedScenes:
    """Extracted codes with the scenes they belong to; `codes_of` says what made them, as in shards."""

    def __init__(self, config: ScenesConfig, folder: str | Path):
        files = sorted(Path(folder).glob("codes_*.safetensors"))
        if not files:
            raise ValueError(f"no codes in {folder}: make them with scripts.extract_codes")
        for number, file in enumerate(files):  # a scene's number is its place in all files together
            if file.name != f"codes_{number:05d}.safetensors":
                raise ValueError(f"{folder} lacks codes_{number:05d}.safetensors: run scripts.extract_codes again")
        self.config, self.world = config, World(config.artwork)
        parts, made_by = zip(*map(_read, files), strict=True)
        if any(other != made_by[0] for other in made_by):
            raise ValueError(f"{folder} holds codes of several image tokenizers: extract them again")
        for file, codes_NLK in zip(files, parts, strict=True):
            if len(codes_NLK) != len(parts[0]):
                others = f"{files[0].name} holds {len(parts[0])}"
                raise ValueError(f"{file} holds {len(codes_NLK)} scenes, {others}: extract them again")
        _check_scenes(folder, made_by[0], config)
        self.codes_NLK, self.codes_of = torch.cat(parts), made_by[0]

    def __len__(self) -> int:
        return len(self.codes_NLK)

    def __getitem__(self, index: int) -> tuple[Scene, torch.Tensor]:
        scene = self.world.scene(scene_seed(self.config.split, index), self.config.split)
        return scene, self.codes_NLK[index]


class RenderedScenes:
    """As many scenes with their images as pixels, rendered when asked for: slower, and no codes are needed."""

    def __init__(self, config: ScenesConfig, image_tokenizer: ImageTokenizer):
        self.config, self.world, self.sizes = config, World(config.artwork), image_tokenizer.config

    def __len__(self) -> int:
        return RENDERED

    def __getitem__(self, index: int) -> tuple[Scene, torch.Tensor]:
        scene = self.world.scene(scene_seed(self.config.split, index), self.config.split)
        sizes = self.sizes
        image = self.world.render(scene)
        return scene, to_pixels(image, sizes.image_size, sizes.resize_ratio, sizes.interpolation)


def _read(path: Path) -> tuple[torch.Tensor, dict[str, str]]:
    """Codes, and what made them: nothing, for a file that does not say. Raises ValueError for a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("codes_NLK"), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"cannot read {path} as codes: {error}") from error


def _check_scenes(path: str | Path, made_by: Mapping[str, str], config: ScenesConfig) -> None:
    """Files of earlier versions do not say which scenes they are of."""
    for key, ours in (("artwork", config.artwork), ("split", config.split)):
        if made_by.get(key, ours) != ours:
            raise ValueError(f"{path} holds codes of scenes with {key} {made_by[key]}, not {ours}")


def drawing_sample(
    processor: MllmProcessor, scene: Scene, image: torch.Tensor, config: MixConfig, rng: random.Random
) -> Sample:
    """Caption -> image, codes_LK or pixels."""
    caption = some_caption(scene, rng)
    if rng.random() < config.caption_dropout:
        return processor.encode_drawing(None, image)
    return processor.encode_drawing(caption, image, plan=layout(scene) if config.layouts else None)


def answering_sample(
    processor: MllmProcessor, scene: Scene, image: torch.Tensor, config: MixConfig, rng: random.Random
) -> Sample:
    """Image (codes_LK or pixels), then questions with answers: each on its own, or some as the turns of one chat."""
    asked = questions(scene, rng)
    rng.shuffle(asked)
    part = {"type": "image", "image": image}
    if rng.random() < config.chats:
        return processor.encode(_chat(part, asked[: config.questions_per_image]), open_answer=False)
    if config.layouts:
        asked += layout_questions(scene, rng)
    asked.append(Question("prompt", ASKED_FOR_PROMPT, some_caption(scene, rng)))
    return join([processor.encode(_chat(part, [one]), open_answer=False) for one in asked])


def words_sample(
    processor: MllmProcessor, scene: Scene, image: torch.Tensor, config: MixConfig, rng: random.Random
) -> Sample:
    """Image (codes_LK or pixels), each position of which is labelled with a token of what is at its middle: of the
    thing's name or colour. Of the background, most of what there is, only a share has a label."""
    sample = processor.encode_image(image)
    side = math.isqrt(processor.num_positions)
    for place in range(processor.num_positions):
        y, x = ((number + 0.5) * scene.size / side for number in divmod(place, side))
        thing = next((t for t in scene.things if t.box[0] <= x < t.box[2] and t.box[1] <= y < t.box[3]), None)
        if thing is None and rng.random() > LABELLED_BACKGROUND:
            continue
        word = rng.choice([thing.name, thing.color or thing.name]) if thing else "background"
        sample.labels[1 + place] = rng.choice(processor.word_ids(word))
    return sample


def _chat(part: dict, asked: Sequence[Question]) -> list[dict]:
    messages = []
    for turn, question in enumerate(asked):
        text = {"type": "text", "text": question.text}
        messages.append({"role": "user", "content": [part, text] if turn == 0 else [text]})
        messages.append({"role": "assistant", "content": question.answer})
    return messages
