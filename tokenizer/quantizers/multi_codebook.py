"""Multi-codebook quantization (arXiv 2502.20321, section 3.2): each slice of a feature has its own codebook.

Shapes: N images, L positions, M = N * L, Q channels = K sub-codebooks x q channels, V entries per sub-codebook.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .base import Across, EntropyOptions, Quantized, Quantizer, Upkeep, closeness, count_codes


@dataclass
class MultiCodebookOptions(EntropyOptions):
    """The defaults are UniTok's.

    `revive_after` steps without use, an entry moves to where features are (0: never). After update `k_means_at`, all
    entries move to the centres of its features (0: never), as in DiGIT (arXiv 2410.12490), whose encoder is frozen.
    """

    revive_after: int = 0
    k_means_at: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.check_from_zero("revive_after", "k_means_at")


class MultiCodebookQuantizer(Quantizer):
    """K independent codebooks of V l2-normalised entries; nearest entry by cosine."""

    Options = MultiCodebookOptions

    def __init__(
        self, width: int, num_codebooks: int, codebook_size: int, commitment: float = 0.25, temperature: float = 0.01
    ):
        super().__init__(width, num_codebooks, codebook_size)
        self.commitment, self.temperature = commitment, temperature
        self.codebooks_KVq = nn.Parameter(torch.empty(num_codebooks, codebook_size, self.slice_width))
        self.reset_parameters()

    def reset_parameters(self):
        # Unit rows: only directions count, and on the reference's tiny rows (norm 0.01) one Adam step of 1e-3 turns an
        # entry by many degrees, so that the decoder never sees the same codebook twice.
        nn.init.normal_(self.codebooks_KVq)
        with torch.no_grad():
            self.codebooks_KVq.copy_(self.entries())

    def entries(self) -> torch.Tensor:
        """The unit-length entries [K, V, q]."""
        return F.normalize(self.codebooks_KVq.float(), dim=-1)

    def bound(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        """Each slice with unit length."""
        slices = features_NLQ.float().unflatten(-1, (self.num_codebooks, -1))
        return F.normalize(slices, dim=-1).flatten(-2)

    def scores(self, z_KMq: torch.Tensor) -> torch.Tensor:
        """Cosines."""
        return torch.bmm(z_KMq, self.entries().mT)

    def loss(self, z_KMq: torch.Tensor, q_KMq: torch.Tensor) -> torch.Tensor:
        return self.commitment * F.mse_loss(z_KMq, q_KMq.detach()) + F.mse_loss(q_KMq, z_KMq.detach())

    def entropy_loss(self, z_KMq: torch.Tensor, options: MultiCodebookOptions) -> torch.Tensor:
        if not options.entropy_every:
            return z_KMq.new_zeros(())
        squared_KMV = -2 * self.scores(z_KMq[:, :: options.entropy_every])  # but for what all have in common
        log_p = (-squared_KMV / self.temperature).log_softmax(-1)
        p = log_p.exp()
        mean = p.mean(1)
        return -(p * log_p).sum(-1).mean() + (mean * (mean + 1e-7).log()).sum(-1).mean()

    def centres(self, z_KMq: torch.Tensor) -> torch.Tensor:
        """What codebooks begin from, [K, V, q], where features are `z_KMq`."""
        return k_means(z_KMq, self.codebook_size)

    def upkeep(self, options: MultiCodebookOptions, sum_over: Across, of_first: Across) -> "CodebookUpkeep | None":
        wanted = options.revive_after or options.k_means_at
        return CodebookUpkeep(self, options, sum_over, of_first) if wanted else None


class CodebookUpkeep(Upkeep):
    """Entries that no feature of any process chose for `revive_after` steps move onto features of the present update;
    once, all move to centres of features."""

    def __init__(
        self, quantizer: MultiCodebookQuantizer, options: MultiCodebookOptions, sum_over: Across, of_first: Across
    ):
        self.quantizer, self.options, self.sum_over, self.of_first = quantizer, options, sum_over, of_first
        codebooks_KVq = quantizer.codebooks_KVq
        self.unused_KV = torch.zeros(codebooks_KVq.shape[:2], dtype=torch.long, device=codebooks_KVq.device)
        self._begin()

    def _begin(self) -> None:
        self.counts_KV, self.slices = torch.zeros_like(self.unused_KV, dtype=torch.float32), []

    def add(self, quantized: Quantized) -> None:
        self.counts_KV += count_codes(quantized.codes_NLK, self.unused_KV.shape[1])
        self.slices.append(quantized.slices_KMq)

    @torch.no_grad()
    def step(self, update: int) -> dict[str, torch.Tensor]:
        """-> `revived`, the number of entries moved. Whether there are any is not asked: that would wait for the
        device."""
        codebooks_KVq, slices_KMq = self.quantizer.codebooks_KVq, torch.cat(self.slices, 1)
        counts_KV = self.sum_over(self.counts_KV)
        self._begin()
        if update == self.options.k_means_at:
            codebooks_KVq.copy_(self.of_first(self.quantizer.centres(slices_KMq).to(codebooks_KVq)))
            counts_KV = torch.ones_like(counts_KV)
        self.unused_KV = torch.where(counts_KV > 0, 0, self.unused_KV + 1)
        due_KV = self.unused_KV >= (self.options.revive_after or torch.inf)
        chosen_KV = torch.randint(slices_KMq.shape[1], due_KV.shape, device=due_KV.device)
        features_KVq = slices_KMq.gather(1, chosen_KV[..., None].expand_as(codebooks_KVq)).contiguous()
        features_KVq = self.of_first(features_KVq).to(codebooks_KVq)
        codebooks_KVq.copy_(torch.where(due_KV[..., None], features_KVq, codebooks_KVq))
        self.unused_KV.masked_fill_(due_KV, 0)
        return {"revived": due_KV.sum()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"unused_KV": self.unused_KV}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.unused_KV.copy_(state["unused_KV"])


def k_means(points_KMq: torch.Tensor, count: int, rounds: int = 10) -> torch.Tensor:
    """-> centres [K, count, q] of K sets of M points, by Lloyd's algorithm from random points, each another one where M
    is large enough. Without a point, a centre stays."""
    order_KM = torch.rand(points_KMq.shape[:2], device=points_KMq.device).argsort(1)
    chosen_KV = order_KM[:, torch.arange(count, device=points_KMq.device) % points_KMq.shape[1]]
    centres_KVq = points_KMq.gather(1, chosen_KV[..., None].expand(-1, -1, points_KMq.shape[-1]))
    for _ in range(rounds):
        nearest_KM1 = closeness(points_KMq, centres_KVq).argmax(-1, keepdim=True)
        sums_KVq = torch.zeros_like(centres_KVq).scatter_add_(1, nearest_KM1.expand_as(points_KMq), points_KMq)
        counts_KV1 = count_codes(nearest_KM1.transpose(0, 2), count)[..., None]
        centres_KVq = torch.where(counts_KV1 > 0, sums_KVq / counts_KV1.clamp(min=1), centres_KVq)
    return centres_KVq
