"""Several sources of training sequences, mixed by weight.

The sample at a position of the run depends on the seed and the position alone, and positions count over all ranks. So
a run resumes by counting, with any number of workers, and with another number of ranks.
"""

import io
import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from data_recipes.messages import CODES, Conversation, Messages, from_files, images_of, with_images
from data_recipes.shards import Shards, Shuffled
from mllm.text.processor import MllmProcessor, Sample
from tokenizer import ImageTokenizer
from tokenizer.transform import read_image, to_pixels
from tokenizer.weights import codes_hash

from ..run.recipe import MixConfig, MixtureConfig
from .scene_samples import (
    CodedScenes,
    CodedStories,
    RenderedScenes,
    RenderedStories,
    answering_sample,
    conversation_messages,
    drawing_sample,
    words_sample,
)

LONGEST_CYCLE = 1_000_000
NO_FEATURES = "which have no features for model.image_input: give the images"


class Cycle:
    """Position in an endless run -> (name, how many of that name came before). Each cycle has the exact shares of all
    names, in an order that `seed` draws once."""

    def __init__(self, weights: Mapping[str, float], seed: int):
        wrong = [f"{name}: {weight}" for name, weight in weights.items() if not 0 <= weight < math.inf]
        if wrong or not any(weights.values()):
            raise ValueError(f"weights are numbers from 0 that are not all 0; not {'; '.join(wrong) or dict(weights)}")
        shares = {name: Fraction(str(weight)) for name, weight in weights.items() if weight}
        unit = math.lcm(*(share.denominator for share in shares.values()))
        counts = {name: int(share * unit) for name, share in shares.items()}
        common = math.gcd(*counts.values())
        self.counts = {name: count // common for name, count in counts.items()}
        if sum(self.counts.values()) > LONGEST_CYCLE:
            raise ValueError(f"weights {dict(weights)} have exact shares in no short cycle: round them")
        names = [name for name, count in self.counts.items() for _ in range(count)]
        random.Random(seed).shuffle(names)
        before = {name: itertools.count() for name in self.counts}
        self.order = [(name, next(before[name])) for name in names]

    def __getitem__(self, position: int) -> tuple[str, int]:
        cycle, place = divmod(position, len(self.order))
        name, before = self.order[place]
        return name, cycle * self.counts[name] + before


# ---- sources


class Source(ABC):
    """An endless order of samples."""

    damages: Sequence[str] = ()
    """What is wrong with whole shards."""
    notes: Sequence[str] = ()
    """How much there is."""

    @abstractmethod
    def sample(self, number: int) -> Sample:
        """The sample at an index. Raises ValueError, naming it, for a bad one."""


class ImageForm:
    """How the images of a conversation enter a Sample of one model: extracted codes as they are, files as PIL images,
    which the template may prepare, and then as pixels. While the image tokenizer is `tuned`, there are no codes; where
    the model reads `features`, images to read are no codes."""

    def __init__(self, image_tokenizer: ImageTokenizer, preparation: str, tuned: bool = False, features: bool = False):
        self.sizes, self.tuned, self.features = image_tokenizer.config, tuned, features
        self.codes_of = {"image_tokenizer": codes_hash(image_tokenizer), "template": preparation}

    def mismatch(self, codes_of: Mapping[str, str]) -> str:
        """What is wrong with codes: of another image tokenizer, or prepared for another template; "" if nothing."""
        if self.tuned:
            return "extracted codes, which go stale while model.tune trains the image tokenizer: give the images"
        for what, ours in self.codes_of.items():
            if codes_of.get(what) != ours:
                return f"codes of {what} {codes_of.get(what)}, the model's is {ours}: extract them again"
        return ""

    def load(self, conversation: Conversation) -> Messages:
        """Messages with images and codes_LK in place of names. Raises ValueError for damaged ones, and a mismatch."""
        loaded = []
        for content, name in zip(conversation.images, images_of(conversation.messages), strict=True):
            if name.endswith(CODES):
                loaded.append(self._codes(content, name, self.mismatch(conversation.codes_of)))
            else:
                loaded.append(read_image(io.BytesIO(content), name))
        return with_images(conversation.messages, loaded)

    def _codes(self, content: bytes, name: str, mismatch: str) -> torch.Tensor:
        if mismatch:
            raise ValueError(mismatch)
        try:
            codes_LK = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"cannot read {name} as codes: {error}") from error
        shape = (self.sizes.num_positions, self.sizes.num_codebooks)
        if codes_LK.dtype != np.uint16 or codes_LK.shape != shape or codes_LK.max() >= self.sizes.codebook_size:
            raise ValueError(f"{name} holds no codes of {shape[0]} x {shape[1]} below {self.sizes.codebook_size}")
        return torch.from_numpy(codes_LK.astype(np.int64))

    def pixels(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        """Prepare a PIL image as the image tokenizer's `encode` would; return codes and pixels unchanged."""
        if torch.is_tensor(image):
            return image
        return to_pixels(image, self.sizes.image_size, self.sizes.resize_ratio, self.sizes.interpolation)


def to_sample(
    processor: MllmProcessor, messages: Messages, drop_prompt: bool = False, drop_sources: bool = False
) -> Sample:
    """Messages -> Sample. A text answered by one image alone is a request to draw, whose prompt may be dropped for
    guidance; after images, it is a request to edit these, which then may be dropped, too (arXiv 2211.09800, section
    3.2.1). Everything else is a chat."""
    kinds = [[part["type"] for part in message["content"]] for message in messages]
    draws = len(messages) == 2 and kinds[1] in (["image"], ["plan", "image"])
    draws = draws and kinds[0] == sorted(kinds[0]) and "text" in kinds[0]
    if draws and (drop_prompt or "image" not in kinds[0]):
        sources = [part["image"] for part in messages[0]["content"] if part["type"] == "image" and not drop_sources]
        prompt = "".join(part["text"] for part in messages[0]["content"] if part["type"] == "text")
        *plans, image = messages[1]["content"]
        if drop_prompt:
            return processor.encode_drawing(None, image["image"], sources=sources)
        return processor.encode_drawing(prompt, image["image"], plans[0]["plan"] if plans else ())
    return processor.encode(messages, open_answer=False)


def dropped(seed: int, number: int, share: float) -> tuple[bool, bool]:
    """Whether sample `number` loses its prompt, which a share of the samples does, and half of these their sources."""
    rng = random.Random(f"{seed} {number}")
    return rng.random() < share, rng.random() < 0.5


class MessageShards(Source):
    """Shards of messages, with images or with codes of this model."""

    def __init__(
        self,
        patterns: Sequence[str],
        processor: MllmProcessor,
        form: ImageForm,
        max_length: int,
        seed: int = 0,
        caption_dropout: float = 0.0,
    ):
        self.shards, self.processor, self.form = Shards(patterns), processor, form
        self.max_length, self.seed, self.caption_dropout = max_length, seed, caption_dropout
        self.damages, self.notes = self.shards.damages, [self.shards.taken()]
        self.order = Shuffled(self.shards.counts, seed)

    def sample(self, number: int) -> Sample:
        return self.read(self.order[number], *dropped(self.seed, number, self.caption_dropout))

    def read(self, index: int, *drop: bool) -> Sample:
        """By place in the shards; `drop` as in `to_sample`. Raises ValueError naming shard and key."""
        files = self.shards[index]
        try:
            sample = to_sample(self.processor, self.form.load(from_files(files)), *drop)
            read = [image for image, drawn in zip(sample.images, sample.is_target, strict=True) if not drawn]
            if self.form.features and any(torch.is_tensor(x) and not x.is_floating_point() for x in read):
                raise ValueError(f"extracted codes of an image to read, {NO_FEATURES}")
            if len(sample.ids) > self.max_length:
                raise ValueError(f"{len(sample.ids)} tokens, more than max_length {self.max_length}")
        except ValueError as error:
            raise ValueError(f"{self.shards.name(index)}: {error}") from error
        sample.images = [self.form.pixels(image) for image in sample.images]
        return sample

    def check_codes(self) -> None:
        """Look into the first sample of every shard. Raises ValueError for codes that are not this model's."""
        for first, count in zip(self.shards.starts, self.shards.counts, strict=False):
            try:
                codes_of = from_files(self.shards[first]).codes_of if count else {}
            except ValueError:
                continue  # a bad sample is told where it is met
            mismatch = self.form.mismatch(codes_of) if codes_of else ""
            if mismatch:
                raise ValueError(f"{self.shards.name(first)}: {mismatch}")


class ConversationsSource(Source):
    """Conversations about scenes, by codes of their pictures or by pixels; each epoch in other words."""

    def __init__(self, config: MixConfig, processor: MllmProcessor, image_tokenizer: ImageTokenizer, seed: int):
        self.config, self.processor, self.seed = config, processor, seed
        if config.codes:
            self.scenes = CodedStories(config.scenes, config.codes)
        else:
            self.scenes = RenderedStories(config.scenes, image_tokenizer)
        self.order = Shuffled([len(self.scenes)], seed)

    def sample(self, number: int) -> Sample:
        index, wording = self.order[number], number // len(self.scenes)
        images = self.scenes[index]
        messages = conversation_messages(self.scenes.world, self.config, index, wording, images)
        return to_sample(self.processor, messages, *dropped(self.seed, number, self.config.caption_dropout))


class ScenesSource(Source):
    """Scenes to draw and to answer about, or to name position by position (`words`): by their codes, or without any, by
    their pixels."""

    def __init__(
        self,
        config: MixConfig,
        processor: MllmProcessor,
        image_tokenizer: ImageTokenizer,
        seed: int,
        words: bool = False,
    ):
        self.config, self.processor, self.seed = config, processor, seed
        if config.codes:
            self.scenes = CodedScenes(config.scenes, config.codes)
        else:
            self.scenes = RenderedScenes(config.scenes, image_tokenizer)
        self.tasks = Cycle({"words": 1} if words else {"draw": config.draw, "answer": config.answer}, seed)
        self.order = Shuffled([len(self.scenes)], seed)

    def sample(self, number: int) -> Sample:
        make = {"draw": drawing_sample, "answer": answering_sample, "words": words_sample}[self.tasks[number][0]]
        scene, image = self.scenes[self.order[number]]
        return make(self.processor, scene, image, self.config, random.Random(f"{self.seed} {number}"))


# ---- the mixture


class Mixture:
    """Position in the run -> a sample of one of the sources."""

    def __init__(
        self,
        config: MixtureConfig,
        processor: MllmProcessor,
        image_tokenizer: ImageTokenizer,
        seed: int,
        tuned: bool = False,
        words: bool = False,
        features: bool = False,
        image_lengths: Sequence[int] = (),
    ):
        """Each sample reads its images at one of the `image_lengths`, if there are any. Raises ValueError for sources
        that are not there, and for codes that are not this image tokenizer's; for any codes, if it is `tuned`; for
        codes of scenes to answer about, if their `features` are read; for shards, if positions are to be given
        `words`."""
        if not config.sources:
            raise ValueError("data.sources is empty: give each source a name, and shards or scenes")
        if config.pack and config.pack < config.max_length:
            raise ValueError(f"data.pack {config.pack} is below data.max_length {config.max_length}")
        self.config, self.image_tokenizer, self.seed = config, image_tokenizer, seed
        self.processor = deepcopy(processor) if image_lengths else processor  # its `image_length` changes
        self.form, self.words = ImageForm(image_tokenizer, processor.preparation, tuned, features), words
        self.image_lengths = image_lengths
        self.cycle = Cycle({name: source.weight for name, source in config.sources.items()}, seed)
        self.sources = {name: self._open(name, seed + place) for place, name in enumerate(config.sources)}

    def _open(self, name: str, seed: int) -> Source:
        source, length = self.config.sources[name], self.config.max_length
        if bool(source.shards) == bool(source.scenes):
            raise ValueError(f"data.sources.{name}: give shards or scenes, and not both")
        if source.scenes:
            if source.scenes.layouts and not self.processor.plan_ids:
                raise ValueError(
                    f"data.sources.{name}: layouts need a text tokenizer with their words, which a recipe without "
                    "init_from adds for model.plan_length"
                )
            if source.scenes.language and self.words:
                raise ValueError(f"data.sources.{name}: model.words needs scenes without language")
            if source.scenes.language:
                scenes = ConversationsSource(source.scenes, self.processor, self.image_tokenizer, seed)
            else:
                scenes = ScenesSource(source.scenes, self.processor, self.image_tokenizer, seed, self.words)
            mismatch = self.form.mismatch(scenes.scenes.codes_of) if source.scenes.codes else ""
            if mismatch:
                raise ValueError(f"{source.scenes.codes}: {mismatch}")
            if source.scenes.codes and self.form.features and (source.scenes.answer or source.scenes.language):
                raise ValueError(f"data.sources.{name}: extracted codes of scenes to read, {NO_FEATURES} (codes: null)")
            return scenes
        if self.words:
            raise ValueError(f"data.sources.{name}: model.words needs scenes; shards do not say what stands where")
        shards = MessageShards(source.shards, self.processor, self.form, length, seed, source.caption_dropout)
        shards.check_codes()
        return shards

    @property
    def damages(self) -> list[str]:
        """Problems of whole shards."""
        return [damage for source in self.sources.values() for damage in source.damages]

    @property
    def notes(self) -> list[str]:
        """A line on the size of each source."""
        return [f"source {name}: {note}" for name, source in self.sources.items() for note in source.notes]

    def sample(self, position: int) -> tuple[Sample | None, list[str]]:
        """The sample at a position, and the problems of bad samples before it: the next sample of the source replaces a
        bad one. The sample is None when more are bad than allowed."""
        name, number = self.cycle[position]
        problems = []
        if self.image_lengths:
            self.processor.image_length = random.Random(f"{self.seed} {position}").choice(self.image_lengths)
        # As many as can be bad at the end of an epoch and at the start of the next.
        for later in range(2 * self.config.max_bad + 1):
            try:
                return self.sources[name].sample(number + later), problems
            except ValueError as error:
                problems.append(str(error))
        return None, problems


class Update(NamedTuple):
    """One update's samples on this rank, a list for each micro-batch, and the problems that workers met, which the run
    counts."""

    micro_batches: list[list[Sample]]
    problems: list[str]
    complete: bool


@dataclass
class MixtureUpdates(Dataset):
    """Item `n` is the n-th update from here on: `accumulate` micro-batches of `batch_size` samples on each rank, packed
    or not. `seen` is the number of samples of all ranks before, as in a checkpoint."""

    mixture: Mixture
    batch_size: int
    accumulate: int
    rank: int
    world_size: int
    updates: int
    seen: int = 0

    def __len__(self) -> int:
        return self.updates

    @property
    def samples(self) -> int:
        """Samples of an update, on all ranks."""
        return self.world_size * self.accumulate * self.batch_size

    def __getitem__(self, update: int) -> Update:
        size = self.accumulate * self.batch_size
        first = self.seen + update * self.samples + self.rank * size
        found = [self.mixture.sample(position) for position in range(first, first + size)]
        problems = [problem for _, problems in found for problem in problems]
        samples = [sample for sample, _ in found if sample is not None]
        parts = divide(samples, self.batch_size, self.accumulate, self.mixture.config.pack)
        return Update(parts, problems, complete=len(samples) == size)


def divide(samples: Sequence[Sample], batch_size: int, accumulate: int, pack: int) -> list[list[Sample]]:
    """A rank's samples of an update as `accumulate` micro-batches, such that each needs little padding."""
    ordered = sorted(samples, key=lambda sample: len(sample.ids))
    if pack:  # all lengths in each, so that rows become full and micro-batches equally long
        return [ordered[part::accumulate] for part in range(accumulate)]
    return [ordered[first : first + batch_size] for first in range(0, accumulate * batch_size, batch_size)]
