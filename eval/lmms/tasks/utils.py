"""Documents and scores of the local tasks. Nothing is stored but the seeds: scenes and questions follow from them.

lmms-eval loads this file by its path, as a module of its own for each function that a task names.
"""

import json
import random
from functools import cache, partial
from typing import Any

from PIL import Image

from data_recipes.scenes.world import CLASSES, GENEVAL, QUESTIONS, World, a, expressible
from eval.geneval.rules import judge_images, load_records, summary
from eval.scenes.detector import Detector
from eval.scenes.suite import Settings, asked_once, scene_seeds
from mllm.folders import SHIPPED
from tokenizer.transform import load_image

Rows = Any  # a datasets.Dataset


def settings(seeds: Rows) -> Settings:
    """Of scenes.json, the one row that every task begins with."""
    return Settings(limit=seeds[0]["scenes"], seed=seeds[0]["seed"])


def questions(kind: str, seeds: Rows) -> Rows:
    """Those of scripts.eval_scenes, of one kind."""
    rows = asked_once(World().artwork, scene_seeds(settings(seeds)))
    docs = [{"scene": scene, "question": one.text, "answer": one.answer} for scene, _, one in rows if one.kind == kind]
    return type(seeds).from_list(docs)


what, count, color, where, exists, describe = (partial(questions, kind) for kind in QUESTIONS)


def presence(seeds: Rows) -> Rows:
    """Every class of a scene, and as many others."""
    world, docs = World(), []
    for seed in scene_seeds(settings(seeds)):
        shown = sorted({thing.name for thing in world.scene(seed, "held_out").things})
        others = random.Random(f"presence {seed}").sample(sorted(set(CLASSES) - set(shown)), len(shown))
        for name in shown + others:
            docs.append(
                {
                    "question_id": str(len(docs)),
                    "scene": seed,
                    "question": f"is there {a(name)}?",
                    "answer": "yes" if name in shown else "no",
                }
            )
    return type(seeds).from_list(docs)


def prompts(seeds: Rows) -> Rows:
    """In an order that shows all skills early, for runs with --limit."""
    records = [record for record in load_records(GENEVAL) if expressible(record)]
    random.Random(seeds[0]["seed"]).shuffle(records)
    return type(seeds).from_list([{"prompt": one["prompt"], "record": json.dumps(one)} for one in records])


@cache
def world() -> World:
    return World()


def picture(doc: dict) -> list[Image.Image]:
    return [world().render(world().scene(doc["scene"], "held_out"))]


def exact_match(doc: dict, results: list[str]) -> dict[str, float]:
    return {"exact_match": float(results[0] == doc["answer"])}


@cache
def detector() -> Detector:
    return Detector.from_pretrained(SHIPPED / "scenes" / "detector")


def geneval(doc: dict, results: list[str]) -> dict:
    """Of one drawing: is it right, under "overall" and under its skill. The answer is JSON with the image's path."""
    record, files = json.loads(doc["record"]), json.loads(results[0])["images"]
    [row] = judge_images(detector(), [record], [load_image(files[0])]) if files else [{**record, "correct": False}]
    return {"overall": {"tag": row["tag"], "correct": row["correct"]}, row["tag"]: float(row["correct"])}


def geneval_overall(rows: list[dict]) -> float:
    return summary(rows)["overall"]
