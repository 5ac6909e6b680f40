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

from data_recipes.files import whole
from data_recipes.messages import Messages, images_of, with_images
from data_recipes.scenes.language import ask, conversation, story
from data_recipes.scenes.world import Question, Scene, World, layout, layout_questions, questions, some_caption
from mllm.decode.rerank import ASKED_FOR_PROMPT
from mllm.text.processor import MllmProcessor
from mllm.text.templates import Sample, join
from tokenizer import ImageTokenizer
from tokenizer.transform import to_pixels
from tokenizer.weights import codes_hash

from ..run.recipe import MixConfig, ScenesConfig

CHUNK = 2048  # scenes in one file of codes
ENCODED_TOGETHER = 32
LABELLED_BACKGROUND = 0.3
RENDERED = 1_000_000  # scenes in an epoch without codes
PROMPTED = 0.2  # of the conversations about one drawing: the share that is turned round, to ask for the prompt


def scene_seed(split: str, index: int) -> int:
    """Seed of scene `index` of a split; the splits share no seeds."""
    return 2 * index + (split != "train")


def extract_codes(
    image_tokenizer: ImageTokenizer,
    config: ScenesConfig,
    folder: Path,
    chunks: Iterable[int],
    chunk: int = CHUNK,
    language: bool = False,
) -> Iterator[int]:
    """Render and encode scenes, `chunk` to a file that says whose codes they are; files that exist are kept. Yields the
    number of scenes done. With `language` the pictures of conversations take the place of scenes: none, one
    or several each. Raises ValueError for files of another image tokenizer, or of other scenes."""
    codes_of = {"image_tokenizer": codes_hash(image_tokenizer), "template": "mllm"}
    about = {**codes_of, "artwork": config.artwork, "split": config.split, "language": str(language)}
    folder.mkdir(parents=True, exist_ok=True)
    world = World(config.artwork)
    dtype = torch.int16 if image_tokenizer.config.codebook_size <= 2**15 else torch.int32
    for number in chunks:
        path = folder / f"codes_{number:05d}.safetensors"
        if path.exists():
            made_by = _read(path)[2]
            if any(made_by.get(key) != value for key, value in codes_of.items()):
                raise ValueError(f"{path} holds codes of another image tokenizer: take another folder")
            _check_scenes(path, made_by, config, language)
            yield chunk
            continue
        parts, counts = [], []
        for first in range(number * chunk, (number + 1) * chunk, ENCODED_TOGETHER):
            seeds = [scene_seed(config.split, index) for index in range(first, first + ENCODED_TOGETHER)]
            pictures = [_pictures(world, seed, config.split, language) for seed in seeds]
            counts += map(len, pictures)
            images = [world.render(scene) for scenes in pictures for scene in scenes]
            parts.append(image_tokenizer.encode(images).to(dtype))
            yield len(seeds)
        with whole(path) as part:
            save_file({"codes_NLK": torch.cat(parts), "counts": torch.tensor(counts)}, part, metadata=about)


def _pictures(world: World, seed: int, split: str, language: bool) -> list[Scene]:
    return [step.scene for step in story(world, seed, split)] if language else [world.scene(seed, split)]


class CodedScenes:
    """Extracted codes with the scenes they belong to; `codes_of` says what made them, as in shards."""

    language = False

    def __init__(self, config: ScenesConfig, folder: str | Path):
        files = sorted(Path(folder).glob("codes_*.safetensors"))
        if not files:
            raise ValueError(f"no codes in {folder}: make them with scripts.extract_codes")
        for number, file in enumerate(files):  # a scene's number is its place in all files together
            if file.name != f"codes_{number:05d}.safetensors":
                raise ValueError(f"{folder} lacks codes_{number:05d}.safetensors: run scripts.extract_codes again")
        self.config, self.world = config, World(config.artwork)
        parts, counts, made_by = zip(*map(_read, files), strict=True)
        if any(other != made_by[0] for other in made_by):
            raise ValueError(f"{folder} holds codes of several image tokenizers: extract them again")
        for file, in_file in zip(files, counts, strict=True):
            if len(in_file) != len(counts[0]):
                others = f"{files[0].name} holds {len(counts[0])}"
                raise ValueError(f"{file} holds {len(in_file)} scenes, {others}: extract them again")
        _check_scenes(folder, made_by[0], config, self.language)
        self.codes_NLK, self.codes_of = torch.cat(parts), made_by[0]
        self.ends = torch.cat(counts).cumsum(0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> tuple[Scene, torch.Tensor]:
        scene = self.world.scene(scene_seed(self.config.split, index), self.config.split)
        return scene, self.codes_NLK[index]


class CodedStories(CodedScenes):
    """Extracted codes of the pictures of conversations."""

    language = True

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        start = int(self.ends[index - 1]) if index else 0
        return list(self.codes_NLK[start : int(self.ends[index])])


class RenderedScenes:
    """As many scenes with their images as pixels, rendered when asked for: slower, and no codes are needed."""

    def __init__(self, config: ScenesConfig, image_tokenizer: ImageTokenizer):
        self.config, self.world, self.sizes = config, World(config.artwork), image_tokenizer.config

    def __len__(self) -> int:
        return RENDERED

    def __getitem__(self, index: int) -> tuple[Scene, torch.Tensor]:
        scene = self.world.scene(scene_seed(self.config.split, index), self.config.split)
        return scene, self._pixels(scene)

    def _pixels(self, scene: Scene) -> torch.Tensor:
        sizes = self.sizes
        return to_pixels(self.world.render(scene), sizes.image_size, sizes.resize_ratio, sizes.interpolation)


class RenderedStories(RenderedScenes):
    """The pictures of as many conversations as pixels."""

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        split = self.config.split
        return list(map(self._pixels, _pictures(self.world, scene_seed(split, index), split, language=True)))


def _read(path: Path) -> tuple[torch.Tensor, torch.Tensor, dict[str, str]]:
    """Codes, how many pictures each scene or conversation has, and what made them: nothing, for a file that does not
    say. Raises ValueError for a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            codes_NLK = file.get_tensor("codes_NLK")
            has_counts = "counts" in file.keys()  # noqa: SIM118 - no mapping
            counts = file.get_tensor("counts") if has_counts else torch.ones(len(codes_NLK), dtype=torch.int64)
            return codes_NLK, counts, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"cannot read {path} as codes: {error}") from error


def _check_scenes(path: str | Path, made_by: Mapping[str, str], config: ScenesConfig, language: bool) -> None:
    """Files of earlier versions do not say which scenes they are of; none is of conversations."""
    if (made_by.get("language") == "True") != language:
        other = "scenes of conversations" if not language else "single scenes, none of conversations"
        raise ValueError(
            f"{path} holds codes of {other}: extract them again, {'with' if language else 'without'} --language"
        )
    for key, ours in (("artwork", config.artwork), ("split", config.split)):
        if made_by.get(key, ours) != ours:
            raise ValueError(f"{path} holds codes of scenes with {key} {made_by[key]}, not {ours}")


def conversation_messages(
    world: World, config: MixConfig, index: int, wording: int, images: Sequence[torch.Tensor]
) -> Messages:
    """Conversation `index`, with its pictures as codes_LK or pixels, in the words of this `wording`. Some of those that
    begin with their only drawing are turned round: the picture is shown, and its prompt is the answer."""
    seed, split = scene_seed(config.scenes.split, index), config.scenes.split
    chat, rng = conversation(world, seed, split, wording=wording), random.Random(f"{split} {seed} kind {wording}")
    if not images_of(chat[:1]) and images_of(chat[:2]) == images_of(chat) != [] and rng.random() < PROMPTED:
        [prompt], [picture] = (message["content"] for message in chat[:2])
        chat = _chat(picture, [Question("prompt", ASKED_FOR_PROMPT, prompt["text"])])
    elif config.layouts:
        chat = with_layouts(chat, rng)
    return with_images(chat, images)


def with_layouts(chat: Messages, rng: random.Random) -> Messages:
    """A beginning of the conversation that ends with a drawing, which its layout precedes, or the whole, after which
    the layout of the last picture is asked for. Earlier drawings have no layout, as a chat sends them back without, and
    so no loss. All contents are lists."""
    drawn = [place for place, message in enumerate(chat) if message["role"] == "assistant" and images_of([message])]
    end = rng.choice(sorted({*drawn, len(chat) - 1}))
    kept = [{**message, "weight": 0} if place in drawn else message for place, message in enumerate(chat[: end + 1])]
    pictures = images_of(kept)
    if end in drawn:
        kept[end] = _message("assistant", _plan(layout(pictures[-1])), *chat[end]["content"])
    elif pictures:
        question, answer = layout_questions(pictures[-1])[0]
        kept += [_message("user", _plan(question)), _message("assistant", _plan(answer))]
    return kept


def _message(role: str, *parts: dict) -> dict:
    return {"role": role, "content": list(parts)}


def _plan(words: Sequence[str]) -> dict:
    return {"type": "plan", "plan": words}


def drawing_sample(
    processor: MllmProcessor, scene: Scene, image: torch.Tensor, config: MixConfig, rng: random.Random
) -> Sample:
    """Caption -> image, codes_LK or pixels."""
    caption = some_caption(scene, rng)
    if rng.random() < config.caption_dropout:
        return processor.encode_drawing(None, image)
    return processor.encode_drawing(caption, image, plan=layout(scene) if config.layouts else ())


def answering_sample(
    processor: MllmProcessor, scene: Scene, image: torch.Tensor, config: MixConfig, rng: random.Random
) -> Sample:
    """Image (codes_LK or pixels), then questions with answers: each on its own, or some as the turns of one chat."""
    asked = questions(scene, rng)
    rng.shuffle(asked)
    part = {"type": "image", "image": image}
    if rng.random() < config.chats:
        return processor.encode(_chat(part, asked[: config.questions_per_image]), open_answer=False)
    asked.append(Question("prompt", ASKED_FOR_PROMPT, some_caption(scene, rng)))
    worded = [ask(scene, rng) for _ in range(config.worded_questions)]
    chats = [_chat(part, [one]) for one in [*asked, *filter(None, worded)]]
    if config.layouts:
        chats += [
            [_message("user", part, _plan(question)), _message("assistant", _plan(answer))]
            for question, answer in layout_questions(scene)
        ]
    return join([processor.encode(chat, open_answer=False) for chat in chats])


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
        messages.append(_message("user", part, text) if turn == 0 else _message("user", text))
        messages.append(_message("assistant", {"type": "text", "text": question.answer}))
    return messages
