"""Where prompts come from. The prompt at a position of the run depends on the seed and the position alone."""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_recipes.files import read_lines
from data_recipes.messages import from_files
from data_recipes.scenes.world import World, geneval_record, some_caption
from data_recipes.shards import Shards, Shuffled
from mllm import Mllm, Processor
from mllm.decode.program import start_drawing
from mllm.text.templates import Sample

from ..data.scene_samples import RENDERED, scene_seed
from ..run.recipe import PromptSourceConfig, ScenesConfig


@dataclass(frozen=True)
class Prompt:
    """Words that ask for an image, and what else is known of it: for scenes, a line of GenEval's metadata."""

    text: str
    record: Mapping[str, Any]


class PromptSource(ABC):
    """An endless order of prompts. `note` says how many there are."""

    note: str

    @abstractmethod
    def prompt(self, number: int) -> Prompt:
        """Raises ValueError, naming it, for a bad one."""


class ScenePrompts(PromptSource):
    """Captions of scenes. Those of the split "train" name no held-out combination."""

    def __init__(self, config: ScenesConfig, seed: int):
        self.config, self.world, self.seed = config, World(config.artwork), seed
        self.order, self.note = Shuffled([RENDERED], seed), f"of {RENDERED:,} scenes, split {config.split}"

    def prompt(self, number: int) -> Prompt:
        scene = self.world.scene(scene_seed(self.config.split, self.order[number]), self.config.split)
        return Prompt(some_caption(scene, random.Random(f"{self.seed} {number}")), geneval_record(scene))


class FilePrompts(PromptSource):
    """Lines of a file, or of its objects the field "prompt"; empty lines are left out."""

    def __init__(self, file: Path, seed: int):
        self.file = file
        try:
            lines = enumerate(read_lines(file), start=1)
        except OSError as error:
            raise ValueError(f"recipe, draw.file: cannot read {file}: {error.strerror}") from error
        self.lines = [(number, line) for number, line in lines if line.strip()]
        if not self.lines:
            raise ValueError(f"recipe, draw.file: no prompts in {file}")
        self.order, self.note = Shuffled([len(self.lines)], seed), f"{len(self.lines)} of {file}"

    def prompt(self, number: int) -> Prompt:
        place, line = self.lines[self.order[number]]
        if self.file.suffix != ".jsonl":
            return Prompt(line.strip(), {})
        try:
            record = json.loads(line)
            return Prompt(str(record["prompt"]).strip(), record)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{self.file}, line {place}: no object with "prompt"') from error


class ShardPrompts(PromptSource):
    """The texts of the text-to-image samples of shards; their images are not read."""

    def __init__(self, patterns: list[str], seed: int):
        self.shards = Shards(patterns)
        self.order, self.note = Shuffled(self.shards.counts, seed), self.shards.taken()

    def prompt(self, number: int) -> Prompt:
        index = self.order[number]
        try:
            messages = from_files(self.shards[index]).messages
        except ValueError as error:
            raise ValueError(f"{self.shards.name(index)}: {error}") from error
        asked, answer = messages[0]["content"], messages[-1]["content"]
        if len(messages) != 2 or any(part["type"] != "text" for part in asked) or answer[0]["type"] != "image":
            raise ValueError(f"{self.shards.name(index)}: no text that an image answers")
        return Prompt("".join(part["text"] for part in asked).strip(), {})


class Prompts:
    """Position in the run -> a prompt that the model can draw."""

    def __init__(self, config: PromptSourceConfig, model: Mllm, processor: Processor, seed: int, max_bad: int):
        if config.scenes:
            self.source: PromptSource = ScenePrompts(config.scenes, seed)
        elif config.file:
            self.source = FilePrompts(Path(config.file), seed)
        else:
            self.source = ShardPrompts(config.shards, seed)
        self.model, self.processor, self.max_bad = model, processor, max_bad

    def at(self, position: int) -> tuple[Prompt, Sample, list[str]]:
        """The prompt, the sequence that the model reads before it draws, and what was wrong with bad prompts, in whose
        place the next one comes. Raises ValueError when more are bad than allowed."""
        problems: list[str] = []
        while len(problems) <= self.max_bad:
            try:
                prompt = self.source.prompt(position + len(problems))
                return prompt, start_drawing(self.model, self.processor, prompt.text), problems
            except ValueError as error:
                problems.append(str(error))
        raise ValueError(f"{len(problems)} bad prompts in a row, max_bad is {self.max_bad}; the last: {problems[-1]}")
