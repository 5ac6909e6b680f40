"""Multi-codebook quantization (arXiv 2502.20321, section 3.2): each slice of a feature has its own codebook.

Shapes: N images, L positions, Q channels = K sub-codebooks x q channels, V entries per sub-codebook.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from .base import Across, Quantized, Quantizer, QuantizerOptions, Upkeep, count_codes


@dataclass
class MultiCodebookOptions(QuantizerOptions):
    """The defaults are UniTok's.

    `entropy_every` n takes the entropy loss over each n-th feature (0: not at all): on a CPU the whole of it is a fifth
    of a training step. `index_temperature` above 0 sends the gradient to all entries, through their shares in each
    choice (index backpropagation, IBQ, arXiv 2412.02692). `revive_after` steps without use, an entry moves to where
    features are (0: never).

    Of each image, a share of the codes, drawn between 0 and `perturbed`, is exchanged for one of the `nearest` other
    entries, as those that a language model gets wrong would be (RobustTok, arXiv 2503.08354). During a run, `perturbed`
    falls linearly to `perturbed_final` of itself, so that the decoder ends on cleaner codes.
    """

    entropy_every: int = 0
    perturbed: float = 0.0
    perturbed_final: float = 0.5
    nearest: int = 8
    revive_after: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("perturbed", "perturbed_final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"quantizer.{name}: {getattr(self, name)} is outside [0, 1]")
        for name in ("entropy_every", "revive_after"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"quantizer.{name}: {getattr(self, name)} is outside [0, inf); 0 goes without")
        if self.nearest < 1:
            raise ValueError(f"quantizer.nearest: {self.nearest} is below 1; without exchanged codes, perturbed is 0")

    def at(self, step: int, steps: int) -> Self:
        progress = step / max(1, steps - 1)
        return replace(self, perturbed=self.perturbed * (1 - (1 - self.perturbed_final) * progress))


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

    @classmethod
    def from_config(cls, config: Any, **more: Any) -> Self:
        return super().from_config(config, commitment=config.commitment, **more)

    def reset_parameters(self):
        # Unit rows: only directions count, and on the reference's tiny rows (norm 0.01) one Adam step of 1e-3 turns an
        # entry by many degrees, so that the decoder never sees the same codebook twice.
        nn.init.normal_(self.codebooks_KVq)
        with torch.no_grad():
            self.codebooks_KVq.copy_(self.entries())

    def entries(self) -> torch.Tensor:
        """The unit-length entries [K, V, q]."""
        return F.normalize(self.codebooks_KVq.float(), dim=-1)

    def slices(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        """Features as unit-length slices [K, N*L, q]."""
        z = features_NLQ.float().flatten(0, 1).unflatten(-1, (self.num_codebooks, -1)).transpose(0, 1)
        return F.normalize(z, dim=-1)

    def forward(self, features_NLQ: torch.Tensor, options: MultiCodebookOptions | None = None) -> Quantized:
        """`codes_NLK` are the nearest entries, perturbed or not."""
        options, (N, L, _) = options or MultiCodebookOptions(), features_NLQ.shape
        with torch.autocast(features_NLQ.device.type, enabled=False):
            z, e = self.slices(features_NLQ), self.entries()
            cosine = torch.bmm(z, e.mT)  # [K, N*L, V]
            codes = cosine.argmax(-1)
            q = _look_up(e, codes)
            loss = self.commitment * F.mse_loss(z, q.detach()) + F.mse_loss(q, z.detach())
            entropy_loss = loss.new_zeros(())
            if options.entropy_every:
                entropy_loss = _entropy_loss(cosine[:, :: options.entropy_every], self.temperature)
            shown, p = q, None
            if options.perturbed:
                share_N = options.perturbed * torch.rand(N, device=z.device)
                codes_NLK = self.perturb(codes.t().reshape(N, L, -1), share_N, options.nearest)
                shown = _look_up(e, codes_NLK.flatten(0, 1).t())
            if options.index_temperature:
                p = (cosine / options.index_temperature).softmax(-1)
                x = shown + torch.bmm(p - p.detach(), e)
            else:
                x = z + (shown - z).detach()
        features = x.permute(1, 0, 2).reshape(N, L, -1)
        return Quantized(features, codes.t().reshape(N, L, -1), loss, entropy_loss, p, z.detach())

    def encode(self, features_NLQ: torch.Tensor) -> torch.Tensor:
        N, L, _ = features_NLQ.shape
        with torch.autocast(features_NLQ.device.type, enabled=False):
            codes = torch.bmm(self.slices(features_NLQ), self.entries().mT).argmax(-1)
        return codes.t().reshape(N, L, -1)

    @torch.no_grad()
    def perturb(self, codes_NLK: torch.Tensor, share_N: torch.Tensor, nearest: int) -> torch.Tensor:
        """-> codes_NLK, each exchanged with the probability `share_N` of its image for one of the `nearest` other
        entries by cosine. Draws come from torch's global generator. Raises ValueError for a codebook without so many.
        """
        e = self.entries()
        K, V, _ = e.shape
        if nearest >= V:
            raise ValueError(f"quantizer.nearest: {nearest} other entries, but a sub-codebook has {V} in all")
        cosine = torch.bmm(e, e.mT) - 3 * torch.eye(V, device=e.device)  # an entry is not near itself
        near_KVn = cosine.topk(nearest).indices
        choice_NLK = torch.randint(nearest, codes_NLK.shape, device=e.device)
        other_NLK = near_KVn[torch.arange(K, device=e.device), codes_NLK, choice_NLK]
        return torch.where(torch.rand(codes_NLK.shape, device=e.device) < share_N[:, None, None], other_NLK, codes_NLK)

    def upkeep(self, options: MultiCodebookOptions, sum_over: Across, of_first: Across) -> "Revival | None":
        return Revival(self, options.revive_after, sum_over, of_first) if options.revive_after else None


class Revival(Upkeep):
    """Entries that no feature of any process chose for `after` steps move onto features of the present update."""

    def __init__(self, quantizer: MultiCodebookQuantizer, after: int, sum_over: Across, of_first: Across):
        self.quantizer, self.after, self.sum_over, self.of_first = quantizer, after, sum_over, of_first
        codebooks_KVq = quantizer.codebooks_KVq
        self.unused_KV = torch.zeros(codebooks_KVq.shape[:2], dtype=torch.long, device=codebooks_KVq.device)
        self._begin()

    def _begin(self) -> None:
        self.counts_KV, self.slices = torch.zeros_like(self.unused_KV, dtype=torch.float32), []

    def add(self, quantized: Quantized) -> None:
        self.counts_KV += count_codes(quantized.codes_NLK, self.unused_KV.shape[1])
        self.slices.append(quantized.slices_KMq)

    @torch.no_grad()
    def step(self) -> dict[str, torch.Tensor]:
        """-> `revived`, the number of entries moved. Whether there are any is not asked: that would wait for the
        device."""
        codebooks_KVq, slices_KMq = self.quantizer.codebooks_KVq, torch.cat(self.slices, 1)
        counts_KV = self.sum_over(self.counts_KV)
        self._begin()
        self.unused_KV = torch.where(counts_KV > 0, 0, self.unused_KV + 1)
        due_KV = self.unused_KV >= self.after
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


def _look_up(entries_KVq: torch.Tensor, codes_KM: torch.Tensor) -> torch.Tensor:
    return torch.gather(entries_KVq, 1, codes_KM[..., None].expand(-1, -1, entries_KVq.shape[-1]))


def _entropy_loss(cosine: torch.Tensor, temperature: float) -> torch.Tensor:
    log_p = (2 * (cosine - 1) / temperature).log_softmax(-1)  # -|z - e|^2 / T for unit vectors
    p = log_p.exp()
    per_sample = -(p * log_p).sum(-1).mean()
    mean = p.mean(1)
    return per_sample + (mean * (mean + 1e-7).log()).sum(-1).mean()
