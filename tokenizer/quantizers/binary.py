"""Binary quantization without a codebook: a code is the signs of the channels of its group.

Shapes: N images, L positions, M = N * L, Q channels = K groups x q channels, V = 2^q codes of a group.
"""

import torch
import torch.nn.functional as F

from .base import EntropyOptions, Quantizer


class LookupFreeQuantizer(Quantizer):
    """Lookup-free quantization (LFQ, MAGVIT-v2, arXiv 2310.05737), in K groups as in WeTok (arXiv 2508.05599): each
    channel becomes -1 or 1, the first channel's bit counting least. 64 groups of one bit are as good as 1 of 64, of
    which no language model could have a table.

    The entropy loss takes the bits of a group for independent, as BSQ does (see below): it costs nothing, whatever V.
    `temperature` is that of its choices. Raises ValueError where V is not 2^q.
    """

    Options = EntropyOptions
    radius = 1.0  # of a channel

    def __init__(
        self, width: int, num_codebooks: int, codebook_size: int, commitment: float = 0.25, temperature: float = 1.0
    ):
        super().__init__(width, num_codebooks, codebook_size)
        if codebook_size != 2**self.slice_width:
            raise ValueError(
                f"codebook_size {codebook_size} is not 2^{self.slice_width}: "
                f"binary codes have a bit for each of their channels (code_width / num_codebooks)"
            )
        self.commitment, self.temperature = commitment, temperature
        self.register_buffer("places_q", 2 ** torch.arange(self.slice_width))

    def entries(self) -> torch.Tensor:
        codes_V = torch.arange(self.codebook_size, device=self.places_q.device)
        bits_Vq = codes_V[:, None] // self.places_q % 2
        return (self.radius * (2.0 * bits_Vq - 1)).expand(self.num_codebooks, -1, -1)

    def nearest(self, z_KMq: torch.Tensor) -> torch.Tensor:
        return ((z_KMq > 0) * self.places_q).sum(-1)

    def loss(self, z_KMq: torch.Tensor, q_KMq: torch.Tensor) -> torch.Tensor:
        return self.commitment * F.mse_loss(z_KMq, q_KMq)

    def entropy_loss(self, z_KMq: torch.Tensor, options: EntropyOptions) -> torch.Tensor:
        if not options.entropy_every:
            return z_KMq.new_zeros(())
        # Of two entries r and -r, the share of the first is a softmax over -|z - e|^2 / temperature.
        p_KMq = (4 * self.radius * z_KMq[:, :: options.entropy_every] / self.temperature).sigmoid()
        return (_entropy(p_KMq).sum(-1).mean(1) - _entropy(p_KMq.mean(1)).sum(-1)).mean()


class BinarySphericalQuantizer(LookupFreeQuantizer):
    """Binary spherical quantization (BSQ, arXiv 2406.07548): groups have unit length before and after, so that no error
    can grow, and nothing needs a commitment."""

    def __init__(self, width: int, num_codebooks: int, codebook_size: int, temperature: float = 0.1):
        super().__init__(width, num_codebooks, codebook_size, 0.0, temperature)
        self.radius = self.slice_width**-0.5

    def bound(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        return F.normalize(features_NLQ.float().unflatten(-1, (self.num_codebooks, -1)), dim=-1).flatten(-2)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    """Of a bit that is 1 with probability p, in nats."""
    return torch.special.entr(p) + torch.special.entr(1 - p)
