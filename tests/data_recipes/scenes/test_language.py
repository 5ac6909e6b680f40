"""The promises of the language engine: seeded and endless, right English, changes that leave the rest alone, and forms
to measure with that training cannot say."""

import re
from functools import cache
from itertools import combinations as pairs
from random import Random

import numpy as np
import pytest

from data_recipes import messages
from data_recipes.scenes import artwork
from data_recipes.scenes.language import (
    PROMPTS,
    TASKS,
    conversation,
    edits,
    question_forms,
    questions,
    requests,
    story,
    talk,
    words,
)
from data_recipes.scenes.language.conversations import task_of
from data_recipes.scenes.language.facts import groups
from data_recipes.scenes.language.grammar import Forms, mistyped, normalized, typed
from data_recipes.scenes.world import (
    CLASSES,
    COLORS,
    NUMBERS,
    SPLITS,
    Scene,
    World,
    combinations,
    gap,
    is_held_out,
    relation,
)

CATALOGUES = {
    **{f"question {name}": forms for name, forms in question_forms.FORMS.items()},
    **{f"tone {name}": forms for name, forms in question_forms.TONES.items()},
    "reasons": question_forms.REASONS,
    "draw": requests.FORMS,
    "again": requests.AGAIN,
    "like this": requests.LIKE_THIS,
    "recolored": requests.RECOLORED,
    **{f"edit {name}": forms for name, forms in edits.FORMS.items()},
    **{f"talk {name}": forms for name, forms in talk.FORMS.items()},
}


@cache
def said_in(name, split):
    """All forms of a catalogue, as words alone."""
    return {normalized(form) for form in CATALOGUES[name][split]}


@pytest.fixture(scope="module")
def world():
    return World("shapes")


@pytest.fixture(scope="module")
def spoken(world):
    """Conversations of training."""
    return [conversation(world, seed) for seed in range(1200)]


def texts(conversation_, role):
    return [
        part["text"]
        for message in conversation_
        if message["role"] == role
        for part in message["content"]
        if part["type"] == "text"
    ]


def scenes_in(conversation_):
    return messages.images_of(conversation_)


# ---- conversations


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_conversation_and_a_wording_only_other_words(world, task):
    seen = set()
    for seed in range(60):
        one, two = (conversation(World("shapes"), seed, task=task) for _ in range(2))
        assert one == two
        other = conversation(world, seed, task=task, wording=1)
        assert scenes_in(other) == scenes_in(one) == [step.scene for step in story(world, seed, task=task)]
        seen |= {str(one), str(other)}
    assert len(seen) > 100


def test_conversations_are_of_the_message_schema(spoken):
    for talk_ in spoken:
        names = [f"{n}.png" for n in range(len(scenes_in(talk_)))]
        assert messages.checked(messages.with_images(talk_, names))
        assert all(isinstance(scene, Scene) for scene in scenes_in(talk_))


def test_tasks_have_their_shares():
    counts = {task: sum(task_of(seed) == task for seed in range(4000)) / 4000 for task in TASKS}
    assert counts == pytest.approx(TASKS, abs=0.03)


def test_a_picture_is_drawn_when_asked_for_and_at_no_other_time(world):
    """Of "look" and "talk" no answer is a picture; every answer of the others is one or the other."""
    for seed in range(200):
        for task in TASKS:
            answers = [m["content"] for m in conversation(world, seed, task=task) if m["role"] == "assistant"]
            drawn = [answer for answer in answers if answer[0]["type"] == "image"]
            assert all(len(answer) == 1 for answer in answers)
            assert bool(drawn) == (task in ("draw", "edit"))


def test_no_layout_is_spoken(spoken):
    for talk_ in spoken:
        for text in texts(talk_, "user") + texts(talk_, "assistant"):
            assert not re.search(r"\d{4}", text)


@pytest.mark.parametrize("task", ["look", "draw", "edit"])
def test_training_never_shows_a_held_out_combination(world, task):
    for seed in range(400):
        for scene in scenes_in(conversation(world, seed, task=task)):
            assert not any(map(is_held_out, combinations(scene.things)))


def test_no_word_of_training_denies_or_asks_for_a_held_out_colour(spoken):
    colored = [(f"{color} {name}", ("color", name, color)) for color in COLORS for name in CLASSES]
    unseen = re.compile(rf"\b({'|'.join(words for words, key in colored if is_held_out(key))})\b")
    for talk_ in spoken:
        for text in texts(talk_, "user"):
            assert not unseen.search(text.lower())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"task": "sing"}, "unknown task 'sing'"),
        ({"split": "test"}, "unknown split"),
        ({"forms": "x"}, "unknown forms"),
    ],
)
def test_unknown_choices_are_named(world, wrong, message):
    with pytest.raises(ValueError, match=message):
        conversation(world, 0, **wrong)


# ---- forms


def kinds_of_forms():
    """Kind of question -> the forms that its questions come in."""
    found = {kind: set() for kind in questions.KINDS}
    shapes = World("shapes")
    for seed in range(150):
        scene = story(shapes, seed, task="look")[0].scene
        for kind, forms in found.items():
            asked = questions.ask(scene, Random(seed), kind)
            if asked:
                forms.add(asked.form)
    return found


def test_each_kind_of_question_and_request_has_sixty_forms():
    number = {name: len(said_in(name, "train")) for name in CATALOGUES}
    for kind, forms in kinds_of_forms().items():
        assert sum(number[f"question {form}"] for form in forms) >= 60, kind
    assert number["draw"] >= 60
    assert sum(number[f"edit {kind}"] for kind in edits.FORMS) >= 60 * len(edits.KINDS)


def test_held_out_forms_are_built_differently():
    """Each differs from every training form of its area (questions, drawing, edits, talk) by three words and more, and
    equals none of any area. Of "thanks" and "again" there are not that many kinds."""
    areas = {name: "draw" if name in ("again", "like this", "recolored") else name.split()[0] for name in CATALOGUES}
    areas |= {name: "question" for name in CATALOGUES if name == "reasons" or name.startswith("tone")}
    trained = {form for name in CATALOGUES for form in said_in(name, "train")}
    bits: dict[str, int] = {}

    def as_bits(form):
        """Its set of words as a number: differences are quick to count."""
        return sum(1 << bits.setdefault(word, len(bits)) for word in set(form.split()))

    of_areas = {area: set() for area in areas.values()}
    for name in CATALOGUES:
        of_areas[areas[name]] |= {as_bits(form) for form in said_in(name, "train")}
    for name in CATALOGUES:
        least = 1 if name == "again" or areas[name] == "talk" else 3
        for form in said_in(name, "held_out"):
            assert form not in trained, (name, form)
            said = as_bits(form)
            assert all((said ^ other).bit_count() >= least for other in of_areas[areas[name]]), (name, form)


def test_training_never_says_a_held_out_form(spoken):
    patterns = []
    for name in CATALOGUES:
        for form in said_in(name, "held_out"):
            if len(form.split()) > 1:
                patterns.append("^" + re.sub(r"\\{\w+\\}", r"[a-z0-9' ]+", re.escape(form)) + "$")
    held_out = re.compile("|".join(patterns))
    for talk_ in spoken:
        for text in texts(talk_, "user"):
            assert not held_out.match(normalized(text)), text


def test_held_out_conversations_say_none_but_held_out_forms(world):
    trained = {form for name in CATALOGUES for form in said_in(name, "train")}
    for seed in range(300):
        for text in texts(conversation(world, seed, "held_out", forms="held_out"), "user"):
            assert normalized(text) not in trained


def test_alternatives_nest_and_may_be_empty():
    forms = Forms("(a|b (c|d)|) e <thing>?\nf.")
    assert set(forms) == {
        *(f"{a}e {t}?" for a in ("a ", "b c ", "b d ", "") for t in ("thing", "object", "item")),
        "f.",
    }
    assert {forms.sample(Random(seed)) for seed in range(300)} == set(forms)


def test_what_is_typed_keeps_its_meaning():
    """Whatever the spelling, case, courtesies and slips, no word becomes another word of the world."""
    known = {word for name in (*CLASSES, *COLORS) for word in name.split()}
    known |= {word for name in CLASSES for word in words.plural(name).split()} | {"left", "right", "above", "below"}
    form = "what color is the horse to the right of the three bears?"
    meant = {"horse", "right", "three", "bears"}
    seen = {typed(form, Random(seed)) for seed in range(500)}
    assert len(seen) > 50
    assert any("colour" in text for text in seen) and any(text.isupper() for text in seen)
    for text in seen:
        assert (set(normalized(text).split()) & known) <= meant
    assert any(mistyped("horse", Random(seed)) != "horse" for seed in range(20))


# ---- English


def test_articles_and_plurals():
    assert words.one("elephant") == "an elephant" and words.one("elephant", "red") == "a red elephant"
    assert words.one("scissors", "orange") == "a pair of orange scissors" and words.the(1, "scissors") == "the scissors"
    assert words.counted(2, "scissors") == "two pairs of scissors" and words.counted(0, "scissors") == "no scissors"
    assert (
        words.counted(1, "broccoli") == "one head of broccoli"
        and words.some(3, "broccoli") == "three heads of broccoli"
    )
    one = ("person", "knife", "sheep", "bus", "computer mouse", "tv", "wine glass")
    assert [*map(words.many, one)] == ["people", "knives", "sheep", "buses", "computer mice", "TVs", "wine glasses"]
    assert words.be(1, "skis") == "are" and words.be(1, "bus") == "is" and words.be(2, "bus") == "are"
    assert words.listed(["a"]) == "a" and words.listed(["a", "b"]) == "a and b" and words.listed("abc") == "a, b and c"


WRONG_ENGLISH = re.compile(
    r"\ba [aeiou]|\ban [^aeiou]|\b(a|one) (pairs|heads)\b|\bthere (is|are) (a|an|one) [a-z ]*\b(people|knives|TVs)\b"
    r"|\bthere are (a|an|one)\b|\bthere is (two|three|four)\b|\b(they|these|both) is\b|\bit are\b|\bthe (a|an|the)\b"
    r"|[{}|<>]|  | [,.?!]|\b(\w+) \4\b",
    re.IGNORECASE,
)


def test_answers_are_right_english(spoken):
    fruit = re.compile(r"\borange oranges?\b|\bbe orange\b", re.IGNORECASE)
    for talk_ in spoken:
        for answer in texts(talk_, "assistant"):
            assert not WRONG_ENGLISH.search(fruit.sub("orange", answer)), answer
            if answer[-1] in ".!?":
                assert answer[0].isupper()
            else:  # short: a number, a name, a place
                assert answer[0].islower() or answer.startswith("TV"), answer


def test_requests_are_right_english_before_they_are_mistyped(world):
    for seed in range(600):
        said = requests.phrase(world.scene(seed), Random(seed))
        assert not WRONG_ENGLISH.search(said.replace("orange orange", "orange")), said


@pytest.mark.parametrize("name", words.OWN_COLORS)
def test_own_colours_are_those_of_the_artwork(name):
    pixels = np.asarray(artwork.glyph("emoji", name)).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > 128, :3].astype(float)
    palette = {**COLORS, "gray": (140, 142, 146)}
    nearest = ((pixels[:, None] - np.array(list(palette.values()))[None]) ** 2).sum(-1).argmin(1)
    said = [list(palette).index(color) for color in words.own_color(name).split(" and ")]
    assert np.isin(nearest, said).mean() > 0.14


# ---- requests


def test_requests_name_what_the_scene_shows(world):
    for seed in range(400):
        scene = world.scene(seed)
        said = requests.phrase(scene, Random(seed))
        for group in groups(scene):
            called = (group.name, *words.SYNONYMS.get(group.name, ()))
            assert any(name.lower() in said.lower() or words.plural(name) in said for name in called), said
        if len(scene.things) > 1 and len(groups(scene)) == 1:
            assert NUMBERS[len(scene.things)] in said or str(len(scene.things)) in said


def test_another_drawing_shows_the_same_things(world):
    for seed in range(200):
        scene = world.scene(seed)
        again = world.again(scene, seed)
        assert [(t.name, t.color) for t in again.things] == [(t.name, t.color) for t in scene.things]
        assert again.things != scene.things and again == world.again(scene, seed)
        if len(groups(scene)) == 2 and relation(*scene.things):
            assert relation(*again.things) == relation(*scene.things)


def test_what_is_declined_cannot_be_drawn():
    names = {*CLASSES, *(name for called in words.SYNONYMS.values() for name in called)}
    for chosen in requests.BEYOND["outside"]["train"] + requests.BEYOND["outside"]["held_out"]:
        assert words.bare(chosen) not in names
    for kind, by_split in requests.BEYOND.items():
        assert by_split["train"] and by_split["held_out"], kind
        assert not set(by_split["train"]) & set(by_split["held_out"])
    for seed in range(200):
        said, answer = requests.declined(Random(seed))
        assert said and answer[0].isupper() and answer[-1] == "."


# ---- edits


def changed(before, after):
    return [t for t in before.things if t not in after.things] + [t for t in after.things if t not in before.things]


def outside(scene, things):
    """Pixels in no box of these things."""
    mask = np.ones((scene.size, scene.size), bool)
    for x1, y1, x2, y2 in (thing.box for thing in things):
        mask[y1:y2, x1:x2] = False
    return mask


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", edits.KINDS)
def test_what_is_not_named_stays_pixel_for_pixel(world, kind, split):
    found = 0
    for seed in range(400):
        scene = story(world, seed, split, "edit")[-1].scene
        edit = edits.edit(world, scene, Random(seed), split, kind)
        if edit is None:
            continue
        found += 1
        if found == 12:
            return
        before, after = (np.asarray(world.render(s)).astype(int) for s in (scene, edit.after))
        if kind == "background":
            assert edit.after.things == scene.things and edit.after.background != scene.background
            for thing in scene.things:
                x1, y1, x2, y2 = thing.box
                glyph = artwork.sized_glyph(world.artwork, thing.name, thing.color, x2 - x1, y2 - y1)
                opaque = np.asarray(glyph)[..., 3] == 255
                assert np.array_equal(before[y1:y2, x1:x2][opaque], after[y1:y2, x1:x2][opaque])
        else:
            things = changed(scene, edit.after)
            assert things and edit.after.background == scene.background
            same = outside(scene, things)
            assert np.array_equal(before[same], after[same]) and not np.array_equal(before, after)
    raise AssertionError(f"only {found} changes of this kind")


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_after_changes_keep_the_promises_of_the_world(world, split):
    for seed in range(200):
        steps = story(world, seed, split, "edit")
        for step, later in zip(steps, steps[1:], strict=False):
            assert later.edit.before == step.scene and later.edit.after == later.scene
            assert 1 <= len(later.scene.things) <= 4
            for thing in later.scene.things:
                assert min(thing.box) >= 2 and max(thing.box) <= 126
            for a, b in pairs(later.scene.things, 2):
                assert max(gap(a, b, 0), gap(a, b, 1)) >= 4
            made = set(combinations(later.scene.things)) - set(combinations(step.scene.things))
            if split == "train":
                assert not any(map(is_held_out, made))
            elif made:
                assert any(map(is_held_out, made))


def test_an_instruction_is_about_what_changes(world):
    """The words that fill an instruction name the things before, and what is new after it."""
    for seed in range(300):
        scene = world.scene(seed)
        for kind in edits.KINDS:
            edit = edits.edit(world, scene, Random(seed), kind=kind)
            if edit is None:
                continue
            before, after = ({t.name for t in s.things} for s in (scene, edit.after))
            if kind == "recolor":
                assert {t.color for t in changed(scene, edit.after) if t in edit.after.things} == {edit.slots["color"]}
            elif kind == "remove":
                assert len(edit.after.things) < len(scene.things)
            elif kind == "replace":
                assert len(before - after) == len(after - before) == 1
            elif kind == "add":
                assert len(after - before) == 1 and before < after
            elif kind == "number":
                total = sum(t.name == changed(scene, edit.after)[0].name for t in edit.after.things)
                assert edit.slots["number"] == NUMBERS[total]
            elif kind == "background":
                assert edit.after.background.name == edit.slots["ground"]
            else:
                assert [(t.name, t.color) for t in scene.things] == [(t.name, t.color) for t in edit.after.things]


def test_chains_are_up_to_three_changes(world):
    lengths = [len(story(world, seed, task="edit")) - 1 for seed in range(300)]
    assert set(lengths) == {1, 2, 3}


def test_what_is_so_already_or_not_there_is_answered_in_words(world):
    for seed in range(300):
        scene = world.scene(seed)
        refused = edits.no_edit(scene, Random(seed))
        assert refused.after is None and refused.answer
        absent = re.search(
            r"(?:There is no|I don't see)(?: an?)? (?:pair of |head of )?(.+?)(?: in the picture|, only)",
            refused.answer,
        )
        if absent:
            assert absent[1].lower() not in {thing.name for thing in scene.things}
        else:
            assert "already" in refused.answer


# ---- talk


def test_small_talk_has_an_answer_for_every_topic():
    assert set(talk.FORMS) == set(talk.ANSWERS)
    for topic in talk.FORMS:
        said, answer = talk.small_talk(Random(0), topic=topic)
        assert said and answer in talk.ANSWERS[topic]


def test_the_model_says_of_itself_what_the_world_is():
    assert f"{len(CLASSES)} kinds of things" in " ".join(talk.ANSWERS["what draw"])
    assert talk.ANSWERS["colors"] == (f"I know ten colors: {words.listed(list(COLORS))}.",) and len(COLORS) == 10
    assert all(str(World("shapes").size) in answer for answer in talk.ANSWERS["picture size"])


def test_prompts_are_many_and_of_many_kinds():
    listed = [prompt for prompts in PROMPTS.values() for prompt in prompts]
    assert len(PROMPTS) >= 15 and len(listed) >= 300 and len({p.lower() for p in listed}) == len(listed)
    assert sum(any(name in prompt.lower() for name in CLASSES) for prompt in listed) > 50
    assert not any(re.search(r"\b(draw|paint|sketch|picture of)\b", prompt.lower()) for prompt in listed)
