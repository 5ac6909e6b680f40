"""Direct preference optimization (arXiv 2305.18290) on the best and the worst drawing of each prompt:
    -log sigmoid(beta [(log p(best) - log q(best)) - (log p(worst) - log q(worst))]),
p and q of a whole drawing, plan and codes, now and at the start; the mean over all prompts that carry a signal.
Shapes: G prompts of a micro-batch, N = 2 G drawings.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mllm import Mllm, Processor

from ...run.backends import TorchEngine, read_norm
from ...run.distributed import sum_over_ranks
from ...run.recipe import RlConfig
from ..drawings import Drawing, Group, count_signals
from ..policy import PolicyOutput, Scored, frozen_pass


class Dpo:
    """See above."""

    needs_start = True

    def __init__(self, config: RlConfig):
        self.config = config

    def update(
        self, engine: TorchEngine, processor: Processor, start: Mllm | None, micro_batches: Sequence[list[Group]]
    ) -> dict[str, float]:
        config, device = self.config, engine.device
        count = count_signals(micro_batches)
        if not count:
            return {}
        sums = torch.zeros(3, dtype=torch.double)
        for place, groups in enumerate(micro_batches):
            batch = Scored(pairs(groups), processor, config.drawing, device)
            at_start = self.log_probabilities(frozen_pass(start, batch, engine), batch)
            now = self.log_probabilities(engine.forward(**batch.inputs), batch)
            better_G, worse_G = (now - at_start).view(-1, 2).unbind(1)
            margin_G = better_G - worse_G
            counts_G = torch.tensor([float(group.has_signal) for group in groups], device=device)
            loss = -(F.logsigmoid(config.dpo.beta * margin_G) * counts_G).sum()
            engine.backward(loss / count, last=place == len(micro_batches) - 1)
            told = [loss, (margin_G * counts_G).sum(), ((margin_G > 0) * counts_G).sum()]
            sums += torch.stack(told).detach().double().cpu()
        sum_over_ranks(sums)
        if not torch.isfinite(sums).all():
            raise ValueError("the loss is not finite; stopped before the update: lower optim.lr")
        loss, margin, right = (sums / count).tolist()
        return {"loss": loss, "grad_norm": read_norm(engine.step()), "margin": margin, "preferred": right}

    def log_probabilities(self, output: PolicyOutput, batch: Scored) -> torch.Tensor:
        """Of whole drawings, [N]."""
        codes_N = output.code_logps.view_as(batch.code_logps).sum((1, 2))
        return codes_N + self.config.plans * batch.of_drawings(output.text_logps)


def pairs(groups: Sequence[Group]) -> list[Drawing]:
    """The best and the worst drawing of each group."""
    return [group.drawings[place] for group in groups for place in (group.best, group.worst)]
