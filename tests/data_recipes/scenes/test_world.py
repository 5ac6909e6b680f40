"""The promises of the scenes world: determinism, clear layouts, honest words and splits that do not leak."""

import json
import pickle
import random
import re

import numpy as np
import pytest

from data_recipes.scenes import artwork
from data_recipes.scenes.world import (
    ASKED_FOR_LAYOUT,
    BACKGROUNDS,
    BINS,
    CLASSES,
    COLORS,
    FORMS,
    FREE_FORMS,
    GENEVAL,
    LAYOUT_WORDS,
    MIRROR,
    NUMBERS,
    RELATION_WORDS,
    RELATIONS,
    SKILLS,
    TESTED_KINDS,
    World,
    captions,
    combinations,
    expressible,
    gap,
    geneval_pairs,
    held_out,
    is_held_out,
    layout,
    layout_questions,
    noun,
    plural,
    questions,
    relation,
)

RECORDS = [json.loads(line) for line in GENEVAL.read_text(encoding="utf-8").splitlines()]
EXPRESSIBLE = [record for record in RECORDS if expressible(record)]


ARTWORKS = list(artwork.ARTWORK)


@pytest.fixture(scope="module")
def world():
    return World("shapes")


def singular(many):
    """The coloured class a plural of ours stands for."""
    names = [*CLASSES, *(f"{color} {name}" for color in COLORS for name in CLASSES)]
    return next(name for name in names if plural(name) == many)


def describes(words, things):
    """Whether `words` ("dog", "red dog") name one of the things."""
    return any(words in (thing.name, f"{thing.color} {thing.name}") for thing in things)


def bare(phrase):
    return phrase.removeprefix("an ").removeprefix("a ")


@pytest.mark.parametrize("kind", ARTWORKS)
def test_a_seed_gives_the_same_scene_and_picture(kind):
    for seed in range(20):
        one, two = World(kind).scene(seed), pickle.loads(pickle.dumps(World(kind))).scene(seed)
        assert one == two
        pixels = np.asarray(World(kind).render(one))
        assert pixels.shape == (128, 128, 3)
        assert np.array_equal(pixels, np.asarray(World(kind).render(two)))
    assert len({World(kind).scene(seed) for seed in range(100)}) == 100


@pytest.mark.parametrize("kind", ARTWORKS)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_things_are_inside_and_apart(kind, size):
    world = World(kind, size)
    for seed in range(600):
        things = world.scene(seed, random.Random(seed).choice(("train", "held_out"))).things
        for i, thing in enumerate(things):
            x1, y1, x2, y2 = thing.box
            assert min(x1, y1) >= size // 64 and max(x2, y2) <= size - size // 64
            assert x1 < x2 and y1 < y2
            for other in things[:i]:
                assert max(gap(thing, other, 0), gap(thing, other, 1)) >= size // 32


@pytest.mark.parametrize("skill", SKILLS)
def test_a_scene_has_what_its_skill_asks(world, skill):
    for seed in range(200):
        things = world.scene(seed, skill=skill).things
        names, colors = {t.name for t in things}, {t.color for t in things}
        if skill == "counting":
            assert 2 <= len(things) <= 4 and len(names) == len(colors) == 1
        elif skill in ("single_object", "colors"):
            assert len(things) == 1
        else:
            assert len(things) == len(names) == 2
        if skill in ("colors", "color_attr"):
            assert None not in colors and len(colors) == len(things)
        if skill == "position":
            assert relation(*things) in RELATIONS
            assert relation(*things[::-1]) == MIRROR[relation(*things)]


@pytest.mark.parametrize("kind", ARTWORKS)
def test_train_scenes_never_show_a_held_out_combination(kind):
    world = World(kind)
    for seed in range(3000):
        things = world.scene(seed).things
        assert not any(map(is_held_out, combinations(things)))
        assert tuple(sorted(t.name for t in things)) not in geneval_pairs()


@pytest.mark.parametrize("skill", SKILLS)
def test_held_out_scenes_always_show_one(world, skill):
    for seed in range(200):
        scene = world.scene(seed, split="held_out", skill=skill)
        kinds = TESTED_KINDS[skill]
        assert any(is_held_out(c) for c in combinations(scene.things) if c[0] in kinds)


def test_a_diagonal_layout_counts_for_both_its_relations(world):
    scenes = [world.scene(seed, skill="two_object") for seed in range(200)]
    diagonal = next(s for s in scenes if relation(*s.things) is None)
    assert sum(kind == "relation" for kind, *_ in combinations(diagonal.things)) == 4


def test_held_out_shares():
    colors = [("color", name, color) for name in CLASSES for color in COLORS]
    relations = [("relation", name, word) for name in CLASSES for word in RELATIONS]
    pairs = [("pair", *sorted((a, b))) for i, a in enumerate(CLASSES) for b in CLASSES[:i]]
    own = [pair for pair in pairs if pair[1:] not in geneval_pairs()]
    for combos, low, high in ((colors, 0.06, 0.10), (relations, 0.05, 0.11), (own, 0.02, 0.04)):
        assert low < sum(map(is_held_out, combos)) / len(combos) < high


def test_which_geneval_prompts_are_held_out():
    for record in RECORDS:
        if record["tag"] in ("two_object", "position", "color_attr"):
            assert held_out(record)
        elif record["tag"] in ("single_object", "counting"):
            assert not held_out(record)
    colors = [held_out(record) for record in RECORDS if record["tag"] == "colors"]
    assert any(colors) and not all(colors)


def test_three_quarters_of_geneval_are_expressible():
    assert len(RECORDS) == 553
    assert len(EXPRESSIBLE) / len(RECORDS) >= 0.75
    assert len(CLASSES) >= 64


def test_the_first_caption_is_the_geneval_prompt(world):
    for record in EXPRESSIBLE:
        scene = world.scene_of(record, seed=3)
        assert captions(scene)[0] == record["prompt"]
        wanted = sorted((i["class"], i.get("color")) for i in record["include"] for _ in range(i["count"]))
        assert sorted((t.name, t.color) for t in scene.things) == wanted


def test_scene_of_places_the_second_class_as_asked(world):
    record = {
        "tag": "position",
        "include": [
            {"class": "teddy bear", "count": 1},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
    }
    for seed in range(20):
        dog, bear = world.scene_of(record, seed).things
        assert (dog.name, bear.name) == ("dog", "teddy bear")
        assert dog.box[0] >= bear.box[2]


def test_captions_are_true_and_distinct(world):
    for seed in range(600):
        scene = world.scene(seed)
        words = captions(scene)
        assert len(set(words)) == len(words) >= 8
        names = [t.name for t in scene.things]
        for caption in words[1:]:
            assert all(name in caption or plural(name) in caption for name in names)
            if "background" in caption:
                assert f"{scene.background.name} background" in caption
        if scene.skill not in ("colors", "color_attr"):
            with_color = sum(f"{scene.things[0].color} " in caption for caption in words)
            assert 0.4 < with_color / len(words) < 0.6 if scene.things[0].color else with_color == 0


def test_position_captions_hold_in_both_directions(world):
    scene = world.scene(5, skill="position")
    first, second = scene.things
    for caption in captions(scene):
        start, end = (first, second) if caption.index(first.name) < caption.index(second.name) else (second, first)
        assert any(f" {link} " in caption for link in RELATION_WORDS[relation(start, end)])


def answer_of(question, scene):
    """The answer recomputed from the things, reading only the question's text."""
    text, things = question.text.rstrip("?."), scene.things
    if question.kind == "count":
        name = max((name for name in CLASSES if plural(name) in text), key=len)
        return NUMBERS[sum(t.name == name for t in things)]
    if question.kind == "exists":
        words = next(text.split(f" {article} ", 1)[1] for article in ("an", "a") if f" {article} " in text)
        return "yes" if describes(words.removesuffix(" here").removesuffix(" be seen anywhere"), things) else "no"
    named = [t for t in things if re.search(rf"the ({t.name}|{plural(t.name)})\b", text)]
    if question.kind == "color":
        return named[0].color
    if question.kind == "where" and len(things) == 2:
        other = next(t for t in things if t != named[0])
        return f"{relation(named[0], other)} the {other.name}"
    if question.kind == "what" and len({t.name for t in things}) == 2 and named:
        other = next(t for t in things if t != named[0])
        links = [word for word, forms in RELATION_WORDS.items() if any(f" {link} the " in text for link in forms)]
        assert not links or relation(other, named[0]) in links
        return other.name
    return None


@pytest.mark.parametrize("forms", [FORMS, FREE_FORMS])
def test_answers_are_true_of_the_scene(world, forms):
    kinds = set()
    for seed in range(1000):
        scene = world.scene(seed)
        asked = questions(scene, random.Random(seed), forms)
        kinds |= {q.kind for q in asked}
        assert all(sum(q.kind == kind for q in asked) <= 2 for kind in kinds)
        for question in asked:
            expected = answer_of(question, scene)
            assert expected is None or bare(question.answer) == expected, (question, scene)
    assert kinds == {"what", "count", "color", "where", "exists", "describe"}


def test_free_wording_asks_the_same_in_other_words():
    assert FREE_FORMS.keys() == FORMS.keys()
    for key, forms in FREE_FORMS.items():
        assert not set(forms.split(" | ")) & {form for trained in FORMS.values() for form in trained.split(" | ")}
        assert ("{}" in forms) == ("{}" in FORMS[key])


def test_what_by_color_names_the_one_thing_of_that_color(world):
    for seed in range(200):
        scene = world.scene(seed, skill="color_attr")
        _, by_color = [q for q in questions(scene, random.Random(seed)) if q.kind == "what"]
        (thing,) = [t for t in scene.things if f" {t.color}" in by_color.text]
        assert bare(by_color.answer) == thing.name


def test_where_of_a_single_thing_is_clearly_off_centre(world):
    for seed in range(500):
        scene = world.scene(seed, skill="single_object")
        x1, y1, x2, y2 = scene.things[0].box
        dx, dy = (x1 + x2) / 2 - 64, (y1 + y2) / 2 - 64
        for question in questions(scene, random.Random(seed)):
            if question.kind == "where":
                axis = {"on the left": -dx, "on the right": dx, "at the top": -dy, "at the bottom": dy}
                assert axis[question.answer] >= 16
                assert min(abs(dx), abs(dy)) <= 8


def test_of_two_things_color_and_place_of_each_are_asked_for(world):
    for seed in range(60):
        scene = world.scene(seed, skill=("position", "color_attr")[seed % 2])
        asked = questions(scene, random.Random(seed))
        first, second = scene.things
        colors = [(first.color, first.name), (second.color, second.name)] if first.color else []
        found = [q for q in asked if q.kind == "color"]
        assert [q.answer for q in found] == [color for color, _ in colors]
        assert all(name in q.text for q, (_, name) in zip(found, colors, strict=True))
        word, places = relation(first, second), [q for q in asked if q.kind == "where"]
        answers = [f"{word} the {second.name}", f"{MIRROR[word]} the {first.name}"] if word else []
        assert [q.answer for q in places] == answers
        assert all(t.name in q.text for q, t in zip(places, scene.things, strict=False))


def test_of_two_things_the_box_of_each_is_asked_for(world):
    for seed in range(30):
        scene = world.scene(seed)
        about_all, *about_one = layout_questions(scene)
        assert about_all == ([ASKED_FOR_LAYOUT], layout(scene))
        pair = len({thing.name for thing in scene.things}) == 2
        assert len(about_one) == (2 if pair else 0)
        for (asked, *question), answer in about_one:
            assert asked == ASKED_FOR_LAYOUT
            assert " | ".join([*question, *answer]) in " | ".join(layout(scene))
        assert [question[-1] for question, _ in about_one] == [f"thing {t.name}" for t in scene.things if pair]


def test_a_layout_gives_every_thing_and_its_box_in_reading_order(world):
    for seed in range(60):
        scene = world.scene(seed)
        assert set(layout(scene)) < set(LAYOUT_WORDS)
        said = " ".join(layout(scene))
        found = re.findall(r"(?:color ([a-z]+) )?thing ([a-z ]+) (\d+) (\d+) (\d+) (\d+)", said)
        things = {(t.color or "", t.name, *(side * BINS // scene.size for side in t.box)) for t in scene.things}
        assert {(*words, *map(int, box)) for *words, a, b, c, d in found for box in [(a, b, c, d)]} == things
        assert len(found) == len(scene.things)
        tops = [(int(top), int(left)) for _, _, left, top, _, _ in found]
        assert tops == sorted(tops)
        assert re.findall("ground (.*)", said) == [scene.background.name] * (scene.background.name is not None)


def test_describe_puts_the_left_or_upper_thing_first(world):
    for seed in range(400):
        scene = world.scene(seed, skill="two_object")
        (answer,) = [q.answer for q in questions(scene, random.Random(seed)) if q.kind == "describe"]
        first = next(t for t in scene.things if bare(answer).startswith(noun(t) + " "))
        other = next(t for t in scene.things if t != first)
        if f" {relation(first, other)} " in answer:
            assert relation(first, other) in ("left of", "above")
        else:
            assert " and " in answer and relation(first, other) is None


def test_exists_is_balanced_and_never_names_a_held_out_combination(world):
    answers = []
    for seed in range(600):
        for question in questions(world.scene(seed), random.Random(seed)):
            if question.kind == "exists":
                answers.append(question.answer)
                for color in COLORS:
                    for name in CLASSES:
                        if f" {color} {name}" in question.text.replace(" here", ""):
                            assert not is_held_out(("color", name, color)), question
    assert answers.count("yes") == answers.count("no")


@pytest.mark.parametrize("kind", ARTWORKS)
def test_every_class_has_its_own_picture(kind):
    pictures = {artwork.sized_glyph(kind, name, None, 40, 40).tobytes() for name in CLASSES}
    assert len(pictures) == len(CLASSES)
    shapes = {artwork.sized_glyph(kind, name, "red", 40, 40).tobytes() for name in CLASSES}
    assert len(shapes) == len(CLASSES)


@pytest.mark.parametrize("kind", ARTWORKS)
def test_recoloured_glyphs_are_nearest_to_their_own_color(kind):
    for name in CLASSES:
        for color in COLORS:
            pixels = np.asarray(artwork.sized_glyph(kind, name, color, 40, 40)).reshape(-1, 4)
            median = np.median(pixels[pixels[:, 3] > 128, :3], axis=0)
            nearest = min(COLORS, key=lambda c: np.linalg.norm(median - COLORS[c]))
            assert nearest == color, (name, color, median)


@pytest.mark.parametrize("kind", ARTWORKS)
def test_coloured_things_stand_out(kind):
    world = World(kind)
    for seed in range(500):
        scene = world.scene(seed, skill="color_attr")
        for thing in scene.things:
            for ground in scene.background.colors:
                assert np.linalg.norm(np.subtract(ground, COLORS[thing.color])) > 40
        assert scene.background.name is None or scene.background.name in BACKGROUNDS


def test_unknown_choices_name_the_known_ones(world):
    with pytest.raises(ValueError, match="unknown artwork 'clipart'; known: emoji, shapes"):
        World("clipart")
    with pytest.raises(ValueError, match="unknown split 'test'; known: train, held_out"):
        world.scene(0, split="test")
    with pytest.raises(ValueError, match="unknown skill 'colour'; known: single_object"):
        world.scene(0, skill="colour")
    with pytest.raises(ValueError, match="too small"):
        World("shapes", size=8)
    with pytest.raises(ValueError, match="'oven'"):
        world.scene_of({"tag": "single_object", "include": [{"class": "oven", "count": 1}]}, 0)
    with pytest.raises(ValueError, match="1 to 4 things, the record asks for 5"):
        world.scene_of({"tag": "counting", "include": [{"class": "dog", "count": 5}]}, 0)
