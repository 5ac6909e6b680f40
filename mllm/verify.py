"""A model looks at its own drawings: does this show what was asked for?

Shapes: N images, L positions an image, K sub-codebooks.
"""

from collections.abc import Sequence

import torch

from .model import MllmForConditionalGeneration
from .processor import MllmProcessor
from .stream import check_length

CHECK = "does this show: {}"  # a question that recipes teach, with "yes" and "no" as its answers


@torch.no_grad()
def certainty(
    model: MllmForConditionalGeneration, processor: MllmProcessor, prompt: str, codes_NLK: torch.Tensor
) -> torch.Tensor:
    """[N], the log-probability that the model, shown each image, answers that it shows the prompt: VQAScore
    (arXiv 2404.01291), by the model that drew. Raises ValueError for a prompt that leaves no room for the answer."""
    chats = [processor.encode(_yes(prompt, codes_LK), open_answer=False) for codes_LK in codes_NLK]
    check_length(model, processor, chats[0], room=0)
    batch = processor.collate(chats)
    ids_NT, labels_NT = batch.input_ids.to(model.device), batch.labels.to(model.device)
    h_NTD = model.backbone(inputs_embeds=model.embed(ids_NT, codes_NLK)).last_hidden_state
    return -model.text_losses(h_NTD, labels_NT).view(len(chats), -1).sum(1)


def _yes(prompt: str, codes_LK: torch.Tensor) -> list[dict]:
    question = [{"type": "image", "image": codes_LK}, {"type": "text", "text": CHECK.format(prompt.strip())}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]


def best(
    model: MllmForConditionalGeneration, processor: MllmProcessor, prompts: Sequence[str], codes_NLK: torch.Tensor
) -> torch.Tensor:
    """Of equally many drawings of each prompt, one after the other, the one the model is most certain of, each."""
    chosen = []
    for prompt, codes_CLK in zip(prompts, codes_NLK.chunk(len(prompts)), strict=True):
        # Prompt by prompt: in a batch of another size rounding could turn a tie.
        place = certainty(model, processor, prompt, codes_CLK).argmax()
        chosen.append(codes_CLK[place])
    return torch.stack(chosen)
