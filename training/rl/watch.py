"""What a run watches: numbers of its drawings, prompts that were left out, and understanding, which must not fall."""

import json
import random
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch

from data_recipes.files import whole
from data_recipes.messages import from_files
from data_recipes.scenes.world import World, questions
from data_recipes.shards import Shards
from mllm import Processor
from mllm.decode.run import generate_texts

from ..data.mixture import ImageForm
from ..run.backends import TorchEngine
from ..run.distributed import rank_and_world, sum_over_ranks
from ..run.metrics import read_rows
from ..run.recipe import QuestionsConfig, RewardConfig
from .drawings import Group

FIRST_SCENE = 1_000_000_000  # of those asked about: evaluation begins at 0
AT_ONCE = 32
ANSWER = 48  # tokens at most


def group_means(groups: Sequence[Group], rewards: Mapping[str, RewardConfig], codebooks: int) -> dict[str, float]:
    """Of the groups of all ranks: the reward and its parts, the share of groups without a signal and of those left out
    for a problem, the length of plans, and the entropy of codes, of all and of each sub-codebook (nats), as the mean of
    -log p of what was drawn."""
    good = [group for group in groups if not group.problem]
    drawings = [drawing for group in groups for drawing in group.drawings]
    entropies_K = -torch.stack([drawing.code_logps.mean(0) for drawing in drawings]).double().sum(0)
    sums = [
        *(len(groups), len(good), len(drawings), sum(drawing.plan_length for drawing in drawings)),
        *(sum(group.has_signal for group in good), sum(float(group.rewards.mean()) for group in good)),
        sum(float(group.rewards.max()) for group in good),
        *(sum(float(group.parts[name].mean()) for group in good) for name in rewards),
        *entropies_K.tolist(),
    ]
    n, n_good, n_drawings, plans, signals, mean, best, *rest = sum_over_ranks(
        torch.tensor(sums, dtype=torch.double)
    ).tolist()
    report = {"no_signal": 1 - signals / n_good if n_good else 1.0, "left_out": (n - n_good) / n}
    report |= {"plan_length": plans / n_drawings, "entropy": sum(rest[-codebooks:]) / codebooks / n_drawings}
    if n_good:
        report |= {"reward": mean / n_good, "reward_of_best": best / n_good}
        report |= {f"reward/{name}": value / n_good for name, value in zip(rewards, rest, strict=False)}
    return report | {f"entropy/{k}": value / n_drawings for k, value in enumerate(rest[-codebooks:])}


class LeftOut:
    """left_out.jsonl: each prompt of this rank that no update was made of, and why. Lines past `first_step` of an
    interrupted run are dropped when it resumes."""

    def __init__(self, run: Path, first_step: int):
        rank, world = rank_and_world()
        self.file = run / ("left_out.jsonl" if world == 1 else f"left_out_{rank}.jsonl")
        if self.file.is_file():
            rows = [row for row in read_rows(self.file) if row["step"] <= first_step]
            with whole(self.file) as file:
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def add(self, step: int, groups: Sequence[Group]) -> None:
        rows = [
            {"step": step, "prompt": group.prompt.text, "why": group.problem or "all drawings have the same reward"}
            for group in groups
            if not group.has_signal
        ]
        if rows:
            with self.file.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))


def same_rewards(groups: Sequence[Group]) -> str:
    """What the rewards gave, for a run whose groups carry no signal."""
    good = [group for group in groups if not group.problem]
    if not good:
        return groups[0].problem
    parts = [f"{name} {float(part[0]):.4g}" for name, part in good[0].parts.items()]
    return f"every drawing of {good[0].prompt.text!r} got {', '.join(parts)}"


class Questions:
    """Questions about images, with their answers. Images are encoded once: the image tokenizer does not train."""

    def __init__(self, config: QuestionsConfig, engine: TorchEngine, processor: Processor):
        self.config, self.processor = config, processor
        pairs = list(islice(self._of_scenes() if config.scenes else self._of_shards(engine), config.count))
        rank, world = rank_and_world()
        self.count, self.mine = len(pairs), []
        for messages, answer in pairs[rank::world]:
            for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
                if not torch.is_tensor(part["image"]):
                    part["image"] = engine.image_tokenizer.encode([part["image"]])[0]
            self.mine.append((messages, answer))

    def _of_scenes(self):
        world, seed = World(self.config.scenes.artwork), FIRST_SCENE
        while True:
            scene = world.scene(seed, "held_out")
            image = world.render(scene)
            for question in questions(scene, random.Random(f"questions {seed}")):
                content = [{"type": "image", "image": image}, {"type": "text", "text": question.text}]
                yield [{"role": "user", "content": content}], question.answer
            seed += 1

    def _of_shards(self, engine: TorchEngine):
        """The last answers of conversations, where they are words. Raises ValueError for bad samples."""
        shards, form = Shards(self.config.shards), ImageForm(engine.image_tokenizer, self.processor.preparation)
        for index in range(len(shards)):
            messages = form.load(from_files(shards[index]))
            answer = messages[-1]["content"]
            if all(part["type"] == "text" for part in answer):
                yield messages[:-1], "".join(part["text"] for part in answer).strip()

    def ask(self, engine: TorchEngine) -> float:
        """The share of exact answers. Weights are whole, and the model is in `eval` mode; all ranks call it."""
        right = 0
        for first in range(0, len(self.mine), AT_ONCE):
            chats, answers = zip(*self.mine[first : first + AT_ONCE], strict=True)
            said = generate_texts(engine.model, self.processor, list(chats), max_new_tokens=ANSWER)
            right += sum(text.strip() == answer for text, answer in zip(said, answers, strict=True))
        return sum_over_ranks(torch.tensor(float(right))).item() / self.count
