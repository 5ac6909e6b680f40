"""One code for two codebooks (TokenFlow, arXiv 2412.03069): of each entry, one half is meaning and one half pixels.

Shapes: N images, L positions, M = N * L, Q channels = K sub-codebooks x q channels, V entries per sub-codebook.
"""

import torch
import torch.nn.functional as F

from .multi_codebook import MultiCodebookQuantizer


class SharedIndexQuantizer(MultiCodebookQuantizer):
    """Both halves of an entry have unit length; the chosen entry has the least sum of both squared distances, that of
    the second half counting `pixel_weight` times. Raises ValueError where q is odd, and for a negative weight.
    """

    def __init__(
        self,
        width: int,
        num_codebooks: int,
        codebook_size: int,
        commitment: float = 0.25,
        temperature: float = 0.01,
        pixel_weight: float = 1.0,
    ):
        q = width // num_codebooks
        if q % 2:
            raise ValueError(f"shared_index halves a code's {q} channels (code_width / num_codebooks): make them even")
        if not 0 <= pixel_weight < float("inf"):
            raise ValueError(f"quantizer_args: pixel_weight {pixel_weight} is outside [0, inf)")
        super().__init__(width, num_codebooks, codebook_size, commitment, temperature)
        self.register_buffer("weights_q", torch.tensor([1.0, pixel_weight]).repeat_interleave(q // 2))

    def entries(self) -> torch.Tensor:
        return _unit_halves(self.codebooks_KVq.float())

    def bound(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        return _unit_halves(features_NLQ.float().unflatten(-1, (self.num_codebooks, -1))).flatten(-2)

    def scores(self, z_KMq: torch.Tensor) -> torch.Tensor:
        """Cosines of the halves, the second ones weighted, added up."""
        return super().scores(z_KMq * self.weights_q)


def _unit_halves(x: torch.Tensor) -> torch.Tensor:
    """Both halves of the last dimension with unit length."""
    return F.normalize(x.unflatten(-1, (2, -1)), dim=-1).flatten(-2)
