"""Residual quantization (RQ, arXiv 2203.01941): code k quantizes what the codes before it left.

Shapes: N images, L positions, M = N * L, K sub-codebooks, V entries each, Q channels, which are an entry's, too.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .base import Quantizer, closeness
from .multi_codebook import MultiCodebookQuantizer, k_means


class ResidualQuantizer(MultiCodebookQuantizer):
    """K codebooks of V entries as wide as a position's features, which are the sum of the K entries. Features have mean
    0 and variance 1 over their channels; the nearest entry is so by Euclidean distance."""

    summed = True

    def __init__(
        self, width: int, num_codebooks: int, codebook_size: int, commitment: float = 0.25, temperature: float = 1.0
    ):
        super().__init__(width, num_codebooks, codebook_size, commitment, temperature)

    def reset_parameters(self):
        # Far from all features, an entry of unit variance would add to what is left, not take from it.
        nn.init.normal_(self.codebooks_KVq, std=0.3)

    def entries(self) -> torch.Tensor:
        return self.codebooks_KVq.float()

    def bound(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(features_NLQ.float(), features_NLQ.shape[-1:])

    scores = Quantizer.scores

    def choose(self, bounded_NLQ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rest_MQ, rests, codes = bounded_NLQ.flatten(0, 1), [], []
        for entries_VQ in self.entries():
            rests.append(rest_MQ)
            codes.append(_nearest(rest_MQ, entries_VQ))
            rest_MQ = rest_MQ - entries_VQ[codes[-1]].detach()
        return torch.stack(rests), torch.stack(codes)

    def centres(self, z_KMq: torch.Tensor) -> torch.Tensor:
        rest_MQ, centres = z_KMq[0], []
        for _ in range(self.num_codebooks):
            [centres_VQ] = k_means(rest_MQ[None], self.codebook_size)
            centres.append(centres_VQ)
            rest_MQ = rest_MQ - centres_VQ[_nearest(rest_MQ, centres_VQ)]
        return torch.stack(centres)


def _nearest(points_MQ: torch.Tensor, entries_VQ: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return closeness(points_MQ[None], entries_VQ[None])[0].argmax(-1)
