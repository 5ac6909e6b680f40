"""How the entries of the codebooks are used in training, and new places for those that are not.

Shapes: K sub-codebooks of V entries with q channels, M features.
"""

import torch

from tokenizer.quantizer import MultiCodebookQuantizer, Quantized

from ..run.distributed import from_rank_zero, sum_over_ranks


class CodeCounts:
    """How often each entry was chosen since the last report."""

    def __init__(self, num_codebooks: int, codebook_size: int):
        self.counts_KV = torch.zeros(num_codebooks, codebook_size)

    def add(self, codes_NLK: torch.Tensor) -> None:
        self.counts_KV += count_codes(codes_NLK, self.counts_KV.shape[1]).cpu()

    def report(self) -> dict[str, float]:
        """Of all ranks, which must all ask: share of entries used and perplexity (of V) of each sub-codebook, and the
        mean of each; begins anew."""
        counts_KV = sum_over_ranks(self.counts_KV)
        p_KV = counts_KV / counts_KV.sum(1, keepdim=True).clamp(min=1)
        usage_K = (counts_KV > 0).float().mean(1)
        perplexity_K = torch.exp(-(p_KV * p_KV.clamp(min=1e-12).log()).sum(1))
        self.counts_KV = torch.zeros_like(counts_KV)
        each = {"usage": usage_K, "perplexity": perplexity_K}
        rows = {f"{name}/{k}": value for name, values in each.items() for k, value in enumerate(values.tolist())}
        return {**{name: values.mean().item() for name, values in each.items()}, **rows}


class Revival:
    """Entries that no feature of any rank chose for `after` steps move onto features of the present update."""

    def __init__(self, quantizer: MultiCodebookQuantizer, after: int):
        self.quantizer, self.after = quantizer, after
        self.unused_KV = torch.zeros(quantizer.codebooks_KVq.shape[:2], dtype=torch.long)
        self._begin()

    def _begin(self) -> None:
        self.counts_KV, self.slices = torch.zeros(self.unused_KV.shape), []

    def add(self, quantized: Quantized) -> None:
        """A micro-batch of the update."""
        self.counts_KV += count_codes(quantized.codes_NLK, self.unused_KV.shape[1]).cpu()
        self.slices.append(quantized.slices_KMq)

    @torch.no_grad()
    def step(self) -> int:
        """Count one update, of what was added, and move what is due; all ranks must call. -> entries moved."""
        codebooks_KVq, slices_KMq = self.quantizer.codebooks_KVq, torch.cat(self.slices, 1)
        counts_KV = sum_over_ranks(self.counts_KV)
        self._begin()
        self.unused_KV = torch.where(counts_KV > 0, 0, self.unused_KV + 1)
        due_KV = self.unused_KV >= self.after
        if not due_KV.any():
            return 0
        chosen_KV = torch.randint(slices_KMq.shape[1], due_KV.shape).to(codebooks_KVq.device)
        features_KVq = slices_KMq.gather(1, chosen_KV[..., None].expand_as(codebooks_KVq)).contiguous()
        features_KVq = from_rank_zero(features_KVq).to(codebooks_KVq)
        moved_KV1 = due_KV.to(codebooks_KVq.device)[..., None]
        codebooks_KVq.copy_(torch.where(moved_KV1, features_KVq, codebooks_KVq))
        self.unused_KV[due_KV] = 0
        return int(due_KV.sum())


def count_codes(codes_NLK: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """-> [K, V], float."""
    codes_MK = codes_NLK.flatten(0, -2)
    return torch.stack([torch.bincount(codes_M, minlength=codebook_size) for codes_M in codes_MK.T]).float()
