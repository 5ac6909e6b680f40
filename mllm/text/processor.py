"""Processor: conversations and images -> Sample; Samples -> Batch; ids -> text.

Shapes: B sequences, T positions, N images in order of appearance, M of them to read, L positions an image, K
sub-codebooks, Q channels before the quantizer.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image as fetch_image
from transformers.processing_utils import ProcessingKwargs

from ..folders import find_model, loading
from .ids import IMAGE, PLAN, SPECIAL_TOKENS, text_ids
from .templates import IGNORED, TEMPLATES, Sample, Template, as_image

# Placed before a control token, this mark says that a user wrote its letters. Unicode reserves the code point for uses
# inside programs, so no text has it.
LETTERS = "\ufdd0"


@dataclass
class Batch:
    """Arguments of `MllmForConditionalGeneration.forward`: `model(**vars(batch))`. Images are `codes` or
    `pixel_values`.

    Packed rows have `position_ids` that begin at 0 with every sample, and no `attention_mask`. From these two, and
    without a cache, transformers keeps attention within a sample; its flash attention does so only in a batch of one.
    If samples have branches (see `templates.join`), `attention_mask` is [B, 1, T, T], for eager and sdpa attention.

    `features` [M, L, Q] are those of images to read, if all of these were given as pictures. `image_lengths` [N] are
    the numbers of placeholders, where they are not L for all images.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    labels: torch.Tensor
    codes: torch.Tensor | None
    is_target: torch.Tensor
    position_ids: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None
    features: torch.Tensor | None = None
    image_lengths: torch.Tensor | None = None


class MllmImageProcessor(BaseImageProcessor):
    """Prepares images for the image tokenizer, as the template of its processor says."""

    model_input_names = ["pixel_values"]

    def __init__(self, template: Template):
        super().__init__()
        self.size = {"height": template.image_size, "width": template.image_size}
        self._template = template

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """Images as `flat_images` takes them -> `pixel_values` [N, 3, H, W] in [-1, 1]. Raises ValueError, in one line,
        for anything else."""
        pixels = [x if torch.is_tensor(x) else self._template.pixels(x) for x in flat_images(images)]
        return BatchFeature({"pixel_values": [x.float().numpy() for x in pixels]}, tensor_type=return_tensors)


class MllmProcessor(ProcessorMixin):
    """Turns chats into ids and back, by one of the `TEMPLATES`. There are two ways: `encode` and `collate`, or, as in
    transformers' processors, a call and `apply_chat_template`.

    `resize_ratio` and `interpolation` are those of the image tokenizer's config. `chat_template` is in Jinja; by
    default, it is the template's own. `image_length` is how many positions an image has that is only read: by default,
    and at most, `num_positions`. It may be changed at any time, to a length that the model learned, or to any where
    its config has `image_shortening` "divprune".
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"
    image_token = IMAGE

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_positions: int = 64,
        image_size: int = 128,
        template: str = "mllm",
        resize_ratio: float = 1.0,
        interpolation: str = "bicubic",
        chat_template: str | dict[str, str] | None = None,
        image_length: int | None = None,
    ):
        if template not in TEMPLATES:
            raise ValueError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
        self._template = TEMPLATES[template](tokenizer, num_positions, image_size, resize_ratio, interpolation)
        super().__init__(tokenizer, chat_template=chat_template or self._template.chat_template)
        self.num_positions, self.image_size, self.template = num_positions, image_size, template
        self.resize_ratio, self.interpolation = resize_ratio, interpolation
        self.image_length = num_positions if image_length is None else image_length
        self.image_processor = MllmImageProcessor(self._template)
        self.preparation = self._template.preparation
        self.bos_id, self.eos_id, self.pad_id = self._template.bos_id, self._template.eos_id, self._template.pad_id
        self.image_id, self.boi_id, self.eoi_id = (
            self._template.image_id,
            self._template.boi_id,
            self._template.eoi_id,
        )
        self.plan_ids = frozenset(self._template.plan_ids.values())
        self.drawing_ids = self.plan_ids | {self.boi_id}  # a drawing begins with one of them
        self._control = self._template.control_ids()
        self._marked = re.compile(f"({LETTERS}?(?:{'|'.join(map(re.escape, [IMAGE, *self._control]))}))")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> "MllmProcessor":
        """Takes what `Mllm.from_pretrained` takes, or a folder with a processor alone, and raises as it does."""
        folder = find_model(pretrained_model_name_or_path, "processor_config.json", kwargs.get("subfolder", ""))
        with loading(folder):
            return super().from_pretrained(folder, *args, **kwargs)

    @property
    def image_length(self) -> int:
        return self._template.image_length

    @image_length.setter
    def image_length(self, length: int) -> None:
        if not 1 <= length <= self._template.num_positions:
            raise ValueError(f"image_length {length}: images have 1 to {self._template.num_positions} positions")
        self._template.image_length = length

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "image_length": self.image_length}

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """A call as to transformers' processors. Returns `input_ids` and `attention_mask`, padded on the left if
        `padding` asks for it, and `pixel_values` (or `codes`, if images are codes_LK). Each "<image>" in the text
        stands for one of the images and becomes `image_length` placeholders (fewer than L: with `image_lengths` [N]);
        without images, it is letters. Control tokens of a chat are recognised, so text of users should come by
        `apply_chat_template`, where all that they write is letters.

        Raises ValueError if neither text nor images are given, if images and "<image>" differ in number, and if
        truncation would cut an image.
        """
        if images is None and text is None:
            raise ValueError("nothing to process: give text, images or both")
        options = self._merge_kwargs(ProcessingKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        options, return_tensors = options["text_kwargs"], options["text_kwargs"].get("return_tensors")
        found = None if images is None else list(flat_images(images))
        result: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            result |= self._text_inputs(texts, found, **options)
        if found and torch.is_tensor(found[0]) and not found[0].is_floating_point():
            result["codes"] = [codes_LK.numpy() for codes_LK in found]
        elif found:
            result |= self.image_processor(found)
        if found and self.image_length != self.num_positions:
            result["image_lengths"] = [self.image_length] * len(found)
        return BatchFeature(result, tensor_type=return_tensors)

    def _text_inputs(
        self,
        texts: Sequence[str],
        images: Sequence[Any] | None,
        padding: bool | str = False,
        padding_side: str | None = "left",  # where `generate` wants it
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_offsets_mapping: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        if return_offsets_mapping:
            raise ValueError("no offsets are kept: `encode` labels the ids of answers")
        rows = [self._ids(text, shown=images is not None) for text in texts]
        asked, given = sum(ids.count(None) for ids in rows), len(images or ())
        if asked != given:
            raise ValueError(
                f"{asked} {IMAGE} tokens in the prompts should be the same as the number of images, which is {given}: "
                f"write {IMAGE} where each image stands, or use apply_chat_template"
            )
        for place, row in enumerate(rows):
            ids = [id for one in row for id in (self._template.shown_ids() if one is None else [one])]
            rows[place] = ids[:max_length] if truncation and max_length else ids
            if rows[place].count(self.image_id) != ids.count(self.image_id):
                raise ValueError(f"max_length {max_length} cuts an image of {self.image_length} positions: raise it")
        return self.tokenizer.pad(
            {"input_ids": rows},
            padding=padding,
            max_length=max_length,
            padding_side=padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
        )

    def _ids(self, text: str, shown: bool) -> list[int | None]:
        """Ids of text with control tokens; None for each image that is `shown`. Words go through `text_ids` alone,
        because whether transformers' tokenizers split special tokens is a setting that threads share."""
        ids: list[int | None] = []
        words = ""
        for piece in self._marked.split(text):
            if piece in self._control or (piece == IMAGE and shown):
                ids += self._template.text_ids(words) if words else []
                ids.append(self._control.get(piece))
                words = ""
            else:
                words += piece.removeprefix(LETTERS) if self._marked.fullmatch(piece) else piece
        return ids + self._template.text_ids(words) if words else ids

    def apply_chat_template(
        self, conversation: Sequence[Any], chat_template: str | None = None, tokenize: bool = False, **kwargs: Any
    ) -> Any:
        """As in transformers. With `tokenize`, all text in messages is letters, "<image>" included. Without it, the
        returned text does not show which "<image>" was letters and which a token."""
        kwargs.pop("sanitize_control_tokens", None)  # newer versions' name for that, off by default
        if tokenize:
            conversation = self._as_letters(conversation)
        return super().apply_chat_template(conversation, chat_template, tokenize=tokenize, **kwargs)

    def _as_letters(self, part: Any) -> Any:
        """A conversation, or a part of one, with control tokens in its texts marked as letters."""
        if isinstance(part, list | tuple):
            return [self._as_letters(one) for one in part]
        if not isinstance(part, dict):
            return part
        return {
            name: self._marked.sub(lambda match: LETTERS + match[0].removeprefix(LETTERS), value)
            if isinstance(value, str) and name in ("text", "content")
            else self._as_letters(value)
            for name, value in part.items()
        }

    def post_process_image_text_to_text(self, generated_outputs: Any, *_: Any, **__: Any) -> list[str]:
        """Rows of ids -> texts, for pipelines."""
        return [self.decode(ids) for ids in generated_outputs]

    def encode(self, messages: Sequence[dict[str, Any]], open_answer: bool = True) -> Sample:
        """A chat as one sequence; assistant turns are targets, but for those with `"weight": 0`. `open_answer` ends it
        where the next answer begins.

        `messages` are {"role": "user" | "assistant", "content": str | list of {"type": "text", "text": ...},
        {"type": "image", "image": PIL image or codes_LK} and {"type": "plan", "plan": words of plans}}.
        """
        return self._template.chat(messages, open_answer)

    def encode_drawing(
        self, prompt: str | None, image: Any = None, plan: Sequence[str] = (), sources: Sequence[Any] = ()
    ) -> Sample:
        """A prompt (None: unconditional) up to the begin of the image. With `image`, a whole training sequence. `plan`
        is words that the model writes before the image, each of them an id of its own (`ids.plan_token`). `sources` are
        images that it is to edit."""
        return self._template.drawing(prompt, image, plan, sources)

    def encode_planning(self, prompt: str, sources: Sequence[Any] = ()) -> Sample:
        """A prompt, after the images that it is to edit, up to where the model may write before it draws."""
        return self._template.planning(prompt, sources)

    def view(self, image: Image.Image) -> tuple[float, float, float]:
        """Left, top and side of the square that the model sees of an image, in the image's pixels. Padding around it is
        part of the square."""
        return self._template.view(*image.size)

    def encode_image(self, image: Any) -> Sample:
        """An image alone, between its begin and end ids, without targets."""
        sample = Sample()
        self._template.add_marked_image(sample, image, target=False)
        return sample

    def first_added_id(self) -> int:
        """The id from which on all are special tokens of ours: in a pretrained text tokenizer, those added to it."""
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        while tokens and (tokens[-1] in SPECIAL_TOKENS or tokens[-1].startswith(PLAN)):
            tokens.pop()
        return len(tokens)

    def word_ids(self, word: str) -> list[int]:
        """Ids of a word as it stands inside a sentence."""
        return text_ids(self.tokenizer, f" {word}")

    def decode(self, ids: Sequence[int] | torch.Tensor, **kwargs: Any) -> str:
        """Ids -> text, without special tokens, plans and images."""
        # The begin and end ids of images need not be special tokens, and placeholders need not be in the vocabulary.
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
                    labels[place, start] = IGNORED  # the sample before it in the row does not predict it
                owners[span], positions[span] = owner, torch.tensor(sample.positions())
                if sample.branches:
                    branches[span] = torch.tensor(sample.branches)
                start += len(sample.ids)
        ordered = [sample for row in rows for sample in row]
        images = [image for sample in ordered for image in sample.images]
        flags = [flag for sample in ordered for flag in sample.is_target]
        pixels = codes = features = None
        if images and image_tokenizer is None and all(torch.is_tensor(x) and x.dim() == 3 for x in images):
            pixels = torch.stack(images)
        elif images:
            codes, features_of = encoded(images, image_tokenizer)
            read = [features for features, flag in zip(features_of, flags, strict=False) if not flag]
            features = torch.stack(read) if read and all(one is not None for one in read) else None
        lengths = self._lengths(ordered, self.num_positions if codes is None else codes.shape[1])
        is_target = torch.tensor(flags, dtype=torch.bool)
        if any(sample.branches for sample in samples):
            mask = _branched(owners, branches)
        else:
            mask, positions = (None, positions) if pack else ((owners > 0).long(), None)
        return Batch(ids, mask, labels, codes, is_target, positions, pixels, features, lengths)

    def _lengths(self, samples: Sequence[Sample], L: int) -> torch.Tensor | None:
        """As `Batch.image_lengths`."""
        if sum(sample.ids.count(self.image_id) - L * len(sample.images) for sample in samples) == 0:
            return None
        runs = (run for sample in samples for is_image, run in groupby(sample.ids, self.image_id.__eq__) if is_image)
        return torch.tensor([len(list(run)) for run in runs])


def _branched(owners_BT: torch.Tensor, branches_BT: torch.Tensor) -> torch.Tensor:
    """The mask to add to attention logits, [B, 1, T, T]: a position sees the start and the branch of its sample."""
    same_owner = owners_BT[:, :, None] == owners_BT[:, None]
    visible = (branches_BT[:, None] == 0) | (branches_BT[:, None] == branches_BT[:, :, None])
    seen = (same_owner & visible).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def pack_rows(samples: Sequence[Sample], length: int) -> list[list[Sample]]:
    """Put samples into few rows of at most `length` ids, about equally full. Raises ValueError for a longer sample."""
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


def flat_images(images: Any) -> Iterator[Image.Image | torch.Tensor]:
    """Images, in nested lists or not, as one list. Paths, addresses and arrays become PIL images; PIL images, pixels
    [3, H, W] and codes_LK stay as they are. Raises ValueError, in one line, for anything else."""
    if isinstance(images, list | tuple):
        for one in images:
            yield from flat_images(one)
        return
    if torch.is_tensor(images) and images.dim() > 3 or isinstance(images, np.ndarray) and images.ndim > 3:
        yield from flat_images(list(images))
        return
    if isinstance(images, str) and not Path(images).is_file() and re.match(r"https?:|data:", images):
        try:
            images = fetch_image(images)
        except Exception as error:  # network, base64 and Pillow have errors of many kinds
            raise ValueError(f"cannot read {images[:80]} as an image: {' '.join(str(error).split())}") from error
    image = as_image(images)
    if isinstance(image, np.ndarray) or torch.is_tensor(image) and image.dtype == torch.uint8:
        image = to_pil_image(image)
    if not isinstance(image, Image.Image) and not torch.is_tensor(image):
        raise ValueError(f"{image!r} is no image: give a PIL image, a path, pixels or codes")
    yield image


def as_codes(images: Sequence[Image.Image | torch.Tensor], image_tokenizer) -> torch.Tensor | None:
    """Images as `encoded` takes them -> codes_NLK; None if there are none."""
    return encoded(images, image_tokenizer)[0] if images else None


def encoded(
    images: Sequence[Image.Image | torch.Tensor], image_tokenizer
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """PIL images, pixels [3, H, W], features_LQ and codes_LK, mixed, -> codes_NLK, and the features_LQ of each image
    that was not given as codes."""
    rows: list = list(images)
    pictures = [place for place, image in enumerate(rows) if not torch.is_tensor(image) or image.dim() == 3]
    if pictures:
        for place, row in zip(pictures, image_tokenizer.encode_features([rows[at] for at in pictures]), strict=True):
            rows[place] = row
    features = [row if row.is_floating_point() else None for row in rows]
    known = [place for place, row in enumerate(features) if row is not None]
    if known:
        codes_NLK = image_tokenizer.quantizer.encode(torch.stack([features[place] for place in known]))
        for place, row in zip(known, codes_NLK, strict=True):
            rows[place] = row
    return torch.stack([row.to(rows[0].device) for row in rows]).long(), features
