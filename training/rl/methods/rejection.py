"""Rejection sampling: the best drawing of each prompt becomes a sample of ordinary training. With the model's own
`likelihood` as reward, this is the self-assessment of ILLUME (arXiv 2412.06673)."""

from collections.abc import Sequence

from mllm import Mllm, Processor
from mllm.text.templates import IGNORED, Sample

from ...lm.update import train_step
from ...run.backends import TorchEngine
from ...run.recipe import RlConfig
from ..drawings import Group, count_signals, finished
from ..policy import PADDED_TO


class Rejection:
    """See above."""

    needs_start = False

    def __init__(self, config: RlConfig):
        self.config = config

    def update(
        self, engine: TorchEngine, processor: Processor, start: Mllm | None, micro_batches: Sequence[list[Group]]
    ) -> dict[str, float]:
        if not count_signals(micro_batches):
            return {}
        batches = [
            processor.collate([self.sample(processor, group) for group in groups], multiple=PADDED_TO)
            for groups in micro_batches
        ]
        return train_step(engine, batches, self.config)()

    def sample(self, processor: Processor, group: Group) -> Sample:
        """The best drawing; without a signal, it carries no loss."""
        sample = finished(processor, group.drawings[group.best], self.config.plans)
        if not group.has_signal:
            sample.labels, sample.is_target = [IGNORED] * len(sample.ids), [False]
        return sample
