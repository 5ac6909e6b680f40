"""From logits to ids: filters, sampling, and guidance. The ids of a row depend on its own generator, not on the batch.

Shapes: B sequences, V entries, K sub-codebooks. Under guidance there are more rows, [conditional; unconditional].
"""

import math
from collections.abc import Collection, Sequence

import torch

from ..device import send, sync_is_free
from .options import Sampling

UNCHANGED = Sampling(temperature=1.0)  # the probabilities of the model
NONE = -1  # in place of an id, where there is nothing to choose from
LEAST_TOP_P = torch.finfo(torch.float32).tiny  # what is smaller would be 0 in float32, and drop the most likely, too


class NotFinite(ValueError):
    """The model computes NaN or infinity."""

    def __init__(self, what: str = "logits"):
        super().__init__(
            f"the model's {what} are not finite (NaN or infinity): its weights are damaged, or its precision too low"
        )


def check_chosen(least: int) -> None:
    """Raises NotFinite if the least of some ids is `NONE`."""
    if least == NONE:
        raise NotFinite


def filter_logits(logits_BV: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """-inf outside the `top_k` largest (0: all) and outside the smallest set that holds probability `top_p`."""
    if 0 < top_k < logits_BV.shape[-1]:
        lowest = logits_BV.topk(top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < lowest, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits_BV.sort(-1, descending=True)
        p = ordered.softmax(-1)
        # An entry is dropped when those before it hold top_p already, so the most likely one always stays.
        outside = (p.cumsum(-1) - p >= top_p).scatter(-1, order, p.cumsum(-1) - p >= top_p)
        logits_BV = logits_BV.masked_fill(outside, float("-inf"))
    return logits_BV


def sample(
    logits_BV: torch.Tensor,
    noise_BV: torch.Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> torch.Tensor:
    """Draw ids_B from what `filter_logits` keeps, with Gumbel `noise_BV`; temperature 0 is greedy. A row gets `NONE` if
    one of its logits is NaN or +inf, or if all are -inf (which forbids an entry); see `check_chosen`.

    On a CPU nothing is sorted. The entry with the largest sum of logit and noise is a draw from all entries. If the
    filters drop that entry, they also drop all with smaller logits, so `sample_by_search` looks among those with larger
    ones.
    """
    logits_BV, top_p = logits_BV.float() / (temperature or 1.0), max(top_p, LEAST_TOP_P)
    usable_B = logits_BV.amax(-1).isfinite()  # of NaN and any number, the larger is NaN
    if temperature == 0:
        ids_B = logits_BV.argmax(-1)
    elif (top_k == 0 and top_p == 1.0) or not sync_is_free(logits_BV.device):
        ids_B = sample_by_sorting(logits_BV, noise_BV, top_k, top_p)
    else:
        # With NaN the search would never end.
        ids_B = sample_by_search(logits_BV.masked_fill(~usable_B[:, None], 0), noise_BV, top_k, top_p)
    return ids_B.masked_fill(~usable_B, NONE)


def sample_by_search(logits_BV: torch.Tensor, noise_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """`sample` with filters, without sorting. Its loop reads values, for which a GPU would have to be waited for."""
    noisy_BV = logits_BV + noise_BV
    p_BV = filter_logits(logits_BV, top_k).softmax(-1) if top_p < 1.0 else None
    while True:
        ids_B1 = noisy_BV.argmax(-1, keepdim=True)
        least_B1 = logits_BV.gather(-1, ids_B1)
        above_BV = logits_BV > least_B1
        outside_B1 = above_BV.sum(-1, keepdim=True) >= (top_k or math.inf)
        if p_BV is not None:
            outside_B1 |= (p_BV * above_BV).sum(-1, keepdim=True) >= top_p
        if not outside_B1.any():
            return ids_B1[:, 0]
        noisy_BV = noisy_BV.masked_fill(outside_B1 & ~above_BV, float("-inf"))


def sample_by_sorting(logits_BV: torch.Tensor, noise_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The same ids as `sample_by_search`, by sorting, so that no value is read on the way."""
    return (filter_logits(logits_BV, top_k, top_p) + noise_BV).argmax(-1)


def gumbel(generators: Sequence[torch.Generator], size: int, device: torch.device) -> torch.Tensor:
    """Gumbel noise [B, size], each row from its own generator.

    The argmax of logits plus Gumbel noise is a draw from their softmax. Unlike `torch.multinomial`, it needs no sum
    over the row, whose rounding would depend on the batch.
    """
    uniform = torch.empty(len(generators), size, pin_memory=device.type == "cuda")
    for row, generator in zip(uniform, generators, strict=True):
        row.uniform_(generator=generator)
    return send(uniform.clamp_min_(1e-20), device).log_().neg_().log_().neg_()


def only(logits_BV: torch.Tensor, among: Collection[int] | None) -> torch.Tensor:
    """The logits with -inf for all but the ids `among` (None: all)."""
    if among is None:
        return logits_BV
    others = torch.ones(logits_BV.shape[1], dtype=torch.bool)
    others[list(among)] = False
    return logits_BV.masked_fill(send(others, logits_BV.device), float("-inf"))


class Picker:
    """Classifier-free guidance (arXiv 2207.12598), logits = u + scale * (c - u), then sampling. With two scales, the
    rows are [c; i; u], and logits = u + second * (i - u) + first * (c - i) (arXiv 2211.09800). A call returns the ids
    of the conditional rows, then the same ids for each of the others; without scales there are no others. The noise of
    all sub-codes of a position is drawn at the first of them. step.cpp does the same in C++.

    With `scored`, `logps` gets the log-probabilities of the ids of each sub-code, [B]: under guidance and at the
    temperature, before top-k and top-p."""

    def __init__(
        self,
        cfg_scales: tuple[float, ...],
        generators: Sequence[torch.Generator],
        num_codebooks: int = 1,
        sampling: Sampling = UNCHANGED,
        scored: bool = False,
    ):
        self.cfg_scales, self.generators, self.num_codebooks = cfg_scales, generators, num_codebooks
        self.sampling, self.scored = sampling, scored
        self.logps: list[torch.Tensor] = []
        self.noise_BN: torch.Tensor | None = None

    def draw_noise(self, entries: int, device: torch.device) -> torch.Tensor | None:
        """Noise [B, K * V] for all sub-codes of a position; None for greedy choice."""
        return gumbel(self.generators, self.num_codebooks * entries, device) if self.sampling.temperature else None

    def __call__(self, logits_BV: torch.Tensor, k: int) -> torch.Tensor:
        if k == 0:
            self.noise_BN = self.draw_noise(logits_BV.shape[-1], logits_BV.device)
        return self.choose(logits_BV, k, self.noise_BN)

    def choose(self, logits_BV: torch.Tensor, k: int, noise_BN: torch.Tensor | None) -> torch.Tensor:
        """The ids of sub-code k, with the noise of its position."""
        if self.cfg_scales:
            *above, below, uncond = logits_BV.float().chunk(1 + len(self.cfg_scales))
            logits_BV = torch.lerp(uncond, below, self.cfg_scales[-1])
            if above:
                logits_BV = torch.add(logits_BV, above[0] - below, alpha=self.cfg_scales[0])
        V = logits_BV.shape[-1]
        noise_BV = None if noise_BN is None else noise_BN[:, k * V : (k + 1) * V]
        how = self.sampling
        ids_B = sample(logits_BV, noise_BV, how.temperature, how.top_k, how.top_p)
        if self.scored:
            scores_BV = (logits_BV.float() / (how.temperature or 1.0)).log_softmax(-1)
            self.logps.append(scores_BV.gather(-1, ids_B.clamp(min=0)[:, None])[:, 0])
        return ids_B.repeat(1 + len(self.cfg_scales))
