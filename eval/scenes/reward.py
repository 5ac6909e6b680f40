"""The detector of the scenes world as a reward of training: GenEval's rules (arXiv 2310.11513), clause by clause."""

from collections.abc import Callable, Sequence

from mllm import Mllm, Processor
from training.rl.drawings import Group
from training.run.recipe import RewardConfig

from ..geneval.rules import failures
from .detector import SHIPPED, Detector


def rules(config: RewardConfig, model: Mllm, processor: Processor) -> Callable[[Group], Sequence[float]]:
    """The share of the prompt's clauses that a drawing fulfils: 1 is what GenEval calls correct. `at` is the detector's
    folder, by default the shipped one's. Prompts need GenEval's fields, as those of scenes have."""
    detector = Detector.from_pretrained(config.at or SHIPPED).to(model.device)

    def values(group: Group) -> Sequence[float]:
        record = group.prompt.record
        if not {"tag", "include"} <= record.keys():
            raise ValueError("a prompt without GenEval's fields tag and include")
        clauses = len(record["include"]) + len(record.get("exclude", []))
        return [1 - len(failures(record, found)) / clauses for found in detector.detect(group.images)]

    return values
