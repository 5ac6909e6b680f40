"""The embedding of codes learns to lie at the words of what they show, before any layer of the backbone reads it.

The backbone then meets images half in its own language, as in the dictionaries of LQAE (arXiv 2302.00902) and SPAE
(arXiv 2306.17842). None of its layers runs, so an image costs a hundredth of what it costs in `align`.
Shapes: B rows, T positions, N images, L positions an image, P positions with a word, D backbone width.
"""

from typing import Any

import torch
import torch.nn.functional as F

from mllm import Mllm
from mllm.model import MllmOutput
from mllm.text.templates import IGNORED

SHARPNESS = 10.0  # of the choice among words: cosines are multiplied by it
LENGTH_WEIGHT = 0.1


class WordsMllm(Mllm):
    """Its loss is over the labels of image positions, each a word of what is there: an image's own positions predict
    them, without the shift of a language model's."""

    def forward(
        self,
        input_ids: torch.Tensor,
        codes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **inputs: Any,
    ) -> MllmOutput:
        if labels is None:
            return super().forward(input_ids, codes, **inputs)
        slots_BT = input_ids == self.config.image_token_id
        text_losses, lengths = self.word_losses(self.code_embed(codes), labels[slots_BT])
        nothing = text_losses.new_zeros(0, self.config.image_tokenizer["num_codebooks"])
        return MllmOutput(
            text_loss=(text_losses + LENGTH_WEIGHT * lengths).sum(),
            text_losses=text_losses.detach(),
            code_loss=text_losses.new_zeros(()),
            code_losses=nothing,
        )

    def word_losses(self, embeds_NLD: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each position with a word, [P]: cross-entropy of that word among all of the batch, by the cosine between
        what is embedded and the words' own embeddings; and how far it is from their mean length, squared and relative.

        Both are seen from the mean of the words, which all of them share. Raises ValueError for fewer than two words.
        """
        named = words != IGNORED
        words_seen, wanted = words[named].unique(return_inverse=True)
        if len(words_seen) < 2:
            raise ValueError("model.words: a batch shows fewer than two words to tell apart: raise run.batch_size")
        targets = self.get_input_embeddings()(words_seen).float()
        center = targets.mean(0)
        targets, embeds_PD = targets - center, embeds_NLD.flatten(0, 1)[named].float() - center
        logits = SHARPNESS * F.normalize(embeds_PD, dim=-1) @ F.normalize(targets, dim=-1).T
        lengths = (embeds_PD.norm(dim=-1) / targets.norm(dim=-1).mean() - 1).square()
        return F.cross_entropy(logits, wanted, reduction="none"), lengths


WordsMllm.__name__ = Mllm.__name__  # what config.json calls a saved model's class: any other loads it
