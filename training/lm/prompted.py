"""Drawings and answers of a model in training, for the recipe's prompts."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mllm import Processor, generate_images
from mllm.decode.run import generate_texts
from tokenizer.transform import in_grid, load_image

from ..run.backends import TorchEngine
from ..run.metrics import Metrics
from ..run.recipe import PromptConfig

ANSWER = 48  # tokens at most


def conversations(prompts: Sequence[PromptConfig]) -> list[list[dict]]:
    """The questions as chats. Raises ValueError for an image that cannot be read."""
    chats = []
    for prompt in prompts:
        if prompt.ask is not None:
            image = [{"type": "image", "image": load_image(Path(prompt.image))}] if prompt.image else []
            chats.append([{"role": "user", "content": [*image, {"type": "text", "text": prompt.ask}]}])
    return chats


def show_samples(
    engine: TorchEngine, processor: Processor, prompts: Sequence[PromptConfig], metrics: Metrics | None, step: int
) -> None:
    """Draw and answer the recipe's prompts, with the same seeds each time. Rank 0, which has `metrics`, logs a strip of
    drawings and a list of answers. All ranks must call it."""
    # Compiled for training: one step after the other would compile layers anew for each length of the cache.
    with engine.whole(), torch.compiler.set_stance("force_eager"):
        if not metrics:
            return
        model, tokenizer_trains = engine.model.eval(), engine.image_tokenizer.training
        draw = [prompt.draw for prompt in prompts if prompt.draw is not None]
        if draw:
            metrics.picture(step, "drawings", in_grid(generate_images(model, processor, draw), len(draw)))
        questions, chats = [prompt.ask for prompt in prompts if prompt.ask is not None], conversations(prompts)
        answers = generate_texts(model, processor, chats, max_new_tokens=ANSWER)
        if answers:
            pairs = zip(questions, answers, strict=True)
            metrics.texts(step, "answers", [f"{question} -> {answer}" for question, answer in pairs])
        model.train()
        engine.image_tokenizer.train(tokenizer_trains)
