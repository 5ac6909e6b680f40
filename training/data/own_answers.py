"""A model's own answers as training samples, so that what it knows stays (as in Learning without Forgetting, arXiv
1606.09282, with texts in place of probabilities)."""

from collections.abc import Iterator, Sequence

import torch

from data_recipes.messages import checked, to_files
from mllm import Mllm, Processor
from mllm.decode.batch import Batch
from mllm.decode.program import Chat, Program
from mllm.decode.run import run


def answered(
    model: Mllm, processor: Processor, prompts: Sequence[str], first: int, max_new_tokens: int
) -> Iterator[tuple[str, dict[str, bytes]] | str]:
    """(key, files of a shard's sample) for each prompt, numbered from `first`, or what is wrong with its answer: it is
    empty, or does not end within `max_new_tokens` ids. All are answered as one batch, greedily."""
    with torch.no_grad():
        programs = [Program(model, processor, Chat(text, max_new_tokens, drawing=None), None) for text in prompts]
    for _ in run(Batch(model, processor), programs):
        pass
    for number, (prompt, program) in enumerate(zip(prompts, programs, strict=True), start=first):
        if program.ended_by == "length" or not program.text.strip():
            what = "is empty" if program.ended_by == "stop" else f"has not ended after {max_new_tokens} tokens"
            yield f"prompt {number}, {prompt[:60]!r}: its answer {what}"
            continue
        turns = [("user", prompt), ("assistant", program.text)]
        messages = checked([{"role": role, "content": text} for role, text in turns])
        yield f"{number:09d}", to_files(messages, [])
