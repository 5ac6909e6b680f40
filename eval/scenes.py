"""The report on a scenes model: questions, drawings by GenEval's rules, the image tokenizer, and speed.

Questions and tokenizer are tried on scenes of split "held_out", drawing on GenEval's prompts. Each part is
a function (subject, settings, out) -> scores. Answers and drawings stay in `out`; a second run goes on there.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from data_recipes.scenes import CLASSES, GENEVAL, QUESTIONS, World, a, expressible, held_out, questions
from eval.detector import Detector
from eval.drawing import Picture, Settings, draw, geneval_pictures, in_batches, spread
from eval.geneval import judge_images, load_records, result_row, summary
from eval.image_metrics import psnr
from eval.pieces import claim, watch
from mllm import Mllm, Processor, generate_images, generate_text, generate_texts
from mllm.text import contrastive_ids

SCENES = 600  # for questions and for the tokenizer, when no limit is given
SPEED_PROMPT, SPEED_QUESTION = "a photo of a red car", "what is this?"


class Subject(NamedTuple):
    """What is evaluated (`name` is what scripts.chat is called with), and the judge of its drawings."""

    name: str
    model: Mllm
    processor: Processor
    detector: Detector

    @property
    def world(self) -> World:
        return World(size=self.model.image_tokenizer.config.image_size)


def scene_seeds(settings: Settings) -> range:
    start = settings.seed * 1_000_000
    return range(start, start + (settings.limit or SCENES))


def evaluate_scenes(subject: Subject, settings: Settings, out: Path, parts: Sequence[str] | None = None) -> dict:
    """{part: {"scores", "settings", "seconds"}}, with the parts done before in `out`.

    Raises ValueError when `out` belongs to another model or another way of drawing.
    """
    parts = tuple(PARTS) if parts is None else parts
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    claim(out, drawn_by(subject, settings))
    results_file = out / "parts.json"
    results = json.loads(results_file.read_text()) if results_file.is_file() else {}
    for part in (name for name in PARTS if name in parts):
        start = time.monotonic()
        scores = PARTS[part](subject, settings, out)
        results[part] = {
            "scores": scores,
            "settings": asdict(settings),
            "seconds": round(time.monotonic() - start, 1),
        }
        results_file.write_text(json.dumps(results, indent=2) + "\n")
    return results


def drawn_by(subject: Subject, settings: Settings) -> dict:
    """What must be equal for results to be of one run."""
    return {"model": subject.model.weights_hash(), "seed": settings.seed, **settings.sampling}


def read_rows(file: Path) -> list[dict]:
    """The whole lines of a JSONL file; a last line cut short by a crash is dropped from the file, too."""
    if not file.is_file():
        return []
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


# ---- questions


def answer_questions(subject: Subject, settings: Settings, out: Path) -> dict[str, float]:
    """Share of answers that match exactly, overall and by kind; greedy. Rows in questions.jsonl."""
    file = out / "questions.jsonl"
    wanted = set(scene_seeds(settings))
    done = {(row["scene"], row["number"]) for row in read_rows(file)}
    batches = in_batches([ask for ask in asked(subject.world, settings) if ask[:2] not in done], settings.batch_size)
    with open(file, "a", encoding="utf-8") as rows:
        for batch in watch(batches, "questions"):
            for row in answered(subject, batch):
                print(json.dumps(row), file=rows)
            rows.flush()
    rows = [row for row in read_rows(file) if row["scene"] in wanted]
    kinds = [kind for kind in QUESTIONS if any(row["kind"] == kind for row in rows)]
    scores = {kind: share([row["correct"] for row in rows if row["kind"] == kind]) for kind in kinds}
    return {"overall": share([row["correct"] for row in rows]), **scores}


def asked(world: World, settings: Settings) -> Iterator[tuple]:
    """(scene seed, number, question)."""
    for seed in scene_seeds(settings):
        scene = world.scene(seed, "held_out")
        for number, question in enumerate(questions(scene, random.Random(f"questions {seed}"))):
            yield seed, number, question


def answered(subject: Subject, batch: Sequence[tuple]) -> list[dict]:
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
            "correct": reply.strip() == question.answer,
        }
        for (seed, number, question), reply in zip(batch, replies, strict=True)
    ]


def user(image: Image.Image, text: str) -> dict:
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}


def share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


# ---- drawing


def judge_drawings(subject: Subject, settings: Settings, out: Path) -> dict[str, dict[str, float]]:
    """GenEval's scores of the drawn images, of the held-out prompts, and of true renders: the most possible.

    Images are in images/00000/samples/0000.png (GenEval's layout), their verdicts in results.jsonl.
    """
    records = spread([(i, r) for i, r in enumerate(load_records(GENEVAL)) if expressible(r)], settings.limit)
    pictures = list(geneval_pictures(records, settings))
    draw(subject.model, subject.processor, out / "images", pictures, settings, drawn_by(subject, settings))
    rows = []
    for batch in watch(in_batches(pictures, settings.batch_size), "judging"):
        rows += judged(subject.detector, out, batch)
    with open(out / "results.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    ceiling, through_tokenizer = judge_true_renders(subject, settings, pictures)
    return {
        "model": summary(rows),
        "held_out": summary(row for row in rows if row["held_out"]),
        "ceiling": ceiling,
        "tokenizer_ceiling": through_tokenizer,
    }


def judged(detector: Detector, out: Path, batch: Sequence[Picture]) -> list[dict]:
    """GenEval's row for every drawn image: its own fields, and seed and held_out."""
    files = [out / "images" / picture.file for picture in batch]
    verdicts = judge_images(detector, [picture.record for picture in batch], [Image.open(file) for file in files])
    return [
        {
            **result_row(f"images/{picture.file}", picture.record, verdict),
            "seed": picture.seeds[0],
            "held_out": held_out(picture.record),
        }
        for picture, verdict in zip(batch, verdicts, strict=True)
    ]


def judge_true_renders(subject: Subject, settings: Settings, pictures: Sequence[Picture]) -> tuple[dict, dict]:
    """Scores of true scenes of the records, as rendered and through the image tokenizer."""
    world, image_tokenizer = subject.world, subject.model.image_tokenizer
    plain, coded = [], []
    for batch in watch(in_batches(pictures, settings.batch_size), "ceilings"):
        records = [picture.record for picture in batch]
        images = [world.render(world.scene_of(picture.record, picture.seeds[0])) for picture in batch]
        plain += judge_images(subject.detector, records, images)
        coded += judge_images(subject.detector, records, image_tokenizer.decode(image_tokenizer.encode(images)))
    return summary(plain), summary(coded)


# ---- image tokenizer


def measure_tokenizer(subject: Subject, settings: Settings, out: Path) -> dict:
    """Mean PSNR in dB, share of the entries used by each sub-codebook, and zero-shot class accuracy."""
    image_tokenizer, world = subject.model.image_tokenizer, subject.world
    psnrs, codes = [], []
    for seeds in watch(in_batches(scene_seeds(settings), settings.batch_size), "tokenizer"):
        images = [world.render(world.scene(seed, "held_out")) for seed in seeds]
        codes_NLK = image_tokenizer.encode(images)
        psnrs += map(psnr, images, image_tokenizer.decode(codes_NLK))
        codes.append(codes_NLK.flatten(0, 1))
    used = [column.unique().numel() for column in torch.cat(codes).unbind(1)]
    return {
        "psnr": sum(psnrs) / len(psnrs),
        "usage": {str(k): count / image_tokenizer.config.codebook_size for k, count in enumerate(used)},
        "zero_shot": zero_shot(subject, settings),
    }


@torch.inference_mode()
def zero_shot(subject: Subject, settings: Settings) -> float:
    """Share of single-object scenes whose class name, of all, is nearest in the contrastive branch."""
    image_tokenizer, world = subject.model.image_tokenizer, subject.world
    config, captions = image_tokenizer.config, [f"a photo of {a(name)}" for name in CLASSES]
    ids_CT = contrastive_ids(subject.processor.tokenizer, captions, config.text_context, config.text_vocab_size)
    names_CE = image_tokenizer.text_features(ids_CT.to(image_tokenizer.device))
    correct = []
    for seeds in watch(in_batches(scene_seeds(settings), settings.batch_size), "zero-shot"):
        scenes = [world.scene(seed, "held_out", "single_object") for seed in seeds]
        features_NE = image_tokenizer.image_features([world.render(scene) for scene in scenes])
        nearest = (features_NE @ names_CE.T).argmax(1).tolist()
        correct += [CLASSES[i] == scene.things[0].name for i, scene in zip(nearest, scenes, strict=True)]
    return share(correct)


# ---- speed


def measure_speed(subject: Subject, settings: Settings, out: Path) -> dict[str, float]:
    """Seconds to the first piece of an answer, for one drawn image, and until scripts.chat says something.

    The first answer is asked cold, the image is the second one, chat counts from its start as a process.
    """
    world = subject.world
    image = world.render(world.scene(settings.seed, "held_out", "single_object"))
    start = time.perf_counter()
    next(generate_text(subject.model, subject.processor, [user(image, SPEED_QUESTION)]), None)
    first_token = time.perf_counter() - start
    for _ in range(2):  # the first is the warm-up
        start = time.perf_counter()
        generate_images(subject.model, subject.processor, [SPEED_PROMPT], seeds=settings.seed, **settings.sampling)
        drawing = time.perf_counter() - start
    image.save(out / "speed.png")
    chat = seconds_to_first_byte(subject.name, out / "speed.png")
    return {"first_token": first_token, "image": drawing, "chat_first_output": chat}


def seconds_to_first_byte(name: str, image: Path) -> float:
    """Of a fresh scripts.chat process that answers one question on one image."""
    command = [
        sys.executable,
        "-m",
        "scripts.chat",
        "--model",
        name,
        "--image",
        str(image),
        "--prompt",
        SPEED_QUESTION,
    ]
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
    "drawing": judge_drawings,
    "tokenizer": measure_tokenizer,
}


# ---- goals

AT_LEAST = {
    "questions.overall": 0.95,
    **{f"questions.{kind}": 0.90 for kind in QUESTIONS},
    "drawing.model.overall": 0.80,
    "drawing.ceiling.overall": 0.97,
    "tokenizer.psnr": 27.0,
    "tokenizer.usage": 0.90,
    "tokenizer.zero_shot": 0.95,
}
AT_MOST = {"speed.image": 2.0, "speed.first_token": 0.3, "speed.chat_first_output": 10.0}


class Line(NamedTuple):
    """One number of the report; `goal` is "" and `met` None where none was set."""

    name: str
    value: float
    goal: str
    met: bool | None


def report(results: dict) -> list[Line]:
    """All scores with dotted names, e.g. "tokenizer.usage.3", beside their goals."""
    return [compare(name, value) for part, result in results.items() for name, value in flatten(part, result["scores"])]


def flatten(name: str, scores: dict | float) -> Iterator[tuple[str, float]]:
    if not isinstance(scores, dict):
        yield name, scores
        return
    for key, value in scores.items():
        yield from flatten(f"{name}.{key}", value)


def compare(name: str, value: float) -> Line:
    """A goal holds for its name and for everything below it."""
    for goals, sign in ((AT_LEAST, ">="), (AT_MOST, "<=")):
        goal = goals.get(name, goals.get(name.rpartition(".")[0]))
        if goal is not None:
            return Line(name, value, f"{sign} {goal:g}", value >= goal if sign == ">=" else value <= goal)
    return Line(name, value, "", None)
