"""What the reports on a scenes model are about."""

from typing import NamedTuple

from data_recipes.scenes.world import World
from mllm import Mllm, Processor

from .detector import Detector


class Subject(NamedTuple):
    """What is evaluated (`name` is what scripts.chat is called with), and the judge of its drawings."""

    name: str
    model: Mllm
    processor: Processor
    detector: Detector
    backbone: str | None = None  # the pretrained one that the model began with, to compare with

    @property
    def world(self) -> World:
        return World(size=self.model.image_tokenizer.config.image_size)
