"""Processor: conversations and images -> Sample; Samples -> Batch; ids -> text.

Shapes: B sequences, T positions, N images in order of appearance, L positions an image, K sub-codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from tokenizer import ImageTokenizerConfig

from .folders import find_model, loading
from .text import ASSISTANT, BEGIN_IMAGE, END_IMAGE, IMAGE, UNCONDITIONAL, USER, contrastive_ids, text_ids

IGNORED = -100  # label of positions without a text target


@dataclass
class Sample:
    """One sequence. `images` are PIL images or codes_LK, one for each run of L placeholders in `ids`; `is_target` says
    which of them are to be drawn."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[Image.Image | torch.Tensor] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], target: bool = False) -> None:
        """Append ids, as targets of the text loss or not."""
        self.ids += ids
        self.labels += ids if target else [IGNORED] * len(ids)


@dataclass
class Batch:
    """What `MllmForConditionalGeneration.forward` takes, ready for `model(**vars(batch))` once images are codes."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    codes: torch.Tensor | None
    is_target: torch.Tensor


class MllmProcessor(ProcessorMixin):
    """Turns chats into ids and back. A user's words are always plain text: "<image>" in a prompt stays those letters.

    A turn reads `<user> text <assistant> answer </s>`; an image is `<boi>`, L times `<image>`, `<eoi>`.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_positions: int = 64, image_size: int = 128):
        super().__init__(tokenizer)
        self.num_positions, self.image_size = num_positions, image_size
        known = tokenizer.get_vocab()
        missing = [token for token in (IMAGE, BEGIN_IMAGE, END_IMAGE, USER, ASSISTANT) if token not in known]
        if missing:
            raise ValueError(
                f"the text tokenizer has no {', '.join(missing)}: train it with scripts.train_text_tokenizer"
            )
        self.image_id, self.boi_id, self.eoi_id, self.user_id, self.assistant_id, self.unconditional_id = (
            known[token] for token in (IMAGE, BEGIN_IMAGE, END_IMAGE, USER, ASSISTANT, UNCONDITIONAL)
        )
        self.bos_id, self.eos_id, self.pad_id = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
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
        sample = Sample()
        sample.add([self.bos_id])
        for message in messages:
            role, content = message["role"], message["content"]
            if role not in ("user", "assistant"):
                raise ValueError(f"unknown role {role!r}; known: user, assistant")
            answer = role == "assistant"
            sample.add([self.assistant_id if answer else self.user_id])
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                self._add_part(sample, part, answer)
            if answer:
                sample.add([self.eos_id], target=True)
        if open_answer:
            sample.add([self.assistant_id])
        return sample

    def _add_part(self, sample: Sample, part: dict[str, Any], answer: bool) -> None:
        if part["type"] == "text":
            sample.add(text_ids(self.tokenizer, part["text"]), answer)
        elif part["type"] == "image":
            sample.add([self.boi_id], answer)
            sample.add([self.image_id] * self.num_positions)
            sample.add([self.eoi_id], answer)
            sample.images.append(part["image"])
            sample.is_target.append(answer)
        else:
            raise ValueError(f"unknown content type {part['type']!r}; known: text, image")

    def encode_drawing(self, prompt: str | None, image: Any = None) -> Sample:
        """A prompt (None: unconditional) up to the image; with `image`, a whole training sequence."""
        sample = Sample()
        words = [self.unconditional_id] if prompt is None else text_ids(self.tokenizer, prompt)
        sample.add([self.bos_id, self.user_id, *words, self.assistant_id])
        if image is None:
            sample.add([self.boi_id])
        else:
            self._add_part(sample, {"type": "image", "image": image}, answer=True)
            sample.add([self.eos_id], target=True)
        return sample

    def decode(self, ids: Sequence[int] | torch.Tensor, **kwargs: Any) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, **kwargs).strip()

    def collate(self, samples: Sequence[Sample], image_tokenizer=None, left: bool = False) -> Batch:
        """Pad to the longest, right (training) or left (generation). PIL images become codes by `image_tokenizer`."""
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
    """PIL images and codes_LK, mixed, -> codes_NLK; None if there are none."""
    if not images:
        return None
    pictures = [index for index, image in enumerate(images) if not torch.is_tensor(image)]
    rows = list(images)
    if pictures:
        codes = image_tokenizer.encode([images[index] for index in pictures])
        for index, row in zip(pictures, codes, strict=True):
            rows[index] = row
    return torch.stack([row.to(rows[0].device) for row in rows]).long()
