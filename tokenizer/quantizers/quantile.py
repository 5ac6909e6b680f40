"""Quantization of each channel on its own, after training if wanted (TokenBridge, arXiv 2503.16430).

Shapes: N images, L positions, M = N * L, Q channels = K sub-codebooks x q channels, V entries per sub-codebook.
"""

from dataclasses import dataclass

import torch

from .base import Quantized, Quantizer, QuantizerOptions
from .fsq import FiniteScalarQuantizer


@dataclass
class QuantileOptions(QuantizerOptions):
    """With `noise` above 0, nothing is rounded in training: features get normal noise of this deviation, as those of a
    VAE, and become codes only afterwards."""

    noise: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        self.check_from_zero("noise")
        if self.noise and (self.perturbed or self.index_temperature):
            raise ValueError("quantizer.noise trains without codes: leave perturbed and index_temperature at 0")


class QuantileQuantizer(FiniteScalarQuantizer):
    """As FSQ, but channels are not bounded: a loss keeps them close to a normal distribution, and each level stands for
    an equally large part of it, by the mean of that part."""

    Options = QuantileOptions
    nearest = Quantizer.nearest

    def forward(self, features_NLQ: torch.Tensor, options: QuantileOptions | None = None) -> Quantized:
        quantized = super().forward(features_NLQ, options)
        if not options or not options.noise:
            return quantized
        noisy_NLQ = features_NLQ.float() + options.noise * torch.randn_like(features_NLQ, dtype=torch.float32)
        return quantized._replace(features_NLQ=noisy_NLQ)

    def bound(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        return features_NLQ.float()

    def loss(self, z_KMq: torch.Tensor, q_KMq: torch.Tensor) -> torch.Tensor:
        """Divergence of a normal distribution with each channel's moments from the standard one, mean over channels."""
        variance, mean = torch.var_mean(z_KMq, 1, correction=0)
        return 0.5 * (variance + mean.square() - 1 - (variance + 1e-6).log()).mean()

    def _values(self, levels: torch.Tensor) -> torch.Tensor:
        below, above = (torch.special.ndtri((levels + end) / self.levels_q) for end in (0, 1))
        return self.levels_q * (_density(below) - _density(above))


def _density(x: torch.Tensor) -> torch.Tensor:
    """Of the standard normal distribution."""
    return (-0.5 * x.square()).exp() / (2 * torch.pi) ** 0.5
