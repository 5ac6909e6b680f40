"""How likely the model itself finds the prompt when it sees the drawing (arXiv 2306.01879). With rejection sampling,
this is ILLUME's self-assessment (arXiv 2412.06673): no other network judges."""

from collections.abc import Callable, Sequence

from mllm import Mllm, Processor
from mllm.decode.rerank import fit, reread

from ...run.recipe import RewardConfig
from ..drawings import Group


def likelihood(config: RewardConfig, model: Mllm, processor: Processor) -> Callable[[Group], Sequence[float]]:
    """Nats for each id of the prompt, by the model as it is at the moment. The drawing is read from its pixels."""

    def values(group: Group) -> Sequence[float]:
        prompt = group.prompt.text
        length = len(processor.tokenizer(prompt, add_special_tokens=False, split_special_tokens=True).input_ids)
        return (fit(model, processor, prompt, reread(model, group.codes)) / max(1, length)).tolist()

    return values
