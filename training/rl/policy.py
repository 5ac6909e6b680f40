"""Log-probabilities of drawings in training: each id of a plan by the backbone, each code by the code head, under the
temperature and the guidance that they were drawn with.

Shapes: N drawings, L positions an image, P = N * L, K sub-codebooks, V entries each, A ids chosen in all plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mllm import Mllm, Processor
from mllm.decode.options import DrawingOptions
from mllm.decode.sampling import only
from mllm.device import send
from mllm.model import MllmOutput
from mllm.text.templates import IGNORED, Sample

from ..lm.update import inputs_of
from ..run.backends import TorchEngine
from ..run.device import autocast
from .drawings import Drawing

PADDED_TO = 16  # as in ordinary training


@dataclass
class PolicyOutput(MllmOutput):
    """`text_logps` [A], `code_logps` [P, K], and the entropies of the distributions of codes, [P, K], without
    gradient."""

    text_logps: torch.Tensor | None = None
    code_logps: torch.Tensor | None = None
    entropies: torch.Tensor | None = None


class PolicyMllm(Mllm):
    """With `options`, a pass gives the log-probabilities of drawings (`Scored.inputs`); without, it is an Mllm's."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        is_target: torch.Tensor | None = None,
        options: DrawingOptions | None = None,
        among: frozenset[int] | None = None,
        **inputs: Any,
    ) -> MllmOutput:
        if options is None:
            return super().forward(input_ids, codes, is_target, labels=labels, **inputs)
        x_BTD = self.embed(input_ids, codes, is_target=is_target)
        chosen_BT, images = labels[:, 1:] != IGNORED, torch.arange(len(codes), device=codes.device)
        h_BTD = self.run_layers(x_BTD, input_ids, images, options.steps, use_cache=False).last_hidden_state
        h_CD = h_BTD[:, : chosen_BT.shape[1]][chosen_BT]  # without queries after the row
        text_logits = only(self.text_logits(h_CD), among).float() / options.temperature
        text_logps = -F.cross_entropy(text_logits, labels[:, 1:][chosen_BT], reduction="none")
        L = codes.shape[1]
        h_PD, codes_PK = (x.flatten(0, 1) for x in self.predictors(h_BTD, input_ids, codes, images))
        logits_PKV = self.code_head(h_PD, codes_PK).float()
        if options.cfg_scales:
            steps = self.order.steps_in(options.steps)
            scales = [options.cfg_scales_at(step.first, L) or (1.0,) for step in steps for _ in step.places]
            scales_L = torch.tensor([scale for (scale,) in scales], device=logits_PKV.device)
            cond, uncond = logits_PKV.unflatten(0, (-1, L)).chunk(2)
            logits_PKV = torch.lerp(uncond, cond, scales_L[:, None, None]).flatten(0, 1)
        logits_PKV = logits_PKV / options.temperature
        logps_PKV = logits_PKV.log_softmax(-1)
        code_logps_PK = logps_PKV.gather(-1, codes_PK[: len(logps_PKV), :, None])[..., 0]
        with torch.no_grad():
            entropies_PK = -(logps_PKV.exp() * logps_PKV).sum(-1)
        by_place = (
            self.order.of_places(x_PK.unflatten(0, (-1, L)), 1).flatten(0, 1) for x_PK in (code_logps_PK, entropies_PK)
        )
        return PolicyOutput(text_logps=text_logps, **dict(zip(("code_logps", "entropies"), by_place, strict=True)))


PolicyMllm.__name__ = Mllm.__name__  # what config.json calls a saved model's class: any other loads it


class Scored:
    """Drawings as a batch. `inputs` are those of PolicyMllm, with unconditional rows after the others for guidance.
    `owners` [A] says whose the ids are; `text_logps` [A] and `code_logps` [N, L, K] are those of generation."""

    def __init__(
        self, drawings: Sequence[Drawing], processor: Processor, options: DrawingOptions, device: torch.device
    ):
        samples = [drawing.sample for drawing in drawings]
        if options.cfg_scales:
            samples += [without_prompt(processor, drawing) for drawing in drawings]
        inputs = inputs_of(processor.collate(samples, multiple=PADDED_TO), device)
        self.inputs = {name: inputs[name] for name in ("input_ids", "codes", "labels", "is_target")}
        self.inputs |= {"labels": send(inputs["labels"], device), "options": options}
        self.inputs |= {"among": processor.drawing_ids if processor.plan_ids else None}
        self.size, lengths = len(drawings), torch.tensor([drawing.plan_length for drawing in drawings])
        self.owners = torch.arange(self.size).repeat_interleave(lengths).to(device)
        self.text_logps = torch.cat([drawing.text_logps for drawing in drawings]).to(device)
        self.code_logps = torch.stack([drawing.code_logps for drawing in drawings]).to(device)

    @property
    def codes(self) -> torch.Tensor:
        """[N, L, K]"""
        return self.inputs["codes"][: self.size]

    def of_drawings(self, of_ids: torch.Tensor) -> torch.Tensor:
        """Sums over the ids of each drawing's plan, [A] -> [N]."""
        return of_ids.new_zeros(self.size).index_add(0, self.owners, of_ids)


def frozen_pass(start: PolicyMllm | None, batch: Scored, engine: TorchEngine) -> PolicyOutput | None:
    """The log-probabilities by the model that the run began with, if there is one."""
    if start is None:
        return None
    with torch.no_grad(), autocast(engine.config.run, engine.device):
        return start(**batch.inputs)


def without_prompt(processor: Processor, drawing: Drawing) -> Sample:
    """The same image after no prompt and no plan, as guidance reads it."""
    sample = processor.encode_drawing(None)
    sample.add([processor.image_id] * processor.num_positions)
    sample.images, sample.is_target = list(drawing.sample.images), [True]
    return sample
