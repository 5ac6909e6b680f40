"""Processor: conversations and images -> Sample; Samples -> Batch; ids -> text.

Shapes: B sequences, T positions, N images in order of appearance, L positions an image, K sub-codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from tokenizer import ImageTokenizerConfig

from .folders import find_model, loading
from .templates import IGNORED, TEMPLATES, Sample
from .text import contrastive_ids


@dataclass
class Batch:
    """What `MllmForConditionalGeneration.forward` takes, ready for `model(**vars(batch))` once images are codes."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    codes: torch.Tensor | None
    is_target: torch.Tensor


class MllmProcessor(ProcessorMixin):
    """Turns chats into ids and back, by one of the `TEMPLATES`."""

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_positions: int = 64,
        image_size: int = 128,
        template: str = "mllm",
    ):
        super().__init__(tokenizer)
        if template not in TEMPLATES:
            raise ValueError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
        self.num_positions, self.image_size, self.template = num_positions, image_size, template
        self._template = TEMPLATES[template](tokenizer, num_positions, image_size)
        self.bos_id, self.eos_id, self.pad_id = self._template.bos_id, self._template.eos_id, self._template.pad_id
        self.image_id, self.boi_id, self.eoi_id = (
            self._template.image_id,
            self._template.boi_id,
            self._template.eoi_id,
        )

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **kwargs: Any) -> "MllmProcessor":
        """Takes what `Mllm.from_pretrained` takes, and raises as it does."""
        folder = find_model(name)
        with loading(folder):
            return super().from_pretrained(folder, *args, **kwargs)

    def contrastive_ids(self, texts: Sequence[str], sizes: ImageTokenizerConfig) -> torch.Tensor:
        """ids_NT for `ImageTokenizer.text_features`."""
        return contrastive_ids(self.tokenizer, texts, sizes.text_context, sizes.text_vocab_size)

    def encode(self, messages: Sequence[dict[str, Any]], open_answer: bool = True) -> Sample:
        """A chat as one sequence; assistant turns are targets. `open_answer` ends it where the next answer begins.

        `messages` are {"role": "user" | "assistant", "content": str | list of {"type": "text", "text": ...} and
        {"type": "image", "image": PIL image or codes_LK}}.
        """
        return self._template.chat(messages, open_answer)

    def encode_drawing(self, prompt: str | None, image: Any = None) -> Sample:
        """A prompt (None: unconditional) up to the image; with `image`, a whole training sequence."""
        return self._template.drawing(prompt, image)

    def decode(self, ids: Sequence[int] | torch.Tensor, **kwargs: Any) -> str:
        """The text among the ids."""
        # Marks of images need not be special tokens, and placeholders need not be in the vocabulary.
        text = [id for id in torch.as_tensor(ids).tolist() if id not in (self.image_id, self.boi_id, self.eoi_id)]
        return self.tokenizer.decode(text, skip_special_tokens=True, **kwargs).strip()

    def collate(self, samples: Sequence[Sample], image_tokenizer=None, left: bool = False) -> Batch:
        """Pad to the longest, right (training) or left (generation). PIL images and pixels become codes by
        `image_tokenizer`."""
        T = max(len(sample.ids) for sample in samples)
        ids, labels = torch.full((len(samples), T), self.pad_id), torch.full((len(samples), T), IGNORED)
        mask = torch.zeros(len(samples), T, dtype=torch.long)
        for row, sample in enumerate(samples):
            place = slice(T - len(sample.ids), T) if left else slice(0, len(sample.ids))
            ids[row, place], labels[row, place] = torch.tensor(sample.ids), torch.tensor(sample.labels)
            mask[row, place] = 1
        images = [image for sample in samples for image in sample.images]
        is_target = torch.tensor([flag for sample in samples for flag in sample.is_target], dtype=torch.bool)
        return Batch(ids, mask, labels, as_codes(images, image_tokenizer), is_target)


def as_codes(images: Sequence[Image.Image | torch.Tensor], image_tokenizer) -> torch.Tensor | None:
    """PIL images, pixels and codes_LK, mixed, -> codes_NLK; None if there are none."""
    if not images:
        return None
    rows = list(images)
    pictures = [i for i, image in enumerate(rows) if not torch.is_tensor(image) or image.is_floating_point()]
    if pictures:
        codes = image_tokenizer.encode([images[index] for index in pictures])
        for index, row in zip(pictures, codes, strict=True):
            rows[index] = row
    return torch.stack([row.to(rows[0].device) for row in rows]).long()
