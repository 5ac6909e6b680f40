"""Scores of edits: what is done and kept by rules, on scenes whose truth is known; and the part of the report."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from data_recipes.scenes.language.edits import FORMS
from data_recipes.scenes.world import CLASSES, COLORS, Background, Scene, World
from eval.scenes import editing
from eval.scenes import suite as scenes
from eval.scenes.detector import Detector, DetectorConfig
from eval.scenes.editing import codes_kept, follow, verdict
from eval.scenes.language import edit_requests
from eval.scenes.suite import Settings, Subject, evaluate_scenes

WORLD = World("shapes")
RED = Background("plain", ((255, 0, 0),) * 2, None, False, 1, 0.5)
EDITS = [edit for [(_, edit)] in edit_requests(WORLD, 120)]


def detections(scene: Scene) -> list[dict]:
    """As a detector that is never wrong gives them; a natural colour is some colour."""
    return [
        {"cls": thing.name, "box": [float(x) for x in thing.box], "score": 0.9, "color": thing.color or "gray"}
        for thing in scene.things
    ]


def boxes(edit) -> dict:
    return {thing: thing.box for thing in edit.before.things}


def judged(edit, scene: Scene) -> tuple[bool, bool]:
    found = verdict(edit, boxes(edit), detections(scene), WORLD.render(scene))
    assert found["both"] == (found["done"] and found["kept"])
    return found["done"], found["kept"]


@pytest.mark.parametrize("kind", FORMS)
def test_the_true_picture_is_right_and_the_one_before_is_not(kind):
    edits = [edit for edit in EDITS if edit.kind == kind]
    assert edits
    for edit in edits:
        assert judged(edit, edit.after) == (True, True), edit
        assert judged(edit, edit.before) == (False, True), edit


def test_everything_else_must_be_as_it_was():
    checked = 0
    for edit in EDITS:
        for thing in set(edit.after.things) & set(edit.before.things):
            if edit.kind == "fewer" and thing.name in {
                one.name for one in edit.before.things if one not in edit.after.things
            }:
                continue
            rest = tuple(other for other in edit.after.things if other is not thing)
            x1, y1, x2, y2 = thing.box
            moved = replace(thing, box=(x1 + (x2 - x1) // 2, y1, x2 + (x2 - x1) // 2, y2))
            for others in (rest, (*rest, moved)):
                checked += 1
                assert not judged(edit, replace(edit.after, things=others))[1]
            if thing.color:
                other = next(color for color in COLORS if color != thing.color)
                assert not judged(edit, replace(edit.after, things=(*rest, replace(thing, color=other))))[1]
        if edit.kind != "background":
            assert not judged(edit, replace(edit.after, background=RED))[1]
    assert checked > 50


def test_of_fewer_things_any_may_stay_where_it_was():
    edits = [edit for edit in EDITS if edit.kind == "fewer"]
    for edit in edits:
        [name] = {thing.name for thing in set(edit.before.things) - set(edit.after.things)}
        alike = [thing for thing in edit.before.things if thing.name == name]
        others = tuple(thing for thing in edit.before.things if thing.name != name)
        stay = tuple(alike[::-1][: sum(thing.name == name for thing in edit.after.things)])
        assert judged(edit, replace(edit.after, things=(*others, *stay))) == (True, True)
        x1, y1, x2, y2 = stay[0].box
        moved = replace(stay[0], box=(x1 + (x2 - x1) // 2, y1, x2 + (x2 - x1) // 2, y2))
        assert judged(edit, replace(edit.after, things=(*others, *stay[1:], moved))) == (True, False)
    assert edits


def test_a_target_is_asked_for_where_it_was_said():
    placed = [edit for edit in EDITS if edit.target]
    assert {edit.target.other is None for edit in placed} == {True, False} and len(placed) > 10
    for edit in placed:
        [thing] = set(edit.after.things) - set(edit.before.things)
        width, height = thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]
        right = set()
        for x in (0, 64 - width // 2, 128 - width):
            for y in (0, 64 - height // 2, 128 - height):
                there = replace(thing, box=(x, y, x + width, y + height))
                things = tuple(there if one == thing else one for one in edit.after.things)
                right.add(judged(edit, replace(edit.after, things=things))[0])
        assert right == {True, False}, edit


def test_what_was_put_anywhere_is_looked_for_there():
    edit = next(edit for edit in EDITS if edit.kind == "add anywhere")
    [thing] = set(edit.after.things) - set(edit.before.things)
    elsewhere = replace(thing, box=tuple(96 - x for x in (96, 96, 64, 64)))
    scene = replace(edit.after, things=(*edit.before.things, elsewhere))
    assert judged(edit, scene) == (True, True)
    found = follow(edit, boxes(edit), detections(scene))
    assert found[thing] == list(map(float, elsewhere.box))
    assert all(found[one] == list(map(float, one.box)) for one in edit.before.things)
    lost = follow(edit, boxes(edit), [])
    assert lost == {one: one.box for one in edit.after.things}


@pytest.fixture
def subject(tiny_model, monkeypatch) -> Subject:
    monkeypatch.setattr(scenes, "World", lambda _="", size=128: World("shapes", size))
    torch.manual_seed(0)
    config = DetectorConfig(CLASSES, tuple(COLORS), widths=(4, 4, 8, 8), depths=(1, 1, 1), neck_width=8)
    return Subject("tiny", *tiny_model, Detector(config).eval())


def test_the_part_of_the_report(subject, tmp_path, monkeypatch):
    settings = Settings(limit=3, batch_size=2)
    scores = evaluate_scenes(subject, settings, tmp_path, ["editing"])["editing"]["scores"]
    rows = [json.loads(line) for line in (tmp_path / "editing.jsonl").read_text().splitlines()]
    assert sorted(row["file"] for row in rows[3:]) == [
        f"chain_{number:05d}_{step}.png" for number in range(3) for step in (1, 2, 3)
    ]
    assert set(scores["chains"]) == {"1", "2", "3"} and set(scores["kinds"]) == {row["kind"] for row in rows[:3]}
    for name in ("model", "ceiling", "tokenizer_ceiling"):
        assert set(scores[name]) == {"done", "kept", "both"}
    assert scores["model"]["done"] == sum(row["model"]["done"] for row in rows[:3]) / 3
    assert "codes_kept" not in scores  # this model answers in words, so no codes were drawn
    assert all(row["answer"] and (tmp_path / "editing" / row["file"]).is_file() for row in rows)
    monkeypatch.setattr(editing, "edit_images", None)  # would fail if anything were edited again
    assert evaluate_scenes(subject, settings, tmp_path, ["editing"])["editing"]["scores"] == scores


def test_codes_are_kept_where_nothing_changes(subject):
    image_tokenizer, small = subject.model.image_tokenizer, subject.world
    scene = small.scene(0)
    ground = next(edit for edit in EDITS if edit.kind == "background")
    thing = replace(scene.things[0], box=(18, 2, 30, 14))  # in the second of four positions
    edit = replace(ground, kind="remove", before=replace(scene, things=(thing,)), after=replace(scene, things=()))
    picture = small.render(scene)
    [through] = image_tokenizer.decode(image_tokenizer.encode([picture]))
    noise = Image.effect_noise((32, 32), 100).convert("RGB")
    nothing, all_of_it, little = codes_kept(subject, [ground, edit, edit], [picture] * 3, [picture, through, noise])
    assert nothing is None and all_of_it == 1.0 and little < 1.0
