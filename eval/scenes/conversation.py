"""How a model talks, about scenes and beside them: the report's parts that `language.py` judges.

Replies are kept in pieces, and judged when all are there. Each part is a function (subject, settings, out) -> scores,
None while other processes are still at their share.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data_recipes.files import write_whole
from mllm import Mllm, Processor, generate_texts
from mllm.decode.batch import Batch
from mllm.decode.options import DrawingOptions
from mllm.decode.program import Chat, Program
from mllm.decode.run import run
from mllm.text.templates import Sample
from training.lm.build import build_backbone

from ..geneval.drawing import Settings
from ..pieces import digest, in_batches, work_json
from .language import asked, draw_requests, impossible_requests, knows, right, score, text_only
from .language_texts import FACTS, PLAIN_TEXT
from .subject import Subject

SCENES = 100  # that questions are about, when no limit is given
MESSAGES = 100  # of each kind, when no limit is given
KNOWN_FACTS = 30  # the first that the backbone answers right
ANSWER = 64  # tokens at most


# ---- questions about scenes


def answer_unseen_forms(subject: Subject, settings: Settings, out: Path) -> dict[str, float] | None:
    """Share of right answers to questions in forms that no training sample has, by kind, and "overall" as the plain
    mean of the kinds; greedy. Rows in unseen_forms.jsonl."""
    return _questions(subject, settings, out, "unseen_forms", "held_out")


def answer_trained_forms(subject: Subject, settings: Settings, out: Path) -> dict[str, float] | None:
    """The same in the forms of training, about scenes that are new all the same."""
    return _questions(subject, settings, out, "trained_forms", "train")


def _questions(subject: Subject, settings: Settings, out: Path, part: str, forms: str) -> dict[str, float] | None:
    start = settings.seed * 1_000_000
    seeds = range(start, start + (settings.limit or SCENES))
    batches = in_batches(list(asked(subject.world, seeds, forms)), settings.batch_size)

    def replies(number: int) -> list[str]:
        world, batch = subject.world, batches[number]
        images = {one.seed: world.render(one.scene) for one in batch}
        parts = [[_part("image", images[one.seed]), _part("text", one.question.text)] for one in batch]
        chats = [[{"role": "user", "content": content}] for content in parts]
        return generate_texts(subject.model, subject.processor, chats, ANSWER)

    pieces = _work(out, part, len(batches), settings, replies)
    if pieces is None:
        return None
    pairs = [pair for batch, found in zip(batches, pieces, strict=True) for pair in zip(batch, found, strict=True)]
    rows = [
        {
            "scene": one.seed,
            "kind": one.kind,
            "question": one.question.text,
            "answer": one.question.answer,
            "reply": reply,
            "right": right(one.scene, one.question.meaning, reply),
        }
        for one, reply in pairs
    ]
    _write_rows(out / f"{part}.jsonl", rows)
    return score(pairs)


def _part(kind: str, value: Any) -> dict[str, Any]:
    return {"type": kind, kind: value}


# ---- words, pictures, and what the backbone knew


def talk(subject: Subject, settings: Settings, out: Path) -> dict[str, float] | None:
    """Shares of messages, none of which is in training, that get what they ask for; rows in talk.jsonl:
    "words": of messages that want text, those that get some, and no picture;
    "refusals": the same of requests for what cannot be drawn;
    "pictures": of requests to draw, those that get one picture, and no digits;
    "facts": of `FACTS`, those that are answered right.
    "perplexity" is that of `PLAIN_TEXT`. With a backbone, "kept_facts" are those of the first 30 that it answers right,
    and "perplexity_ratio" compares the two."""
    number = settings.limit or MESSAGES
    messages = {
        "words": text_only(min(number, 100)),
        "refusals": impossible_requests(number),
        "pictures": [words for words, _ in draw_requests(subject.world, number)],
        "facts": _facts(settings),
    }
    batches = [(kind, batch) for kind, said in messages.items() for batch in in_batches(said, settings.batch_size)]

    def replies(piece: int) -> list[dict[str, Any]]:
        return _replies(subject.model, subject.processor, settings, batches[piece][1])

    pieces = _work(out, "talk", len(batches), settings, replies)
    backbone = _work(
        out, f"talk_{digest(subject.backbone)}", 1, settings, lambda _: _of_backbone(subject.backbone, settings)
    )
    if pieces is None or backbone is None:
        return None
    rows = [
        {"kind": kind, "message": message, **reply}
        for (kind, batch), found in zip(batches, pieces, strict=True)
        for message, reply in zip(batch, found, strict=True)
    ]
    _write_rows(out / "talk.jsonl", rows)
    return {**_shares(rows), **_compared(subject, rows, backbone[0])}


def _replies(model: Mllm, processor: Processor, settings: Settings, messages: Sequence[str]) -> list[dict[str, Any]]:
    """{"reply", "pictures": how many}, greedy; a model that decides to draw does."""
    drawing = DrawingOptions(**settings.drawing)
    pieces: list[list] = [[] for _ in messages]
    with torch.no_grad():
        chats = [Chat(message, ANSWER, settings.seed, drawing) for message in messages]
        programs = [Program(model, processor, chat, put.append) for chat, put in zip(chats, pieces, strict=True)]
    for _ in run(Batch(model, processor), programs):
        pass
    return [
        {"reply": program.text, "pictures": sum(not isinstance(piece, str) for piece in put)}
        for program, put in zip(programs, pieces, strict=True)
    ]


def _shares(rows: Sequence[dict]) -> dict[str, float]:
    def share(kind: str, holds: Callable[[dict], bool]) -> float:
        found = [row for row in rows if row["kind"] == kind]
        return sum(map(holds, found)) / len(found)

    def words(row: dict) -> bool:
        return bool(row["reply"].strip()) and not row["pictures"]

    def picture(row: dict) -> bool:
        return row["pictures"] == 1 and not any(sign.isdigit() for sign in row["reply"])

    judges = {"words": words, "refusals": words, "pictures": picture}
    return {kind: share(kind, judge) for kind, judge in judges.items()}


def _facts(settings: Settings) -> list[str]:
    return [fact.question for fact in FACTS[: settings.limit]]


def _of_backbone(name: str | None, settings: Settings) -> dict[str, Any]:
    """Its replies to `FACTS`, and its perplexity; {} without one."""
    if not name:
        return {}
    model, processor = build_backbone(name)
    replies = [
        one["reply"]
        for batch in in_batches(_facts(settings), settings.batch_size)
        for one in _replies(model, processor, settings, batch)
    ]
    return {"replies": replies, "perplexity": perplexity(model, processor)}


def _compared(subject: Subject, rows: Sequence[dict], backbone: dict[str, Any]) -> dict[str, float]:
    known = [knows(fact, row["reply"]) for fact, row in enumerate(row for row in rows if row["kind"] == "facts")]
    scores = {"facts": sum(known) / len(known), "perplexity": perplexity(subject.model, subject.processor)}
    if backbone:
        before = [fact for fact, reply in enumerate(backbone["replies"]) if knows(fact, reply)][:KNOWN_FACTS]
        scores["kept_facts"] = sum(known[fact] for fact in before) / max(1, len(before))
        scores["perplexity_ratio"] = scores["perplexity"] / backbone["perplexity"]
    return scores


@torch.no_grad()
def perplexity(model: Mllm, processor: Processor, paragraphs: Sequence[str] = PLAIN_TEXT) -> float:
    """Of the ids of plain text, paragraph by paragraph, each after the begin of text. It compares only models with the
    same text tokenizer."""
    samples = []
    for paragraph in paragraphs:
        sample = Sample()
        sample.add([processor.bos_id])
        sample.add(processor.tokenizer(paragraph, add_special_tokens=False).input_ids, target=True)
        samples.append(sample)
    batch = processor.collate(samples)
    ids_BT, labels_BT = batch.input_ids.to(model.device), batch.labels.to(model.device)
    h_BTD = model.backbone(inputs_embeds=model.embed(ids_BT)).last_hidden_state
    return math.exp(model.text_losses(h_BTD, labels_BT).double().mean().item())


# ---- pieces


def _work(out: Path, part: str, number: int, settings: Settings, make: Callable[[int], Any]) -> list | None:
    """What `make` gives for each of so many pieces; None while other processes are still at theirs."""
    which = digest([settings.limit, settings.batch_size])
    return work_json(out / "pieces" / part, {f"{n:04d}_{which}.json": n for n in range(number)}, make, part)


def _write_rows(file: Path, rows: Sequence[dict]) -> None:
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
