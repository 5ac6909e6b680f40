"""Groups of drawings: all images of some prompts, drawn by the fast kernels as one batch.

Shapes: n drawings of a prompt, L positions an image, K sub-codebooks, A ids of a plan that the model chose.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from mllm import Mllm, Processor
from mllm.decode.batch import Batch
from mllm.decode.options import DrawingOptions
from mllm.decode.program import Steps, Track, draw_steps, plan_steps, unconditional
from mllm.decode.run import run_tracks
from mllm.text.templates import IGNORED, Sample

from ..run.distributed import sum_over_ranks
from .prompts import Prompt


@dataclass
class Drawing:
    """A drawing as a sequence: in `sample`, up to the last position of its image, the ids that the model chose are text
    targets. `text_logps` [A] and `code_logps` [L, K] are the log-probabilities by which they were drawn."""

    sample: Sample
    text_logps: torch.Tensor
    code_logps: torch.Tensor

    @property
    def codes(self) -> torch.Tensor:
        """[L, K]"""
        return self.sample.images[0]

    @property
    def plan_length(self) -> int:
        """How many ids the model chose before the image."""
        return len(self.text_logps)


@dataclass
class Group:
    """The drawings of a prompt. `parts` has the values of each reward, `rewards` their weighted sum, [n]; `problem`
    says why there is no sum."""

    prompt: Prompt
    drawings: list[Drawing]
    images: list[Image.Image]
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    rewards: torch.Tensor | None = None
    problem: str = ""

    @property
    def codes(self) -> torch.Tensor:
        """[n, L, K]"""
        return torch.stack([drawing.codes for drawing in self.drawings])

    @property
    def has_signal(self) -> bool:
        """Whether the rewards tell one drawing from another."""
        return self.rewards is not None and bool((self.rewards.max() - self.rewards.min()) > 1e-6)

    @property
    def best(self) -> int:
        return int(self.rewards.argmax()) if self.has_signal else 0

    @property
    def worst(self) -> int:
        return int(self.rewards.argmin()) if self.has_signal else 1


def count_signals(micro_batches: Sequence[list[Group]]) -> int:
    """How many prompts of all ranks carry a signal."""
    mine = sum(group.has_signal for groups in micro_batches for group in groups)
    return int(sum_over_ranks(torch.tensor(float(mine))))


def drawing_seed(seed: int, position: int, number: int) -> int:
    """Of drawing `number` of the prompt at a position of the run."""
    return (seed * 1_000_003 + position) * 1009 + number


def draw_groups(
    model: Mllm,
    processor: Processor,
    asked: Sequence[tuple[Prompt, Sample]],
    seeds: Sequence[Sequence[int]],
    options: DrawingOptions,
) -> list[Group]:
    """As many drawings of each prompt as it has seeds. A drawing depends on its prompt and seed, not on the others. The
    model is in `eval` mode, and its weights are whole. Raises ValueError for weights that are damaged."""
    L, room = processor.num_positions, model.config.plan_length + processor.num_positions
    rest = unconditional(processor, options)

    def steps(track: Track) -> Steps:
        plan = yield from plan_steps(model, processor, options)
        return plan, (yield from draw_steps(track, model.order, L))

    tracks = [
        Track(start, steps, torch.Generator().manual_seed(one), room, options, unconditional=rest, scored=True)
        for (_, start), of_prompt in zip(asked, seeds, strict=True)
        for one in of_prompt
    ]
    with torch.no_grad():
        run_tracks(Batch(model, processor), tracks)
        drawings = [as_drawing(model, processor, track) for track in tracks]
        images = iter(model.decode_image_tokens(torch.stack([drawing.codes for drawing in drawings])))
    drawn, groups = iter(drawings), []
    for (prompt, _), of_prompt in zip(asked, seeds, strict=True):
        groups.append(Group(prompt, [next(drawn) for _ in of_prompt], [next(images) for _ in of_prompt]))
    return groups


def as_drawing(model: Mllm, processor: Processor, track: Track) -> Drawing:
    """A track that has ended, as a sequence."""
    plan, codes_LK = track.result
    chosen = len(track.logps) - len(codes_LK)  # ids: those of the plan, and its end, if the model chose that, too
    sample = Sample([*track.sample.ids], [IGNORED] * len(track.sample.ids))
    sample.add(plan, target=True)
    if sample.ids[-1] != processor.boi_id:
        sample.add([processor.boi_id], target=chosen > len(plan))
    sample.add([processor.image_id] * processor.num_positions)
    sample.images, sample.is_target = [codes_LK.cpu()], [True]
    text_logps = torch.stack(track.logps[:chosen]).cpu() if chosen else torch.zeros(0)
    return Drawing(sample, text_logps, model.order.of_places(torch.stack(track.logps[chosen:]), 0).cpu())


def finished(processor: Processor, drawing: Drawing, plans: bool) -> Sample:
    """A drawing as a sample of ordinary training, with the ends of image and answer. Without `plans`, only its codes
    and these ends are targets."""
    sample = drawing.sample
    labels = list(sample.labels) if plans else [IGNORED] * len(sample.ids)
    whole = Sample(list(sample.ids), labels, images=list(sample.images), is_target=[True])
    whole.add([processor.eoi_id, processor.eos_id], target=True)
    return whole
