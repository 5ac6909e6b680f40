"""Templates: how chats and drawings become ids, one class for each family of models.

A user's words are always plain text: "<image>" or "</s>" in a prompt stays those letters.
Shapes: L positions an image, K sub-codebooks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from tokenizer.transform import load_image, pad_to_square, to_pixels

from .ids import BEGIN_IMAGE, END_IMAGE, IMAGE, PAD, PLAN, SPECIAL_TOKENS, UNCONDITIONAL, plan_token, text_ids

IGNORED = -100  # label of positions without a text target


@dataclass
class Sample:
    """One sequence. `images` are PIL images, pixels [3, H, W], features_LQ before the quantizer, or codes_LK, one for
    each run of placeholders in `ids`; `is_target` says which of them are to be drawn, and have L placeholders.
    `branches` is empty, or has a number for each id (see `join`)."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    images: list[Image.Image | torch.Tensor] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], target: bool = False) -> None:
        """Append ids, which are targets of the text loss or not."""
        self.ids += ids
        self.labels += ids if target else [IGNORED] * len(ids)

    def positions(self) -> list[int]:
        """The position of each id; each branch continues from the common start."""
        if not self.branches:
            return list(range(len(self.ids)))
        start, following, positions = self.branches.count(0), {0: 0}, []
        for branch in self.branches:
            positions.append(following.setdefault(branch, start))
            following[branch] += 1
        return positions


def join(chats: Sequence[Sample]) -> Sample:
    """Join chats about the same images into one sequence that holds their common start once (branch 0). The rest of
    each chat is a branch that sees the start and itself, at the positions that it would have alone. So losses are the
    same, but the images are read once."""
    first = chats[0]
    start = next(place for place, label in enumerate(first.labels) if label != IGNORED) - 1
    while any(chat.ids[:start] != first.ids[:start] for chat in chats):
        start -= 1
    joined = Sample(first.ids[:start], first.labels[:start], [0] * start, first.images, first.is_target)
    for number, chat in enumerate(chats, start=1):
        joined.ids += chat.ids[start:]
        joined.labels += chat.labels[start:]
        joined.branches += [number] * (len(chat.ids) - start)
    return joined


# What the Jinja templates have in common, for transformers' `apply_chat_template`. There is no system turn: its text
# opens the user's.
JINJA = """\
{%- set opening = namespace(text='') -%}
{%- for message in messages -%}
    {%- set content = message.content -%}
    {%- set parts = [{'type': 'text', 'text': content}] if content is string else content -%}
    {%- if message.role == 'system' -%}
        {%- for part in parts -%}
            {%- set opening.text = opening.text + part.text + '\\n' -%}
        {%- endfor -%}
    {%- elif message.role not in ['user', 'assistant'] -%}
        {{- raise_exception('unknown role ' + message.role + '; known: system, user, assistant') -}}
    {%- else -%}
        {{- START -}}
        {%- if message.role == 'user' -%}
            {{- opening.text -}}
            {%- set opening.text = '' -%}
        {%- endif -%}
        {%- for part in parts -%}
            {{- IMAGE if part.type == 'image' else part.text -}}
        {%- endfor -%}
        {{- END -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- OPEN -}}
{%- endif -%}
"""


def jinja(before: str, start: str, image: str, end: str, open: str) -> str:
    """A Jinja chat template. The arguments are Jinja expressions for the begin of the text, the start and the end of a
    turn, an image, and the begin of an answer."""
    turns = JINJA.replace("START", start).replace("IMAGE", f"({image})").replace("END", end).replace("OPEN", open)
    return f"{{{{- {before} -}}}}\n{turns}"


class Template(ABC):
    """How a family of models writes chats and requests. A sub-class names the pieces that its text tokenizer must have,
    sets six ids, and implements chats and requests. Its `chat_template` says the same of chats in Jinja, where IMAGE
    stands for an image."""

    preparation = "mllm"  # how images are prepared; codes made with another preparation are refused
    chat_template: str
    needs: tuple[str, ...]
    advice: str
    bos_id: int
    eos_id: int
    pad_id: int
    image_id: int
    boi_id: int
    eoi_id: int

    def __init__(
        self,
        text_tokenizer: PreTrainedTokenizerBase,
        num_positions: int,
        image_size: int,
        resize_ratio: float = 1.0,
        interpolation: str = "bicubic",
    ):
        known = text_tokenizer.get_vocab()
        missing = [piece for piece in self.needs if piece not in known]
        if missing:
            raise ValueError(f"the text tokenizer has no {', '.join(missing)}: {self.advice}")
        self.text_tokenizer, self.num_positions, self.image_size = text_tokenizer, num_positions, image_size
        self.image_length = num_positions  # of images to read
        self.resize_ratio, self.interpolation = resize_ratio, interpolation
        self.bos_id, self.eos_id = text_tokenizer.bos_token_id, text_tokenizer.eos_token_id
        self.plan_ids = {token: id for token, id in known.items() if token.startswith(PLAN)}

    @abstractmethod
    def chat(self, messages: Sequence[dict[str, Any]], open_answer: bool) -> Sample:
        """As `MllmProcessor.encode`."""

    @abstractmethod
    def add_request(self, sample: Sample, prompt: str | None, sources: Sequence[Any]) -> None:
        """Append what stands between the begin of text and the begin of the image that `prompt` (None: unconditional)
        asks for: the images that it is made from, and words. With images, it is what `chat` makes of them."""

    def drawing(self, prompt: str | None, image: Any, plan: Sequence[str], sources: Sequence[Any] = ()) -> Sample:
        """As `MllmProcessor.encode_drawing`."""
        sample = self.planning(prompt, sources)
        self.add_part(sample, "plan", plan, target=True)
        if image is None:
            sample.add([self.boi_id])
        else:
            self.add_marked_image(sample, image, target=True)
            sample.add([self.eos_id], target=True)
        return sample

    def planning(self, prompt: str | None, sources: Sequence[Any] = ()) -> Sample:
        """As `MllmProcessor.encode_planning`."""
        sample = Sample()
        sample.add([self.bos_id])
        self.add_request(sample, prompt, sources)
        return sample

    def text_ids(self, text: str) -> list[int]:
        """Ids of words between control tokens."""
        return text_ids(self.text_tokenizer, text)

    def control_ids(self) -> dict[str, int]:
        """The tokens, except those of images, that the text of `chat_template` may have."""
        special = zip(self.text_tokenizer.all_special_tokens, self.text_tokenizer.all_special_ids, strict=True)
        return {token: id for token, id in special if id not in (self.image_id, self.boi_id, self.eoi_id)}

    def shown_ids(self) -> list[int]:
        """The ids that IMAGE in the text of `chat_template` stands for."""
        return [self.boi_id, *[self.image_id] * self.image_length, self.eoi_id]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """An image as pixels [3, H, W] in [-1, 1], prepared for the image tokenizer."""
        return to_pixels(image, self.image_size, self.resize_ratio, self.interpolation)

    def view(self, width: int, height: int) -> tuple[float, float, float]:
        """Left, top and side of the square that `pixels` shows of an image."""
        side = min(width, height) / self.resize_ratio
        return (width - side) / 2, (height - side) / 2, side

    def add_part(self, sample: Sample, kind: str, value: Any, target: bool) -> None:
        """Append a part of a message. Raises ValueError for words of plans that the text tokenizer does not have."""
        if kind == "text":
            sample.add(text_ids(self.text_tokenizer, value), target)
        elif kind == "image":
            self.add_marked_image(sample, value, target)
        else:
            tokens = [plan_token(word) for word in value]
            unknown = [token for token in tokens if token not in self.plan_ids]
            if unknown:
                raise ValueError(f"the text tokenizer has no {unknown[0]}: recipes with model.plan_length add plans")
            sample.add([self.plan_ids[token] for token in tokens], target)

    def add_image(self, sample: Sample, image: Any, target: bool) -> None:
        """Append the placeholders of an image: L if it is to be drawn."""
        sample.add([self.image_id] * (self.num_positions if target else self.image_length))
        sample.images.append(image)
        sample.is_target.append(target)

    def add_marked_image(self, sample: Sample, image: Any, target: bool) -> None:
        """Append the placeholders of an image between the ids of its begin and end."""
        sample.add([self.boi_id], target)
        self.add_image(sample, image, target)
        sample.add([self.eoi_id], target)


class MllmTemplate(Template):
    """The template of our own models. A turn is `<user> text <assistant> answer </s>`; an image is `<boi>`, L times
    `<image>`, `<eoi>`. All of these are special tokens."""

    needs = SPECIAL_TOKENS
    advice = "train it with scripts.train_text_tokenizer"
    chat_template = jinja(
        before="bos_token",
        start="'<' + message.role + '>'",
        image="'<image>'",
        end="eos_token if message.role == 'assistant' else ''",
        open="'<assistant>'",
    )

    def __init__(self, text_tokenizer: PreTrainedTokenizerBase, *sizes: Any):
        super().__init__(text_tokenizer, *sizes)
        (
            self.pad_id,
            self.image_id,
            self.boi_id,
            self.eoi_id,
            self.user_id,
            self.assistant_id,
            self.unconditional_id,
        ) = text_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))

    def chat(self, messages: Sequence[dict[str, Any]], open_answer: bool) -> Sample:
        sample = Sample()
        sample.add([self.bos_id])
        for turn in turns(messages):
            sample.add([self.assistant_id if turn.is_answer else self.user_id])
            for kind, value in turn.parts:
                self.add_part(sample, kind, value, turn.is_target)
            if turn.is_answer:
                sample.add([self.eos_id], turn.is_target)
        if open_answer:
            sample.add([self.assistant_id])
        return sample

    def add_request(self, sample: Sample, prompt: str | None, sources: Sequence[Any]) -> None:
        sample.add([self.user_id])
        for source in sources:
            self.add_marked_image(sample, source, target=False)
        words = [self.unconditional_id] if prompt is None else text_ids(self.text_tokenizer, prompt)
        sample.add([*words, self.assistant_id])


class ChatMlTemplate(Template):
    """ChatML, as SmolLM2 and Qwen were tuned to read it, without a system turn: `<|im_start|>user`, a newline, text,
    `<|im_end|>`, a newline. Marks of images, padding and the unconditional prompt are special tokens added to theirs.
    """

    needs = ("<|im_start|>", "<|im_end|>", PAD, IMAGE, BEGIN_IMAGE, END_IMAGE, UNCONDITIONAL)
    advice = "a recipe whose model.backbone is a name adds ours to a pretrained one's"
    chat_template = jinja(
        before="''",
        start="'<|im_start|>' + message.role + '\\n'",
        image="'<image>'",
        end="'<|im_end|>\\n'",
        open="'<|im_start|>assistant\\n'",
    )

    def __init__(self, text_tokenizer: PreTrainedTokenizerBase, *sizes: Any):
        super().__init__(text_tokenizer, *sizes)
        (
            self.bos_id,
            self.eos_id,
            self.pad_id,
            self.image_id,
            self.boi_id,
            self.eoi_id,
            self.unconditional_id,
        ) = text_tokenizer.convert_tokens_to_ids(list(self.needs))
        self.user, self.assistant, self.newline = (
            text_ids(text_tokenizer, text) for text in ("user\n", "assistant\n", "\n")
        )

    def chat(self, messages: Sequence[dict[str, Any]], open_answer: bool) -> Sample:
        sample = Sample()
        for turn in turns(messages):
            sample.add([self.bos_id, *(self.assistant if turn.is_answer else self.user)])
            for kind, value in turn.parts:
                self.add_part(sample, kind, value, turn.is_target)
            sample.add([self.eos_id], turn.is_target)
            sample.add(self.newline)
        if open_answer:
            sample.add([self.bos_id, *self.assistant])
        return sample

    def add_request(self, sample: Sample, prompt: str | None, sources: Sequence[Any]) -> None:
        sample.add(self.user)
        for source in sources:
            self.add_marked_image(sample, source, target=False)
        words = [self.unconditional_id] if prompt is None else text_ids(self.text_tokenizer, prompt)
        sample.add([*words, self.eos_id, *self.newline, self.bos_id, *self.assistant])


class UniTokTemplate(Template):
    """The template of the released UniTok model (github FoundationVision/UniTok): Vicuna's chat in pieces of Llama's
    tokenizer. Images of the user are padded to squares and have no begin and end ids; for drawn images, these are the
    pieces of bytes 0 and 1."""

    preparation = "unitok"
    needs = ("<unk>", "<s>", "</s>", "<0x00>", "<0x01>", "<0x0A>")
    advice = "the template 'unitok' needs Llama's"
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    padding = (122, 116, 104)  # CLIP's mean color

    def __init__(self, text_tokenizer: PreTrainedTokenizerBase, *sizes: Any):
        super().__init__(text_tokenizer, *sizes)
        self.pad_id, self.boi_id, self.eoi_id, self.newline_id = text_tokenizer.convert_tokens_to_ids(
            ["<unk>", "<0x00>", "<0x01>", "<0x0A>"]
        )
        self.image_id = -200
        # Llama's tokenizer puts a space before a text; the older `legacy` one after each end of turn, too.
        self.turn_start = " " if getattr(text_tokenizer, "legacy", False) else ""
        self.chat_template = jinja(
            before=f"bos_token + ' {self.system.replace(chr(39), chr(92) + chr(39))} '",
            start="'USER: ' if message.role == 'user' else 'ASSISTANT: '",
            image="'<image> \\n' if message.role == 'user' else '<0x00><image><0x01>'",
            end=f"' ' if message.role == 'user' else eos_token + '{self.turn_start}'",
            open="'ASSISTANT:'",
        )

    def chat(self, messages: Sequence[dict[str, Any]], open_answer: bool) -> Sample:
        sample, text = Sample(), f" {self.system} "
        sample.add([self.bos_id])
        for turn in turns(messages):
            if turn.is_answer:
                sample.add(self.ids(text + "ASSISTANT:"))
                self._add_answer(sample, turn)
                text = self.turn_start
            else:
                text = self._add_question(sample, text + "USER: ", turn.parts) + " "
        if open_answer:
            text += "ASSISTANT:"
        if text != self.turn_start:
            sample.add(self.ids(text))
        return sample

    def _add_question(self, sample: Sample, text: str, parts: Sequence[tuple[str, Any]]) -> str:
        """Append a question up to its last image; returns the text after it."""
        for kind, value in parts:
            if kind == "text":
                text += value
            elif kind == "plan":
                self.add_part(sample, kind, value, target=False)  # refuses it
            else:
                sample.add(self.ids(text))
                image = value if torch.is_tensor(value) else self.pixels(value)  # a tensor: codes
                self.add_image(sample, image, target=False)
                text = " \n"  # the space before a text, see above: images cut it into several
        return text

    def _add_answer(self, sample: Sample, turn: "Turn") -> None:
        for kind, value in turn.parts:
            if kind == "text":
                sample.add(self.ids(" " + value), turn.is_target)
            else:
                self.add_part(sample, kind, value, turn.is_target)
        sample.add([self.eos_id], turn.is_target)

    def add_request(self, sample: Sample, prompt: str | None, sources: Sequence[Any]) -> None:
        """The released model draws from words alone. A request with images, which it was not trained on, is a chat."""
        if not sources:
            words = "<unconditional>" if prompt is None else f"{prompt} Generate an image based on this description."
            return sample.add(self.ids(" " + words))
        parts = [("image", source) for source in sources] + [("text", "<unconditional>" if prompt is None else prompt)]
        text = self._add_question(sample, f" {self.system} USER: ", parts)
        sample.add(self.ids(f"{text} ASSISTANT:"))

    def ids(self, text: str) -> list[int]:
        """Ids of text as it is, without the tokenizer's own space before it."""
        # That space goes before a newline, which no piece of Llama's crosses. The bytes of the marks are no text.
        ids = text_ids(self.text_tokenizer, "\n" + text.replace("\x00", "").replace("\x01", ""))
        return ids[ids.index(self.newline_id) + 1 :]

    def text_ids(self, text: str) -> list[int]:
        return self.ids(text)

    def control_ids(self) -> dict[str, int]:
        return {**super().control_ids(), "<0x00>": self.boi_id, "<0x01>": self.eoi_id}

    def shown_ids(self) -> list[int]:
        return [self.image_id] * self.image_length

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return to_pixels(pad_to_square(image, self.padding), self.image_size, interpolation="bilinear")

    def view(self, width: int, height: int) -> tuple[float, float, float]:
        side = max(width, height)
        return -((side - width) // 2), -((side - height) // 2), side


KINDS = ("text", "image", "plan")  # of the parts of a message
TEMPLATES = {"mllm": MllmTemplate, "chatml": ChatMlTemplate, "unitok": UniTokTemplate}


class Turn(NamedTuple):
    """A message. `is_target`: whether it is an answer that carries loss; `parts` are (kind, value)."""

    is_answer: bool
    is_target: bool
    parts: list[tuple[str, Any]]


def turns(messages: str | Sequence[dict[str, Any]]) -> Iterator[Turn]:
    """Messages as turns. A string is one question. Raises ValueError for anything else."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{message!r} is no message: a dict with role and content")
        role, content = message["role"], message["content"]
        if role not in ("user", "assistant"):
            raise ValueError(f"unknown role {role!r}; known: user, assistant")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] not in KINDS:
                raise ValueError(f"unknown content type {part['type']!r}; known: {', '.join(KINDS)}")
        values = [(part["type"], part[part["type"]]) for part in parts]
        loaded = [(kind, as_image(value) if kind == "image" else value) for kind, value in values]
        yield Turn(role == "assistant", role == "assistant" and message.get("weight", 1) > 0, loaded)


def as_image(value: Any) -> Any:
    """Load the image at a path; return anything else unchanged."""
    return load_image(value) if isinstance(value, str | Path) else value
