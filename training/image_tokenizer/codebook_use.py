"""How the entries of the codebooks are used in training. Shapes: K sub-codebooks of V entries."""

import torch

from tokenizer.quantizers import count_codes

from ..run.distributed import sum_over_ranks


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
