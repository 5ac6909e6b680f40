"""The report on a scenes model: questions, drawings by GenEval's rules, the image tokenizer, and speed.

Questions and tokenizer are tried on scenes of split "held_out", drawing on GenEval's prompts. Each part is
a function (subject, settings, out) -> scores, None while other processes are still at their share. Answers, drawings
and verdicts stay in `out`; a second run goes on there.
"""

import json
import operator
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from data_recipes.files import write_json
from data_recipes.scenes.world import (
    CLASSES,
    FORMS,
    FREE_FORMS,
    GENEVAL,
    QUESTIONS,
    World,
    a,
    expressible,
    held_out,
    questions,
)
from mllm import generate_images, generate_text, generate_texts
from tokenizer.quantizers import code_use, count_codes
from tokenizer.weights import weights_hash

from ..drawn_folder import Picture
from ..geneval.drawing import Settings, draw, geneval_pictures
from ..geneval.rules import Prompt, judge_images, judge_prompt, load_records, summary
from ..images.similarity import psnr
from ..images.zero_shot import reads, text_reader
from ..pieces import claim, digest, finish, flatten, in_batches, mean, spread, work_json, write_rows
from .conversation import answer_trained_forms, answer_unseen_forms, talk
from .editing import judge_edits
from .subject import Subject

SCENES = 600  # for questions and for the tokenizer, when no limit is given
SPEED_PROMPT, SPEED_QUESTION = "a photo of a red car", "what is this?"


def evaluate_scenes(subject: Subject, settings: Settings, out: Path, parts: Sequence[str] | None = None) -> dict | None:
    """{part: {"scores", "settings"}}, with the parts done before in `out`; None while other processes are still at
    their share.

    Raises ValueError when `out` belongs to another model or another way of drawing.
    """
    parts = tuple(PARTS) if parts is None else parts
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    claim(out, drawn_by(subject, settings))

    def share() -> dict | None:
        scores = {part: PARTS[part](subject, settings, out) for part in PARTS if part in parts}
        return None if None in scores.values() else scores

    scores = finish(share)
    if scores is None:
        return None
    files = {part: out / "parts" / f"{part}.json" for part in PARTS}
    for part, found in scores.items():
        write_json(files[part], {"scores": found, "settings": asdict(settings)})
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.is_file()}


def drawn_by(subject: Subject, settings: Settings) -> dict:
    """What must be equal for results to be of one run."""
    return {"model": subject.model.weights_hash(), "seed": settings.seed, **settings.drawing}


def scene_seeds(settings: Settings) -> range:
    start = settings.seed * 1_000_000
    return range(start, start + (settings.limit or SCENES))


def by_scenes(folder: Path, settings: Settings, measure: Callable[[range], Any], label: str) -> list | None:
    """What `measure` says of the scenes of each batch of seeds; None while other processes are still at theirs."""
    batches = in_batches(scene_seeds(settings), settings.batch_size)
    return work_json(folder, {f"{seeds[0]}-{seeds[-1]}.json": seeds for seeds in batches}, measure, label)


# ---- questions


def answer_questions(
    subject: Subject,
    settings: Settings,
    out: Path,
    part: str = "questions",
    forms: Mapping[str, str] = FORMS,
    is_right: Callable[[str, str], bool] = operator.eq,
) -> dict[str, float] | None:
    """Share of replies that are the answer, or are right by `is_right` (reply, answer), overall and by kind; greedy.
    Rows in `part`.jsonl."""

    def answers(seeds: range) -> list[dict]:
        batches = in_batches(list(asked(subject.world, seeds, forms)), settings.batch_size)
        return [row for batch in batches for row in answered(subject, batch, is_right)]

    pieces = by_scenes(out / "pieces" / part, settings, answers, part)
    if pieces is None:
        return None
    rows = [row for piece in pieces for row in piece]
    write_rows(out / f"{part}.jsonl", rows)
    kinds = [kind for kind in QUESTIONS if any(row["kind"] == kind for row in rows)]
    scores = {kind: mean([row["correct"] for row in rows if row["kind"] == kind]) for kind in kinds}
    return {"overall": mean([row["correct"] for row in rows]), **scores}


def answer_freely_worded(subject: Subject, settings: Settings, out: Path) -> dict[str, float] | None:
    """The same of the same questions, worded as none was in training. A reply may be a sentence: it is right if it
    holds the answer."""
    return answer_questions(subject, settings, out, "free_wording", FREE_FORMS, holds)


def holds(reply: str, answer: str) -> bool:
    """Whether the words of the answer stand in the reply, side by side, in any case."""
    said, wanted = (" ".join(["", *re.findall(r"\w+", text.lower()), ""]) for text in (reply, answer))
    return wanted in said


def asked(world: World, seeds: Iterable[int], forms: Mapping[str, str] = FORMS) -> Iterator[tuple]:
    """(scene seed, number, question)."""
    for seed in seeds:
        scene = world.scene(seed, "held_out")
        for number, question in enumerate(questions(scene, random.Random(f"questions {seed}"), forms)):
            yield seed, number, question


@cache
def asked_once(artwork: str, seeds: range) -> list[tuple]:
    """The same, kept: lmms-eval's tasks have a kind of question each, and all come from these."""
    return list(asked(World(artwork), seeds))


def answered(subject: Subject, batch: Sequence[tuple], is_right: Callable[[str, str], bool]) -> list[dict]:
    world = subject.world
    images = {seed: world.render(world.scene(seed, "held_out")) for seed, _, _ in batch}
    talks = [[user(images[seed], question.text)] for seed, _, question in batch]
    replies = generate_texts(subject.model, subject.processor, talks)
    return [
        {
            "scene": seed,
            "number": number,
            "kind": question.kind,
            "question": question.text,
            "answer": question.answer,
            "reply": reply.strip(),
            "correct": is_right(reply.strip(), question.answer),
        }
        for (seed, number, question), reply in zip(batch, replies, strict=True)
    ]


def user(image: Image.Image, text: str) -> dict:
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}


# ---- drawing


def judge_drawings(subject: Subject, settings: Settings, out: Path) -> dict[str, dict[str, float]] | None:
    """GenEval's scores of the drawn images, of the held-out prompts, and of true renders: the most possible.

    Images are in images/00000/samples/0000.png (GenEval's layout), their verdicts in results.jsonl.
    """
    records = spread([(i, r) for i, r in enumerate(load_records(GENEVAL)) if expressible(r)], settings.limit)
    drawings = {number: list(geneval_pictures([(number, record)], settings)) for number, record in records}
    pictures = [picture for prompt in drawings.values() for picture in prompt]
    refused = draw(subject.model, subject.processor, out / "images", pictures, settings, drawn_by(subject, settings))
    # A process judges the prompts that it has drawn: these pieces are in the order by which `draw` shares them.
    judge = digest([weights_hash(subject.detector), settings.images_per_prompt])
    pieces = {f"{number:05d}_{judge}.json": prompt for number, prompt in drawings.items()}
    judged = work_json(out / "pieces" / "drawing", pieces, lambda one: verdicts(subject, out, one, refused), "judging")
    if judged is None:
        return None
    model, ceiling, coded = ([row for piece in judged for row in piece[kind]] for kind in ("model", "true", "coded"))
    write_rows(out / "results.jsonl", model)
    return {
        "model": summary(model),
        "held_out": summary(row for row in model if row["held_out"]),
        "ceiling": summary(ceiling),
        "tokenizer_ceiling": summary(coded),
    }


def verdicts(subject: Subject, out: Path, prompt: Sequence[Picture], refused: dict[str, str]) -> dict[str, list[dict]]:
    """GenEval's rows for a prompt's images: "model", with seed and held_out, for those it drew (wrong where there is
    none), "true" for true renders, and "coded" for these through the image tokenizer."""
    record, world, image_tokenizer = prompt[0].record, subject.world, subject.model.image_tokenizer
    files = [out / "images" / picture.file for picture in prompt]
    rows = judge_prompt(subject.detector, out, Prompt(record, files, refused.get(prompt[0].file, "")))
    true = [world.render(world.scene_of(record, picture.seeds[0])) for picture in prompt]
    coded = image_tokenizer.decode(image_tokenizer.encode(true))
    return {
        "model": [
            {**row, "seed": picture.seeds[0], "held_out": held_out(record)}
            for row, picture in zip(rows, prompt, strict=True)
        ],
        "true": judge_images(subject.detector, [record] * len(true), true),
        "coded": judge_images(subject.detector, [record] * len(coded), coded),
    }


# ---- image tokenizer


def measure_tokenizer(subject: Subject, settings: Settings, out: Path) -> dict[str, Any] | None:
    """Mean PSNR in dB, share of the entries used by each sub-codebook, and zero-shot class accuracy: the share of
    single-object scenes whose class name, of all, is nearest in the contrastive branch. No such accuracy for a model
    whose text tokenizer is not the one that this branch was trained with, such as a pretrained backbone's."""
    names_CE = class_features(subject)
    pieces = by_scenes(
        out / "pieces" / "image_tokenizer", settings, lambda seeds: reconstructed(subject, seeds, names_CE), "tokenizer"
    )
    if pieces is None:
        return None
    usage = code_use(sum(torch.tensor(piece["counts"]) for piece in pieces))["usage"]
    found = [value for piece in pieces for value in piece["zero_shot"]]
    return {
        "psnr": mean([value for piece in pieces for value in piece["psnr"]]),
        "usage": {str(k): share for k, share in enumerate(usage)},
        **({"zero_shot": mean(found)} if found else {}),
    }


@torch.inference_mode()
def class_features(subject: Subject) -> torch.Tensor | None:
    """names_CE: one description of each class; None when the text tower does not read the model's text tokenizer."""
    image_tokenizer, captions = subject.model.image_tokenizer, [f"a photo of {a(name)}" for name in CLASSES]
    config, text_tokenizer = image_tokenizer.config, subject.processor.tokenizer
    if not reads(config, text_tokenizer):
        return None
    read_texts = text_reader(config, text_tokenizer)
    return image_tokenizer.text_features(read_texts(captions).to(image_tokenizer.device))


@torch.inference_mode()
def reconstructed(subject: Subject, seeds: range, names_CE: torch.Tensor | None) -> dict[str, list]:
    """{"psnr" of each scene, "counts" of the codes of each sub-codebook, "zero_shot": is the class found}."""
    image_tokenizer, world = subject.model.image_tokenizer, subject.world
    images = [world.render(world.scene(seed, "held_out")) for seed in seeds]
    codes_NLK = image_tokenizer.encode(images)
    return {
        "psnr": list(map(psnr, images, image_tokenizer.decode(codes_NLK))),
        "counts": count_codes(codes_NLK, image_tokenizer.config.codebook_size).int().tolist(),
        "zero_shot": [] if names_CE is None else classified(subject, seeds, names_CE),
    }


def classified(subject: Subject, seeds: range, names_CE: torch.Tensor) -> list[bool]:
    """Of scenes with a single object, whether its class is the nearest."""
    world = subject.world
    single = [world.scene(seed, "held_out", "single_object") for seed in seeds]
    nearest = subject.model.image_tokenizer.image_features([world.render(scene) for scene in single]) @ names_CE.T
    return [CLASSES[i] == scene.things[0].name for i, scene in zip(nearest.argmax(1).tolist(), single, strict=True)]


# ---- speed


def measure_speed(subject: Subject, settings: Settings, out: Path) -> dict[str, float] | None:
    """Seconds to the first piece of an answer, for one drawn image, and until scripts.chat says something.

    Measured by one process, once. The first answer is asked cold, the image is the second one, chat counts from its
    start as a process.
    """
    pieces = work_json(out / "pieces", {"speed.json": subject}, lambda _: timed(subject, settings, out), "speed")
    return None if pieces is None else pieces[0]


def timed(subject: Subject, settings: Settings, out: Path) -> dict[str, float]:
    world = subject.world
    image = world.render(world.scene(settings.seed, "held_out", "single_object"))
    start = time.perf_counter()
    next(generate_text(subject.model, subject.processor, [user(image, SPEED_QUESTION)]), None)
    first_token = time.perf_counter() - start
    for _ in range(2):  # the first is the warm-up
        start = time.perf_counter()
        generate_images(subject.model, subject.processor, [SPEED_PROMPT], seeds=settings.seed, **settings.drawing)
        drawing = time.perf_counter() - start
    image.save(out / "speed.png")
    chat = seconds_to_first_byte(subject.name, out / "speed.png")
    return {"first_token": first_token, "image": drawing, "chat_first_output": chat}


def seconds_to_first_byte(name: str, image: Path) -> float:
    """Of a fresh scripts.chat process that answers one question on one image."""
    options = ["--model", name, "--image", str(image), "--prompt", SPEED_QUESTION]
    command = [sys.executable, "-m", "scripts.chat", *options]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as chat:
        chat.stdout.read(1)
        seconds = time.perf_counter() - start
        _, errors = chat.communicate()
    if chat.returncode:
        raise ValueError(f"{' '.join(command)} failed: {errors.decode().strip().splitlines()[-1:]}")
    return seconds


# Speed comes first: its first answer is then the first one after loading.
PARTS = {
    "speed": measure_speed,
    "questions": answer_questions,
    "free_wording": answer_freely_worded,
    "trained_forms": answer_trained_forms,
    "unseen_forms": answer_unseen_forms,
    "talk": talk,
    "drawing": judge_drawings,
    "editing": judge_edits,
    "tokenizer": measure_tokenizer,
}


# ---- goals

AT_LEAST = {
    "questions.overall": 0.95,
    **{f"questions.{kind}": 0.90 for kind in QUESTIONS},
    "trained_forms.overall": 0.96,
    "unseen_forms": 0.90,
    "talk.words": 1.0,
    "talk.pictures": 0.98,
    "talk.kept_facts": 0.93,
    "drawing.model.overall": 0.80,
    "drawing.ceiling.overall": 0.97,
    "editing.model.done": 0.80,
    "editing.model.kept": 0.95,
    "editing.chains.3.done": 0.60,
    "tokenizer.psnr": 27.0,
    "tokenizer.usage": 0.90,
    "tokenizer.zero_shot": 0.95,
}
AT_MOST = {"talk.perplexity_ratio": 1.02, "speed.image": 2.0, "speed.first_token": 0.3, "speed.chat_first_output": 10.0}


class Line(NamedTuple):
    """One number of the report; `goal` is "" and `met` None where none was set."""

    name: str
    value: float
    goal: str
    met: bool | None


def report(results: dict) -> list[Line]:
    """All scores with dotted names, e.g. "tokenizer.usage.3", beside their goals."""
    return [compare(name, value) for part, result in results.items() for name, value in flatten(part, result["scores"])]


def compare(name: str, value: float) -> Line:
    """A goal holds for its name and for everything below it."""
    for goals, sign in ((AT_LEAST, ">="), (AT_MOST, "<=")):
        goal = goals.get(name, goals.get(name.rpartition(".")[0]))
        if goal is not None:
            return Line(name, value, f"{sign} {goal:g}", value >= goal if sign == ">=" else value <= goal)
    return Line(name, value, "", None)
