"""Finite scalar quantization (FSQ, arXiv 2309.15505): each channel is rounded to one of a few levels.

Shapes: N images, L positions, M = N * L, Q channels = K sub-codebooks x q channels, V entries per sub-codebook.
"""

import math
from collections.abc import Sequence

import torch

from .base import Quantizer


class FiniteScalarQuantizer(Quantizer):
    """K groups of q channels; a code is the levels of the channels of its group, the first channel's counting least.

    Channels are bounded by tanh, and their levels lie evenly from -1 to 1, both included. (The paper moves even numbers
    of levels by half a step, so that one of them is 0.) Nothing is learned but what gives and reads the features: no
    entry can die, and there is no loss beside those of the images.

    `levels` are the numbers of each of the q channels, whose product is V; as many for each if not given. Raises
    ValueError for others.
    """

    def __init__(self, width: int, num_codebooks: int, codebook_size: int, levels: Sequence[int] | None = None):
        super().__init__(width, num_codebooks, codebook_size)
        q = self.slice_width
        levels = [round(codebook_size ** (1 / q))] * q if levels is None else list(levels)
        if len(levels) != q or math.prod(levels) != codebook_size or not all(type(n) is int and n > 1 for n in levels):
            raise ValueError(
                f"quantizer_args: levels {levels} of fsq must be {q} whole numbers above 1 (code_width / num_codebooks)"
                f" whose product is codebook_size {codebook_size}"
            )
        self.register_buffer("levels_q", torch.tensor(levels))

    def entries(self) -> torch.Tensor:
        codes_V = torch.arange(self.codebook_size, device=self.levels_q.device)
        levels_Vq = codes_V[:, None] // self._places() % self.levels_q
        return self._values(levels_Vq).expand(self.num_codebooks, -1, -1)

    def bound(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        return features_NLQ.float().tanh()

    def nearest(self, z_KMq: torch.Tensor) -> torch.Tensor:
        levels_KMq = ((z_KMq + 1) / 2 * (self.levels_q - 1)).round().long()
        return (levels_KMq * self._places()).sum(-1)

    def _values(self, levels: torch.Tensor) -> torch.Tensor:
        """Levels [..., q] -> what they stand for."""
        return 2 * levels.float() / (self.levels_q - 1) - 1

    def _places(self) -> torch.Tensor:
        """What a level of each channel counts in a code, [q]."""
        return self.levels_q.cumprod(0) // self.levels_q
