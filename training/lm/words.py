"""The stage `words`: the code embedding learns to lie near the words for what an image position shows. No layer of the
backbone runs, so an image costs about a hundredth of what it costs in `instruct`.

Codes as words of a pretrained language model are the idea of LQAE (arXiv 2302.00902) and SPAE (arXiv 2306.17842).
Shapes: B rows, T positions, N images, L positions an image, P positions with a word, D backbone width.
"""

from typing import Any

import torch
import torch.nn.functional as F

from mllm import Mllm
from mllm.model import MllmOutput
from mllm.text.templates import IGNORED

SHARPNESS = 10.0  # cosines are multiplied by it before the softmax over words
LENGTH_WEIGHT = 0.1


class WordsMllm(Mllm):
    """An Mllm whose labels are words at image positions. Each position predicts the word at the same position, without
    the shift by one of a language model."""

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
        text_losses, lengths = self.word_losses(self.code_embed(codes), labels.to(slots_BT.device)[slots_BT])
        nothing = text_losses.new_zeros(0, self.config.image_tokenizer["num_codebooks"])
        return MllmOutput(
            text_loss=(text_losses + LENGTH_WEIGHT * lengths).sum(),
            text_losses=text_losses.detach(),
            code_loss=text_losses.new_zeros(()),
            code_losses=nothing,
        )

    def word_losses(self, embeds_NLD: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two losses of each position with a word, each [P]: the cross-entropy of the word among all words of the
        batch, by cosines between the code embedding and the word embeddings; and the squared relative difference of its
        length from the mean length of the word embeddings.

        The mean of the word embeddings is subtracted first. Raises ValueError for fewer than two words.
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
