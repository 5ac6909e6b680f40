"""What a drawing is worth. A new reward is a file here and a line in `REWARDS`; those that need `eval` come from
scripts.train_rl.

A reward is called with the drawings of one prompt at a time and gives a number for each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from mllm import Mllm, Processor

from ...run.recipe import RewardConfig
from ..drawings import Group
from .function import function
from .http import http
from .likelihood import likelihood
from .likeness import likeness

Reward = Callable[[Group], Sequence[float]]
MakeReward = Callable[[RewardConfig, Mllm, Processor], Reward]
"""Raises ValueError for what can never work."""

REWARDS: dict[str, MakeReward] = {
    "likelihood": likelihood,
    "likeness": likeness,
    "function": function,
    "http": http,
}
AT_ONCE = 32  # requests to a server


class Judge:
    """All rewards of a recipe. Raises ValueError for an unknown kind, and as the rewards do."""

    def __init__(
        self, configs: Mapping[str, RewardConfig], known: Mapping[str, MakeReward], model: Mllm, processor: Processor
    ):
        self.weights = {name: config.weight for name, config in configs.items()}
        self.rewards: dict[str, Reward] = {}
        self.waiting = set()  # those that wait for others, for several prompts at a time
        for name, config in configs.items():
            kind = config.kind or name
            if kind not in known:
                raise ValueError(f"recipe, rewards.{name}: unknown kind {kind!r}; known: {', '.join(known)}")
            try:
                self.rewards[name] = known[kind](config, model, processor)
            except ValueError as error:
                raise ValueError(f"recipe, rewards.{name}: {error}") from error
            if kind == "http":
                self.waiting.add(name)

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill in `parts`, and `rewards` or, if a reward fails, `problem`."""
        for name, reward in self.rewards.items():
            if name in self.waiting:
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    found = list(pool.map(lambda group, reward=reward: values(reward, group), groups))
            else:
                found = [values(reward, group) for group in groups]
            for group, value in zip(groups, found, strict=True):
                if isinstance(value, str):
                    group.problem = group.problem or f"prompt {group.prompt.text!r}: reward {name}: {value}"
                else:
                    group.parts[name] = value
        for group in groups:
            if not group.problem:
                group.rewards = sum(self.weights[name] * part for name, part in group.parts.items())


def values(reward: Reward, group: Group) -> torch.Tensor | str:
    """A reward's values [n], or why they are none."""
    try:
        found = [float(value) for value in reward(group)]
    except Exception as error:  # whatever a user's own code raises
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    if len(found) != len(group.drawings):
        return f"{len(found)} values for {len(group.drawings)} drawings"
    wrong = [value for value in found if not math.isfinite(value)]
    return f"a value is {wrong[0]}" if wrong else torch.tensor(found, dtype=torch.double)
