"""Finite scalar quantization (FSQ, arXiv 2309.15505): each channel is rounded to one of a few levels.

Shapes: N images, L positions, M = N * L, Q channels = K sub-codebooks x q channels, V entries per sub-codebook.
"""

import math
from collections.abc import Sequence

import torch

from .base import Quantized, Quantizer, QuantizerOptions


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

    def forward(self, features_NLQ: torch.Tensor, options: QuantizerOptions | None = None) -> Quantized:
        with torch.autocast(features_NLQ.device.type, enabled=False):
            z_NLKq = self._bounded(features_NLQ)
            levels_NLKq = self._levels(z_NLKq)
            features_NLQ = (z_NLKq + (self._values(levels_NLKq) - z_NLKq).detach()).flatten(-2)
            shares_KMV = None
            if options and options.index_temperature:
                z_KMq = z_NLKq.flatten(0, 1).transpose(0, 1)
                squared_KMV = (z_KMq[:, :, None] - self.entries()[:, None]).square().sum(-1)
                shares_KMV = (-squared_KMV / options.index_temperature).softmax(-1)
        return Quantized(features_NLQ, self._codes(levels_NLKq), features_NLQ.new_zeros(()), shares_KMV=shares_KMV)

    def encode(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features_NLQ.device.type, enabled=False):
            return self._codes(self._levels(self._bounded(features_NLQ)))

    def _bounded(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        return features_NLQ.float().unflatten(-1, (self.num_codebooks, -1)).tanh()

    def _levels(self, z_NLKq: torch.Tensor) -> torch.Tensor:
        return ((z_NLKq + 1) / 2 * (self.levels_q - 1)).round().long()

    def _values(self, levels: torch.Tensor) -> torch.Tensor:
        return 2 * levels.float() / (self.levels_q - 1) - 1

    def _codes(self, levels_NLKq: torch.Tensor) -> torch.Tensor:
        return (levels_NLKq * self._places()).sum(-1)

    def _places(self) -> torch.Tensor:
        """What a level of each channel counts in a code, [q]."""
        return self.levels_q.cumprod(0) // self.levels_q
