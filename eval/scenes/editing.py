"""Edits of scenes: is what was asked for true of the picture after it, and is everything else as it was?

A detector says what a picture shows. "done" compares it with what must be true after the edit; "kept" asks of every
other thing that it is there, in its colour, at its place (IoU 0.5 and more), and of the background that its colour is
the same. Where an instruction leaves open where a thing goes, later instructions of a chain find it where it went.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from data_recipes.scenes.language.edits import Edit
from data_recipes.scenes.world import Background, Thing, center, combinations, is_held_out, paint
from mllm import edit_images
from tokenizer.weights import weights_hash

from ..drawn_folder import save
from ..geneval.drawing import Settings
from ..geneval.rules import THRESHOLD
from ..pieces import digest, in_batches, mean, work_json, write_rows
from .language import at_place, edit_requests, lies
from .subject import Subject

SINGLES, CHAINS = 300, 100  # of one instruction, and of three, when no limit is given
SAME_PLACE = 0.5  # IoU
SAME_GROUND, NEW_GROUND = 25, 40  # in RGB; two backgrounds of different names are 28 apart and more
STAY = ("recolor", "replace", "swap")  # kinds after which it is known where each changed thing is

Boxes = dict[Thing, Sequence[float]]  # where things are in a picture


# ---- verdicts


def verdict(edit: Edit, boxes: Boxes, detections: Sequence[Mapping[str, Any]], picture: Image.Image) -> dict[str, bool]:
    """{"done", "kept", "both"} of a picture after an edit; before it, its things were at `boxes`."""
    found = [thing for thing in detections if thing["score"] > THRESHOLD]
    done = _is_done(edit, boxes, found, picture)
    fewer = _gone(edit) if edit.kind == "fewer" else []  # any of these may stay, where it was
    kept = all(
        _overlap(_like(thing, found), boxes[thing]) >= SAME_PLACE
        for thing in edit.after.things
        if thing in edit.before.things and thing.name not in [one.name for one in fewer]
    )
    for thing in fewer[:1]:
        places = [boxes[other] for other in edit.before.things if other.name == thing.name]
        kept &= all(max(_iou(one["box"], box) for box in places) >= SAME_PLACE for one in _like(thing, found))
    if edit.kind != "background":
        kept &= off_ground(picture, edit.before.background, _all_boxes(edit, boxes, found)) <= SAME_GROUND
    return {"done": done, "kept": kept, "both": done and kept}


def _is_done(edit: Edit, boxes: Boxes, found: Sequence[Mapping], picture: Image.Image) -> bool:
    if edit.kind == "background":
        places = _all_boxes(edit, boxes, found)
        before, after = (off_ground(picture, one.background, places) for one in (edit.before, edit.after))
        return after < before and after <= NEW_GROUND
    counted = {(thing.name, color) for thing in [*_made(edit), *_gone(edit)] for color in (None, thing.color)}
    for name, color in counted:
        wanted = [thing for thing in edit.after.things if thing.name == name and color in (None, thing.color)]
        if len(_like(Thing(name, color, (0, 0, 0, 0)), found)) != len(wanted):
            return False
    size, expected = edit.after.size, _expected(edit, boxes)
    if edit.kind in STAY:
        return all(any(_inside(one["box"], expected[thing]) for one in _like(thing, found)) for thing in _made(edit))
    if edit.target is None:
        return True
    [thing], (word, other) = _made(edit), edit.target
    placed = [Thing(thing.name, thing.color, tuple(one["box"])) for one in _like(thing, found)]
    if other is None:
        return any(at_place(one, word, size) for one in placed)
    return any(lies(one, replace(other, box=tuple(boxes[other])), word, size) for one in placed)


def follow(edit: Edit, boxes: Boxes, detections: Sequence[Mapping[str, Any]]) -> Boxes:
    """Where the things of the scene after an edit are: where they are found, or else where they should be."""
    found, after = [thing for thing in detections if thing["score"] > THRESHOLD], {}
    expected = _expected(edit, boxes)
    for thing in edit.after.things:
        alike = [one["box"] for one in _like(thing, found)]
        after[thing] = max(alike, key=lambda box: _iou(box, expected[thing]), default=expected[thing])
    return after


def off_ground(picture: Image.Image, background: Background, boxes: Sequence[Sequence[float]]) -> float:
    """How far, in RGB, a picture outside of these boxes is from a background: the median distance of a pixel."""
    free = np.ones((picture.height, picture.width), bool)
    for x1, y1, x2, y2 in boxes:
        free[max(0, int(y1) - 2) : int(y2) + 3, max(0, int(x1) - 2) : int(x2) + 3] = False
    if not free.any():
        free[:] = True
    found, true = (np.asarray(one, np.float32) for one in (picture.convert("RGB"), paint(background, picture.width)))
    return float(np.median(np.linalg.norm(found - true, axis=-1)[free]))


def _made(edit: Edit) -> list[Thing]:
    return [thing for thing in edit.after.things if thing not in edit.before.things]


def _gone(edit: Edit) -> list[Thing]:
    return [thing for thing in edit.before.things if thing not in edit.after.things]


def _expected(edit: Edit, boxes: Boxes) -> Boxes:
    """Where the things after an edit should be, when they were at `boxes` before it."""
    expected = {thing: boxes.get(thing, thing.box) for thing in edit.after.things}
    if edit.kind in STAY:
        pairs = zip(edit.before.things, edit.after.things, strict=True)
        changed = [(before, after) for before, after in pairs if before is not after and before != after]
        places = [before for before, _ in changed]
        if edit.kind == "swap":
            places.reverse()
        expected |= {after: boxes[before] for (_, after), before in zip(changed, places, strict=True)}
    return expected


def _all_boxes(edit: Edit, boxes: Boxes, found: Sequence[Mapping]) -> list[Sequence[float]]:
    return [*_expected(edit, boxes).values(), *(thing["box"] for thing in found)]


def _like(thing: Thing, found: Sequence[Mapping]) -> list[Mapping]:
    """What is found of its class, and of its colour where it has one that is not its natural one."""
    return [one for one in found if one["cls"] == thing.name and thing.color in (None, one["color"])]


def _overlap(found: Sequence[Mapping], box: Sequence[float]) -> float:
    return max((_iou(one["box"], box) for one in found), default=0.0)


def _iou(box: Sequence[float], other: Sequence[float]) -> float:
    return float(box_iou(torch.tensor([box]).float(), torch.tensor([other]).float()))


def _inside(box: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the centre of a box is in another one."""
    x, y = center(Thing("", None, tuple(box)))
    return other[0] <= x <= other[2] and other[1] <= y <= other[3]


# ---- the part of the report


def judge_edits(subject: Subject, settings: Settings, out: Path) -> dict[str, Any] | None:
    """Shares of edits that are done, kept and both: of single edits, with unseen instructions, by kind, and of those
    that make held-out combinations; of all that the first 1, 2 and 3 instructions of a chain ask for; and of true
    pictures, as they are and through the image tokenizer. `codes_kept` is the share of codes that stay where nothing
    was to change. None while other processes are still at their share. Rows are in editing.jsonl, images in editing/.
    """
    singles = edit_requests(subject.world, settings.limit or SINGLES)
    chains = edit_requests(subject.world, settings.limit or CHAINS, 3)
    folder = f"editing_{digest([weights_hash(subject.detector), settings.image_cfg_scale])}"
    judged = []
    for kind, asked in (("single", singles), ("chain", chains)):
        batches = in_batches(list(enumerate(asked)), settings.batch_size)
        pieces = {f"{kind}_{batch[0][0]}-{batch[-1][0]}.json": batch for batch in batches}

        def measure(batch: Sequence, kind: str = kind) -> list[dict]:
            return edited(subject, settings, out / "editing", kind, batch)

        judged.append(work_json(out / "pieces" / folder, pieces, measure, "editing"))
    if None in judged:
        return None

    single, chain = ([row for piece in pieces for row in piece] for pieces in judged)
    write_rows(out / "editing.jsonl", [*single, *chain])

    def shares(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, float]:
        return {name: mean([one[name] for one in verdicts]) for name in ("done", "kept", "both")} if verdicts else {}

    kinds = dict.fromkeys(row["kind"] for row in single)
    kept = [row["codes_kept"] for row in single if row["codes_kept"] is not None]
    return {
        "model": shares([row["model"] for row in single]),
        "held_out": shares([row["model"] for row in single if row["held_out"]]),
        "kinds": {kind: shares([row["model"] for row in single if row["kind"] == kind]) for kind in kinds},
        "chains": {str(step): shares([row["so_far"] for row in chain if row["step"] == step]) for step in (1, 2, 3)},
        "ceiling": shares([row["true"] for row in single]),
        "tokenizer_ceiling": shares([row["coded"] for row in single]),
        **({"codes_kept": mean(kept)} if kept else {}),
    }


def edited(
    subject: Subject,
    settings: Settings,
    folder: Path,
    kind: str,
    batch: Sequence[tuple[int, Sequence[tuple[str, Edit]]]],
) -> list[dict]:
    """A row for each instruction of each chain."""
    world, rows = subject.world, []
    pictures = [world.render(chain[0][1].before) for _, chain in batch]
    boxes: list[Boxes] = [{thing: thing.box for thing in chain[0][1].before.things} for _, chain in batch]
    so_far = [{"done": True, "kept": True, "both": True} for _ in batch]
    for step in range(len(batch[0][1])):
        prompts, edits = zip(*(chain[step] for _, chain in batch), strict=True)
        seeds = [settings.image_seed(number, step) for number, _ in batch]
        after = edit_images(subject.model, subject.processor, pictures, prompts, None, seeds, **settings.editing)
        detected, rest = subject.detector.detect(after), _ceilings(subject, edits)
        kept = codes_kept(subject, edits, pictures, after)
        for place, (number, _) in enumerate(batch):
            edit, image = edits[place], after[place]
            model = verdict(edit, boxes[place], detected[place], image)
            so_far[place] = {name: so_far[place][name] and model[name] for name in model}
            boxes[place] = follow(edit, boxes[place], detected[place])
            about = {"file": f"{kind}_{number:05d}_{step + 1}.png", "kind": edit.kind, "prompt": prompts[place]}
            about |= {"step": step + 1, "held_out": makes_held_out(edit), "answer": image.info.get("answer")}
            of_codes = None if about["answer"] else kept[place]  # with words in place of a drawing, none was drawn
            scores = {"model": model, "so_far": so_far[place], "codes_kept": of_codes, **rest[place]}
            rows.append({**about, **scores, "detections": detected[place]})
            save(folder / about["file"], image, about)
        pictures = after
    return rows


def _ceilings(subject: Subject, edits: Sequence[Edit]) -> list[dict[str, dict]]:
    """{"true": the verdict on the true picture after each edit, "coded": on that through the image tokenizer}."""
    image_tokenizer = subject.model.image_tokenizer
    true = [subject.world.render(edit.after) for edit in edits]
    judged = {}
    for name, images in (("true", true), ("coded", image_tokenizer.decode(image_tokenizer.encode(true)))):
        found = zip(edits, subject.detector.detect(images), images, strict=True)
        judged[name] = [verdict(one, {t: t.box for t in one.before.things}, *rest) for one, *rest in found]
    return [dict(zip(judged, both, strict=True)) for both in zip(*judged.values(), strict=True)]


def makes_held_out(edit: Edit) -> bool:
    made = set(combinations(edit.after.things)) - set(combinations(edit.before.things))
    return any(map(is_held_out, made))


def codes_kept(
    subject: Subject, edits: Sequence[Edit], before: Sequence[Image.Image], after: Sequence[Image.Image]
) -> list[float | None]:
    """Of each edit, the share of positions without a part of what changes at which both pictures, through the image
    tokenizer, have the same codes; None where everything changes."""
    image_tokenizer = subject.model.image_tokenizer
    codes = image_tokenizer.encode(image_tokenizer.decode(image_tokenizer.encode(before)))
    same_NL = (codes == image_tokenizer.encode(after)).all(-1)
    side = round(same_NL.shape[1] ** 0.5)
    shares = []
    for edit, same_L in zip(edits, same_NL, strict=True):
        cell, free = edit.after.size / side, torch.full((side, side), edit.kind != "background")
        for thing in {*edit.before.things} ^ {*edit.after.things}:
            x1, y1, x2, y2 = (int(value // cell) for value in thing.box)
            free[y1 : y2 + 1, x1 : x2 + 1] = False
        kept = same_L[free.flatten().to(same_L.device)]
        shares.append(kept.float().mean().item() if len(kept) else None)
    return shares
