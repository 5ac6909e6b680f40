"""How near drawing and prompt are in the contrastive branch of the image tokenizer (UniTok, arXiv 2502.20321)."""

from collections.abc import Callable, Sequence

import torch

from mllm import Mllm, Processor
from mllm.text.ids import contrastive_ids

from ...run.recipe import RewardConfig
from ..drawings import Group


def likeness(config: RewardConfig, model: Mllm, processor: Processor) -> Callable[[Group], Sequence[float]]:
    """The cosine, -1 to 1. Raises ValueError when the text tower was trained with another text tokenizer."""
    sizes = model.config.image_tokenizer_config
    if len(processor.tokenizer) + 1 != sizes.text_vocab_size:
        raise ValueError(
            f"the image tokenizer's text tower reads {sizes.text_vocab_size - 1} entries, the model's text tokenizer "
            f"has {len(processor.tokenizer)}: likeness cannot be computed"
        )

    @torch.inference_mode()
    def values(group: Group) -> Sequence[float]:
        image_tokenizer = model.image_tokenizer
        ids_NT = contrastive_ids(processor.tokenizer, group.prompt.text, sizes.text_context, sizes.text_vocab_size)
        text_1E = image_tokenizer.text_features(ids_NT.to(image_tokenizer.device))
        return (image_tokenizer.image_features(group.images) @ text_1E[0]).tolist()

    return values
