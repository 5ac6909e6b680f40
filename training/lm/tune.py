"""A model that trains together with its image tokenizer, from pixels (ETT, arXiv 2505.10562).

The losses of answers and captions reach the encoder straight through the codes: the values are those of a frozen image
tokenizer, and only the gradient goes on. A guard keeps what the decoder makes of the codes close to the images.
Shapes: N images, L positions, K sub-codebooks.
"""

from dataclasses import dataclass
from typing import Any

import torch

from mllm import Mllm
from mllm.device import send
from mllm.model import MllmOutput
from tokenizer.psnr import psnr

from ..image_tokenizer.losses import perceptual_network, reconstruction_losses
from ..run.recipe import TuneConfig

COPY, ORIGINAL = "code_embed.quantizer.", "image_tokenizer.quantizer."


@dataclass
class TunedOutput(MllmOutput):
    """`guard_loss` and `squared_error` (mean over a picture) are sums over the images."""

    guard_loss: torch.Tensor | None = None
    squared_error: torch.Tensor | None = None


class TunedMllm(Mllm):
    """Give it a TuneConfig by `guard`, and `pixel_values` in place of codes. Without labels it is like any other."""

    def guard(self, config: TuneConfig) -> None:
        """Weights of the guard. Raises ValueError for a file that is not LPIPS."""
        self.tune, self.network = config, perceptual_network(config)  # a network without parameters: its are frozen
        self.options = self.image_tokenizer.quantizer.Options(
            index_temperature=config.temperature if self.code_embed.reads_shares else 0.0
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        is_target: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_lengths: torch.Tensor | None = None,
        **inputs: Any,
    ) -> MllmOutput:
        if labels is None:
            inputs |= {"is_target": is_target, "image_lengths": image_lengths}
            return super().forward(input_ids, codes, pixel_values=pixel_values, **inputs)
        side, given = self.config.image_tokenizer["image_size"], pixel_values is not None
        if not given:  # under ZeRO every rank must run every module in every micro-batch
            pixel_values = torch.zeros(1, 3, side, side, device=input_ids.device)
        features_NLQ = self.image_tokenizer.features(pixel_values)
        quantized = self.image_tokenizer.quantizer(features_NLQ, self.options)
        codes = quantized.codes_NLK if given else None
        decoded_N3HW = self.image_tokenizer.decode_features(quantized.features_NLQ)
        terms = reconstruction_losses(decoded_N3HW, pixel_values, self.tune, self.network)
        guard = terms["reconstruction"] + self.tune.quantizer * quantized.loss
        read = send((~is_target).nonzero()[:, 0], features_NLQ.device)
        features = features_NLQ.index_select(0, read) if given else None
        embeds_BTD = self.embed(input_ids, codes, quantized, is_target, features, image_lengths)
        output = super().forward(input_ids, codes, is_target, inputs_embeds=embeds_BTD, labels=labels, **inputs)
        count = len(pixel_values) if given else 0
        return TunedOutput(**output, guard_loss=count * guard, squared_error=count * terms["l2"].detach())


TunedMllm.__name__ = Mllm.__name__  # what config.json calls a saved model's class: any other loads it


def guard_means(guard_loss: torch.Tensor, squared_error: torch.Tensor) -> dict[str, float]:
    """What to log of an update, from means over its images: the guard's loss, and the reconstructions' PSNR in dB."""
    return {"guard": guard_loss.item(), "psnr": psnr(squared_error, 2).item()}


def copy_codebooks(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights to save: an embedding that reads codebook vectors has the image tokenizer's, as they are now."""
    copies = [name for name in state if name.startswith(COPY)]
    return {**state, **{name: state[ORIGINAL + name.removeprefix(COPY)].clone() for name in copies}}
