"""Our models in lmms-eval, one class for each of its two interfaces. lmms-eval finds them through `lmms.manifest`.

Each request, of whatever type, is read into an `Ask`: a chat and how to answer it. Equal options share batches.
"""

import hashlib
import json
import logging
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image

from mllm import Mllm, Processor, generate_images, generate_texts
from mllm.decode.options import DrawingOptions
from mllm.decode.program import start_drawing
from mllm.decode.stream import check_length
from mllm.text.templates import IGNORED
from tokenizer.transform import load_image

from ..drawn_folder import save
from ..pieces import device as own_device
from ..pieces import digest, watch

MODES = ("understand", "generate")
NEW_TOKENS = 64  # where a task does not say
EMPTY = {"write": "", "draw": json.dumps({"text": "", "images": []}), "score": (0.0, False)}
# What reading a damaged document raises: pictures that cannot be decoded, text that is no Unicode or too long.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Options(NamedTuple):
    """How to answer. `kind`: "write" text, "draw" an image, or "score" the answer that ends the chat."""

    kind: str
    max_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    until: tuple[str, ...] = ()


class Ask(NamedTuple):
    """`name` is of the place in the task, `key` of all that the answer depends on."""

    name: str
    chat: list[dict]
    options: Options
    key: str

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())


class SimpleModel(lmms):
    """The older interface, a context with its images; the only one for log-likelihoods and multiple choice.

    The arguments are those of `lmms-eval --model_args`. `mode` "generate" draws instead of writing; a task can ask for
    it, too, in its generation_kwargs. `output_dir` takes images, and answers, which a second run does not ask again.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "scenes",
        batch_size: int | str = 1,
        mode: str = "understand",
        output_dir: str | None = None,
        cfg_scale: float = DrawingOptions.cfg_scale,
        device: str | None = None,
        max_batch_size: int | None = None,  # lmms-eval gives it to every model
    ):
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be a whole number, at least 1")
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
        DrawingOptions(cfg_scale=cfg_scale)
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(device) if device and self._world_size == 1 else own_device()
        self.model = Mllm.from_pretrained(pretrained).to(self.device).eval()
        self.processor = Processor.from_pretrained(pretrained)
        self.batch_size, self.mode, self.cfg_scale = int(batch_size), mode, cfg_scale
        self.output_dir = Path(output_dir).absolute() if output_dir else None
        self.weights_hash = self.model.weights_hash() if output_dir else ""
        self.answers = read_answers(self.output_dir / "answers") if output_dir else {}
        self.unreadable: list[dict] = []

    # ---- what lmms-eval calls

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        before = len(self.unreadable)
        answers = self._run(requests, self._chat)
        if answers and len(self.unreadable) - before == len(answers):
            raise ValueError(f"none of {len(answers)} requests can be read: {self.unreadable[-1]['error']}")
        return answers

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """The answers of all rounds. Each round is a chat of its own, which the task writes knowing the answers."""
        return [self._converse(request) for request in requests]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """(mean loss of the answer's ids, are they the greedy ones). A loss, although the name says otherwise:
        lmms-eval takes the choice with the lowest. Its 0.7 makes a string of what is in no GenerationResult."""
        return [GenerationResult(text=tuple(answer)) for answer in self._run(requests, self._answered_chat)]

    # ---- how requests become chats: here the two interfaces differ

    def _chat(self, request: Instance) -> list[dict]:
        return question(request.args[2](self._doc(request)), request.args[0])

    def _round(self, request: Instance, number: int, answers: list[str], info: Any) -> tuple:
        """A round after the first -> (the chat, is it over, the answers so far, what the task wants to remember)."""
        visuals, context, over, answers, info = request.args[3](
            self._doc(request), previous_output=answers, round_idx=number, previous_round_info=info
        )
        return None if over else question(visuals, context), over, answers, info

    # ---- the rest is the same for both

    def _doc(self, request: Instance) -> dict:
        doc_id, task, split = request.args[-3:]
        return self.task_dict[task][split][doc_id]

    def _answered_chat(self, request: Instance) -> list[dict]:
        answer = request.args[1]  # a text, or a function of the document
        answer = str(answer(self._doc(request))) if callable(answer) else answer
        return [*self._chat(request), {"role": "assistant", "content": [text_part(answer.strip())]}]

    def _converse(self, request: Instance) -> list[str]:
        answers, info = self._run([request], self._chat), None
        for number in count(1):
            chat, over, answers, info = self._round(request, number, answers, info)
            if over:
                return list(answers)
            answers = [*answers, *self._run([request], lambda _, chat=chat: chat)]

    def _run(self, requests: Sequence[Instance], chat: Callable[[Instance], list[dict]]) -> list:
        """Answers in the order of the requests, empty ones to those that cannot be read."""
        answers, waiting, repeats = [], defaultdict(list), Counter()
        for place, request in enumerate(watch(requests, "requests")):
            kind = self._kind(request)
            answers.append(EMPTY[kind])
            if request.metadata.get("__padding_only__"):  # evens out the processes; nobody looks at the answer
                continue
            name = f"{request.task_name}_{request.doc_id}"
            repeats[name] += 1
            try:
                ask = self._ask(f"{name}_{repeats[name]}", request, kind, chat(request))
            except DAMAGED as error:
                if kind == "score":  # no number stands for "no answer"
                    raise
                self._report(request, error)
                continue
            if ask.key in self.answers:
                answers[place] = self.answers[ask.key]
                continue
            waiting[ask.options].append((place, ask))
            if len(waiting[ask.options]) == self.batch_size:
                self._answer(waiting.pop(ask.options), answers)
        for batch in waiting.values():
            self._answer(batch, answers)
        return answers

    def _kind(self, request: Instance) -> str:
        if request.request_type == "loglikelihood":
            return "score"
        if generation_kwargs(request).get("mode", self.mode) == "understand":
            return "write"
        if self.output_dir is None:
            raise ValueError("drawing needs a folder for the images: --model_args output_dir=DIR")
        return "draw"

    def _ask(self, name: str, request: Instance, kind: str, chat: list[dict]) -> Ask:
        """Raises ValueError where the model cannot take the chat."""
        if kind == "draw":
            sample = start_drawing(self.model, self.processor, prompt_of(chat))
        else:
            sample = self.processor.encode(chat, open_answer=kind == "write")
            check_length(self.model, self.processor, sample, int(kind == "write"))
        options = Options(kind)
        if kind == "write":
            context = self.model.config.text_config.max_position_embeddings
            options = writing_options(generation_kwargs(request), context - len(sample.ids))
        content = [(message["role"], *map(text_or_hash, message["content"])) for message in chat]
        return Ask(name, chat, options, digest([self.weights_hash, self.cfg_scale, name, options, content]))

    def _report(self, request: Instance, error: Exception) -> None:
        what = {"task": request.task_name, "doc_id": request.doc_id, "error": " ".join(str(error).split())}
        self.unreadable.append(what)
        logging.getLogger(__name__).warning("%(task)s, document %(doc_id)s cannot be read: %(error)s", what)

    def _answer(self, batch: Sequence[tuple[int, Ask]], answers: list) -> None:
        """Fill in the answers to asks of equal options, and keep them."""
        places, asks = zip(*batch, strict=True)
        kind = asks[0].options.kind
        found = {"write": self._write, "draw": self._draw, "score": self._score}[kind](asks)
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
        if self.output_dir and kind != "draw":
            rows = [json.dumps([ask.key, answer]) for ask, answer in zip(asks, found, strict=True)]
            with open(self.output_dir / "answers" / f"{self._rank}.jsonl", "a") as file:
                file.write("\n" + "\n".join(rows))  # a line that was cut short ends here

    def _write(self, asks: Sequence[Ask]) -> list[str]:
        _, length, temperature, top_p, until = asks[0].options
        chats, seeds = [ask.chat for ask in asks], [ask.seed for ask in asks]
        texts = generate_texts(self.model, self.processor, chats, length, seeds, temperature=temperature, top_p=top_p)
        return [clean(text, until) for text in texts]

    def _draw(self, asks: Sequence[Ask]) -> list[str]:
        """What is not there yet. The answer is lmms-eval's convention for images: JSON with absolute paths."""
        files = [self.output_dir / "images" / f"{ask.name}_{ask.key}.png" for ask in asks]
        missing = [(file, ask) for file, ask in zip(files, asks, strict=True) if not file.exists()]
        prompts, seeds = [prompt_of(ask.chat) for _, ask in missing], [ask.seed for _, ask in missing]
        images = generate_images(self.model, self.processor, prompts, seeds, cfg_scale=self.cfg_scale)
        for (file, ask), image in zip(missing, images, strict=True):
            save(file, image, {"prompt": prompt_of(ask.chat), "seeds": [ask.seed], "model": self.weights_hash})
        return [json.dumps({"text": "", "images": [str(file)]}) for file in files]

    @torch.no_grad()
    def _score(self, asks: Sequence[Ask]) -> list[tuple[float, bool]]:
        """Teacher forcing. The rows end together, so that logits are needed at the last positions only."""
        batch = self.processor.collate(
            [self.processor.encode(ask.chat, open_answer=False) for ask in asks], self.model.image_tokenizer, left=True
        )
        labels_BT, mask_BT = batch.labels.to(self.device), batch.attention_mask.to(self.device)
        longest = int((labels_BT != IGNORED).sum(1).max())
        logits_BTS = self.model(
            input_ids=batch.input_ids.to(self.device),
            codes=None if batch.codes is None else batch.codes.to(self.device),
            is_target=batch.is_target,
            features=None if batch.features is None else batch.features.to(self.device),
            image_lengths=batch.image_lengths,
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(1) - 1).clamp_min(0),
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
        labels_BT = labels_BT[:, -longest:]
        asked_BT = labels_BT != IGNORED
        loss_BT = F.cross_entropy(logits_BTS.float().transpose(1, 2), labels_BT, reduction="none", ignore_index=IGNORED)
        loss_B, greedy_BT = loss_BT.sum(1) / asked_BT.sum(1), (logits_BTS.argmax(-1) == labels_BT) | ~asked_BT
        return list(zip(loss_B.tolist(), greedy_BT.all(1).tolist(), strict=True))


class ChatModel(SimpleModel):
    """The newer interface, which lmms-eval prefers: chats with texts and images in any order."""

    is_simple = False

    def _chat(self, request: Instance) -> list[dict]:
        return as_chat(request.args[1](self._doc(request)))

    def _round(self, request: Instance, number: int, answers: list[str], info: Any) -> tuple:
        messages, over, answers, info = request.args[1](
            self._doc(request), round_idx=number, previous_output=answers, previous_round_info=info
        )
        return None if over else as_chat(messages), over, answers, info


# ---- lmms-eval's forms and ours


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def image_part(visual: Any, kind: str = "image") -> dict:
    """Of a PIL image or its file. Raises NotImplementedError for sound and video."""
    if kind == "image" and isinstance(visual, str):
        visual = load_image(visual)
    if kind != "image" or not isinstance(visual, Image.Image):
        raise NotImplementedError(f"the model reads text and images, not {kind} ({type(visual).__name__})")
    visual.load()  # here a damaged file is found
    return {"type": "image", "image": visual}


def question(visuals: Sequence[Any] | None, text: str) -> list[dict]:
    return [{"role": "user", "content": [*map(image_part, visuals or []), text_part(text)]}]


def as_chat(messages: Sequence[dict]) -> list[dict]:
    """Our templates have no system turn: its text opens the user's."""
    chat: list[dict] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        parts = [
            text_part(part["text"]) if part["type"] == "text" else image_part(part["url"], part["type"])
            for part in message["content"]
        ]
        if chat and chat[-1]["role"] == role:
            chat[-1]["content"] += [text_part("\n"), *parts]
        else:
            chat.append({"role": role, "content": parts})
    return chat


def prompt_of(chat: Sequence[dict]) -> str:
    """What to draw. Raises NotImplementedError where there is an image to start from."""
    parts = [part for message in chat for part in message["content"]]
    if any(part["type"] == "image" for part in parts):
        raise NotImplementedError("the model draws from text alone, not from an image")
    return "".join(part["text"] for part in parts)


def text_or_hash(part: dict) -> str:
    return part["text"] if part["type"] == "text" else hashlib.sha256(part["image"].tobytes()).hexdigest()


def generation_kwargs(request: Instance) -> dict:
    return next((argument for argument in request.args if isinstance(argument, dict)), {})


def writing_options(kwargs: dict, room: int) -> Options:
    """From a task's generation_kwargs, with at most the `room` new ids that the context has."""
    length = int(kwargs.get("max_new_tokens") or NEW_TOKENS)
    if length > room:
        length = room // 64 * 64 or room  # in steps, so that asks of nearly equal length still share a batch
    sampled = kwargs.get("do_sample")  # None where a task leaves it to the temperature
    temperature = 0.0 if sampled is False else float(kwargs.get("temperature", 1.0 if sampled else 0.0) or 0.0)
    top_p = float(kwargs.get("top_p") or 1.0) if temperature else 1.0  # greedy tasks say 0, 1 or nothing
    until = kwargs.get("until") or ()
    return Options("write", length, temperature, top_p, (until,) if isinstance(until, str) else tuple(until))


def clean(text: str, until: Sequence[str]) -> str:
    """Up to the first of `until`. A single word loses its full stop: POPE compares whole strings, "Yes." with "yes"."""
    for stop in filter(None, until):
        text = text.split(stop)[0]
    text = text.strip()
    return text if " " in text else text.removesuffix(".")


def read_answers(folder: Path) -> dict[str, Any]:
    """{key: answer} of earlier runs, of all their processes. Makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = {}
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # cut short when a run was killed
                key, answers[key] = json.loads(line)
    return answers
