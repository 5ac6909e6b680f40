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

from .folders import find_model, loading
from .templates import IGNORED, TEMPLATES, Sample
from .text import text_ids


@dataclass
class Batch:
    """What `MllmForConditionalGeneration.forward` takes: `model(**vars(batch))`. Images are `codes` or `pixel_values`.

    Packed rows have `position_ids` that begin at 0 with every sample, and no `attention_mask`: from these two, and
    without a cache, transformers makes attention stay within a sample. Flash attention sees it only in a batch of one.
    With branches in a sample (see `templates.join`), `attention_mask` is [B, 1, T, T], for eager and sdpa attention.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    labels: torch.Tensor
    codes: torch.Tensor | None
    is_target: torch.Tensor
    position_ids: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None


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
        self.preparation = self._template.preparation
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

    def encode(self, messages: Sequence[dict[str, Any]], open_answer: bool = True) -> Sample:
        """A chat as one sequence; assistant turns are targets. `open_answer` ends it where the next answer begins.

        `messages` are {"role": "user" | "assistant", "content": str | list of {"type": "text", "text": ...} and
        {"type": "image", "image": PIL image or codes_LK}}.
        """
        return self._template.chat(messages, open_answer)

    def encode_drawing(self, prompt: str | None, image: Any = None, plan: str | None = None) -> Sample:
        """A prompt (None: unconditional) up to the image; with `image`, a whole training sequence. `plan` is text of
        the model's own before the image."""
        return self._template.drawing(prompt, image, plan)

    def encode_planning(self, prompt: str) -> Sample:
        """A prompt up to where the model may write before it draws."""
        return self._template.planning(prompt)

    def encode_image(self, image: Any) -> Sample:
        """An image alone, between its marks, and nothing to predict."""
        sample = Sample()
        self._template.add_marked_image(sample, image, target=False)
        return sample

    def word_ids(self, word: str) -> list[int]:
        """Ids of a word as it stands inside a sentence."""
        return text_ids(self.tokenizer, f" {word}")

    def decode(self, ids: Sequence[int] | torch.Tensor, **kwargs: Any) -> str:
        """The text among the ids."""
        # Marks of images need not be special tokens, and placeholders need not be in the vocabulary.
        text = [id for id in torch.as_tensor(ids).tolist() if id not in (self.image_id, self.boi_id, self.eoi_id)]
        return self.tokenizer.decode(text, skip_special_tokens=True, **kwargs).strip()

    def collate(
        self, samples: Sequence[Sample], image_tokenizer=None, left: bool = False, pack: int = 0, multiple: int = 1
    ) -> Batch:
        """Pad to the longest, and to a `multiple`, right (training) or left (generation). PIL images and pixels become
        codes by `image_tokenizer`; without one, pixels stay pixels. With `pack`, rows of up to so many positions hold
        several samples, for training: each loses what it would lose in a row of its own. Raises ValueError for a sample
        that no row can hold."""
        rows = pack_rows(samples, pack) if pack else [[sample] for sample in samples]
        lengths = [sum(len(sample.ids) for sample in row) for row in rows]
        T = -(-max(lengths) // multiple) * multiple
        ids, labels = torch.full((len(rows), T), self.pad_id), torch.full((len(rows), T), IGNORED)
        owners, branches, positions = torch.zeros(3, len(rows), T, dtype=torch.long)  # owner 0 is padding
        for place, row in enumerate(rows):
            start = T - lengths[place] if left else 0
            for owner, sample in enumerate(row, start=1):
                span = (place, slice(start, start + len(sample.ids)))
                ids[span], labels[span] = torch.tensor(sample.ids), torch.tensor(sample.labels)
                if pack:
                    labels[place, start] = IGNORED  # the sample before is nothing to predict it from
                owners[span], positions[span] = owner, torch.tensor(sample.positions())
                if sample.branches:
                    branches[span] = torch.tensor(sample.branches)
                start += len(sample.ids)
        ordered = [sample for row in rows for sample in row]
        images = [image for sample in ordered for image in sample.images]
        are_pixels = bool(images) and all(torch.is_tensor(image) and image.is_floating_point() for image in images)
        pixels = torch.stack(images) if are_pixels and image_tokenizer is None else None
        codes = as_codes(images, image_tokenizer) if pixels is None else None
        is_target = torch.tensor([flag for sample in ordered for flag in sample.is_target], dtype=torch.bool)
        if any(sample.branches for sample in samples):
            return Batch(ids, _branched(owners, branches), labels, codes, is_target, positions, pixels)
        mask = None if pack else (owners > 0).long()
        return Batch(ids, mask, labels, codes, is_target, positions if pack else None, pixels)


def _branched(owners_BT: torch.Tensor, branches_BT: torch.Tensor) -> torch.Tensor:
    """What is added to attention's logits, [B, 1, T, T]: a position sees the start and the branch of its sample."""
    same_owner = owners_BT[:, :, None] == owners_BT[:, None]
    visible = (branches_BT[:, None] == 0) | (branches_BT[:, None] == branches_BT[:, :, None])
    seen = (same_owner & visible).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def pack_rows(samples: Sequence[Sample], length: int) -> list[list[Sample]]:
    """Rows of at most `length` ids: few, and about equally full. Raises ValueError for a sample that is longer."""
    ordered = sorted(samples, key=lambda sample: -len(sample.ids))
    if len(ordered[0].ids) > length:
        raise ValueError(f"a sample of {len(ordered[0].ids)} tokens does not fit into a row of {length}")
    fewest = -(-sum(len(sample.ids) for sample in samples) // length)
    for count in range(fewest, len(samples) + 1):
        rows, full = [[] for _ in range(count)], [0] * count
        for sample in ordered:
            emptiest = full.index(min(full))
            rows[emptiest].append(sample)
            full[emptiest] += len(sample.ids)
        if max(full) <= length:
            break
    return rows


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
