"""Group relative policy optimization (arXiv 2402.03300), on ids of plans and on codes.

For each id or code, with the ratio r of its probabilities now and in generation, and the advantage A of its drawing:
    min(r A, clip(r, 1 - c, 1 + c) A) - kl (q / p - log(q / p) - 1),  p: its probability now, q: that at the start.
A drawing's objective is the mean over its ids, of weight 1, and codes, of weight `code_weight`; the loss is the
negative mean over all drawings of all ranks whose prompts carry a signal.
Shapes: N drawings of a micro-batch, n of a prompt, L positions an image, K sub-codebooks, A ids chosen in all plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mllm import Mllm, Processor
from tokenizer import ImageTokenizer

from ...run.backends import TorchEngine, read_norm
from ...run.distributed import sum_over_ranks
from ...run.recipe import RlConfig
from ..drawings import Group, count_signals
from ..policy import PolicyOutput, Scored, frozen_pass
from ..weights import WEIGHTS, code_weights

NAMES = ("kl", "ratio", "clipped", "mismatch", "masked")  # means over ids and codes, in the last pass


@dataclass
class Judged:
    """A micro-batch: its drawings, their advantages, whether they count, their log-probabilities at the start, and,
    from the first pass on, where generation and training agree (of ids [A], of codes [N, L, K])."""

    scored: Scored
    advantages_N: torch.Tensor
    counts_N: torch.Tensor
    start: PolicyOutput | None
    kept: tuple[torch.Tensor, torch.Tensor] | None = None


class Grpo:
    """See above. Each pass of a step is an update from the same drawings."""

    def __init__(self, config: RlConfig):
        self.config, self.needs_start = config, config.grpo.kl > 0
        for name in config.grpo.weights:
            if name not in WEIGHTS:
                raise ValueError(f"recipe, grpo.weights: unknown {name!r}; known: {', '.join(WEIGHTS)}")

    def update(
        self, engine: TorchEngine, processor: Processor, start: Mllm | None, micro_batches: Sequence[list[Group]]
    ) -> dict[str, float]:
        config = self.config
        count = config.group * count_signals(micro_batches)
        if not count:
            return {}
        batches = [self.judged(engine, processor, start, groups) for groups in micro_batches]
        for _ in range(config.grpo.passes):
            sums = torch.zeros(2 + len(NAMES), dtype=torch.double)
            for place, batch in enumerate(batches):
                output = engine.forward(**batch.scored.inputs)
                batch.kept = batch.kept or agreeing(output, batch.scored, config.grpo.mismatch)
                loss, told = self.loss(output, batch, engine.image_tokenizer)
                engine.backward(loss / count, last=place == len(batches) - 1)
                sums += torch.tensor([loss.item(), *told], dtype=torch.double)
            sum_over_ranks(sums)
            if not torch.isfinite(sums).all():
                raise ValueError("the loss is not finite; stopped before the update: lower optim.lr")
            norm = read_norm(engine.step())
        means = dict(zip(NAMES, (sums[2:] / sums[1].clamp(min=1)).tolist(), strict=True))
        if not self.needs_start:
            del means["kl"]
        return {"loss": sums[0].item() / count, "grad_norm": norm, **means}

    def judged(self, engine: TorchEngine, processor: Processor, start: Mllm | None, groups: Sequence[Group]) -> Judged:
        drawings = [drawing for group in groups for drawing in group.drawings]
        scored = Scored(drawings, processor, self.config.drawing, engine.device)
        advantages_N = torch.cat([advantages_of(group) for group in groups]).to(engine.device)
        counts_G = torch.tensor([group.has_signal for group in groups], device=engine.device)
        counts_N = counts_G.repeat_interleave(self.config.group)
        return Judged(scored, advantages_N, counts_N, frozen_pass(start, scored, engine))

    def loss(
        self, output: PolicyOutput, batch: Judged, image_tokenizer: ImageTokenizer
    ) -> tuple[torch.Tensor, list[float]]:
        """The negative sum of the drawings' objectives; and over the ids and codes of drawings that count: how many
        there are, and the sums of `NAMES`."""
        config, scored, start = self.config, batch.scored, batch.start
        text_kept, codes_kept = batch.kept
        text_A, text_told = self._terms(
            output.text_logps,
            scored.text_logps,
            None if start is None else start.text_logps,
            batch.advantages_N[scored.owners],
            batch.counts_N[scored.owners] & config.plans,
            text_kept,
        )
        shape = scored.code_logps.shape
        codes_NLK, codes_told = self._terms(
            output.code_logps.view(shape),
            scored.code_logps,
            None if start is None else start.code_logps.view(shape),
            batch.advantages_N[:, None, None],
            batch.counts_N[:, None, None].expand(shape),
            codes_kept,
        )
        entropies_NLK = output.entropies.view(shape)
        weights_NLK = code_weights(config.grpo.weights, scored.codes, entropies_NLK, config.group, image_tokenizer)
        codes_N = (weights_NLK * codes_NLK).sum((1, 2))
        lengths_N = scored.of_drawings(torch.ones_like(text_A)) * config.plans
        weights_N = lengths_N + config.code_weight * codes_NLK[0].numel()
        objectives_N = (scored.of_drawings(text_A) + config.code_weight * codes_N) / weights_N
        return -objectives_N.sum(), [one + other for one, other in zip(text_told, codes_told, strict=True)]

    def _terms(
        self,
        logps: torch.Tensor,
        drawn: torch.Tensor,
        start: torch.Tensor | None,
        advantages: torch.Tensor,
        counts: torch.Tensor,
        kept: torch.Tensor,
    ) -> tuple[torch.Tensor, list[float]]:
        """The objective of each id or code, 0 where it does not count or is not kept; and what `loss` tells."""
        # What is left out may be infinite, and 0 times its gradient no number.
        clip, ratio = self.config.grpo.clip, torch.where(kept, logps - drawn, 0.0).exp()
        gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
        divergence = torch.zeros_like(logps)
        if start is not None:
            apart = start - logps
            divergence = apart.exp() - apart - 1
        with torch.no_grad():
            told = [divergence, ratio, ratio * advantages > gain, (logps - drawn).abs(), ~kept]
            sums = [counts.sum().item(), *(one[counts].sum().item() for one in told)]
        return torch.where(counts & kept, gain - self.config.grpo.kl * divergence, 0.0), sums


def advantages_of(group: Group) -> torch.Tensor:
    """[n]: how much better each drawing is than the mean of its group, in standard deviations; 0 without a signal."""
    if not group.has_signal:
        return torch.zeros(len(group.drawings))
    apart = group.rewards - group.rewards.mean()
    return (apart / (group.rewards.std() + 1e-6)).float()


def agreeing(output: PolicyOutput, batch: Scored, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Where generation and training agree on a log-probability: of ids [A], of codes [N, L, K]."""
    text = (output.text_logps.detach() - batch.text_logps).abs() <= limit
    codes = (output.code_logps.detach().view_as(batch.code_logps) - batch.code_logps).abs() <= limit
    return text, codes
