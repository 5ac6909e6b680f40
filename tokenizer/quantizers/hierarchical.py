"""Pixels told in the words of a meaning (SemHiTok, arXiv 2503.06764): each meaning has its own codebook of pixels.

Shapes: N images, L positions, M = N * L, Q channels = K sub-codebooks x q channels, V = S * P entries per sub-codebook:
S meanings with P entries for pixels each, of q / 2 channels both.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .base import closeness
from .multi_codebook import k_means
from .shared_index import SharedIndexQuantizer


class HierarchicalQuantizer(SharedIndexQuantizer):
    """Of each entry, one half is meaning, which P entries in a row have in common, and one half pixels. A code is first
    the nearest of S meanings, then, among its entries, the one whose pixels are nearest: S * P entries, of which each
    feature is compared with S + P.

    `meanings` is S, by default the root of V. Raises ValueError where V is no multiple of it, and where q is odd.
    """

    def __init__(
        self,
        width: int,
        num_codebooks: int,
        codebook_size: int,
        commitment: float = 0.25,
        temperature: float = 0.01,
        meanings: int | None = None,
    ):
        super().__init__(width, num_codebooks, codebook_size, commitment, temperature)
        self.meanings = math.isqrt(codebook_size) if meanings is None else meanings
        if type(self.meanings) is not int or self.meanings < 1 or codebook_size % self.meanings:
            raise ValueError(
                f"quantizer_args: {self.meanings} meanings of hierarchical do not divide codebook_size {codebook_size}"
            )

    def reset_parameters(self):
        nn.init.normal_(self.codebooks_KVq)  # `entries` gives both halves unit length

    def entries(self) -> torch.Tensor:
        meanings_KVh, pixels_KVh = self.codebooks_KVq.float().chunk(2, -1)
        meanings_KSh = F.normalize(meanings_KVh.unflatten(1, (self.meanings, -1)).mean(2), dim=-1)
        return self._join(meanings_KSh, F.normalize(pixels_KVh, dim=-1))

    def scores(self, z_KMq: torch.Tensor) -> torch.Tensor:
        """Of the entries of a meaning, the one with the nearest pixels has the cosine of the meaning, and the others as
        much less as their pixels are farther: the largest of all is that of the code."""
        halves = zip(z_KMq.chunk(2, -1), self.entries().chunk(2, -1), strict=True)
        meanings_KMSP, pixels_KMSP = (
            torch.bmm(z_KMh, e_KVh.mT).unflatten(-1, (self.meanings, -1)) for z_KMh, e_KVh in halves
        )
        return (meanings_KMSP[..., :1] + pixels_KMSP - pixels_KMSP.detach().amax(-1, keepdim=True)).flatten(-2)

    def centres(self, z_KMq: torch.Tensor) -> torch.Tensor:
        """Those of meanings, and then of the pixels that go with each."""
        (meanings_KMh, pixels_KMh), pixels = z_KMq.chunk(2, -1), []
        centres_KSh = k_means(meanings_KMh, self.meanings)
        chosen_KM = closeness(meanings_KMh, centres_KSh).argmax(-1)
        for pixels_Mh, chosen_M in zip(pixels_KMh, chosen_KM, strict=True):
            for meaning in range(self.meanings):
                own_Mh = pixels_Mh[chosen_M == meaning]
                own_Mh = own_Mh if len(own_Mh) else pixels_Mh
                pixels.append(k_means(own_Mh[None], self.codebook_size // self.meanings)[0])
        return self._join(centres_KSh, torch.cat(pixels).unflatten(0, (self.num_codebooks, -1)))

    def _join(self, meanings_KSh: torch.Tensor, pixels_KVh: torch.Tensor) -> torch.Tensor:
        return torch.cat([meanings_KSh.repeat_interleave(self.codebook_size // self.meanings, 1), pixels_KVh], -1)
