"""A Python function of the user's own: (prompt, images as PIL images) -> a number for each image."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from mllm import Mllm, Processor

from ...run.recipe import RewardConfig
from ..drawings import Group


def function(config: RewardConfig, model: Mllm, processor: Processor) -> Callable[[Group], Sequence[float]]:
    """The function at "module:function"; modules of the current folder are found. Raises ValueError for none."""
    module, _, name = (config.at or "").partition(":")
    if not module or not name:
        raise ValueError(f"at is {config.at!r}: say where the function is, as module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise whatever it likes
        raise ValueError(f"cannot import {config.at}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"{config.at} is no function")

    def values(group: Group) -> Sequence[float]:
        return found(group.prompt.text, group.images)

    return values
