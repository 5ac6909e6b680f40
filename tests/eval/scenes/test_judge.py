"""The judge of replies takes every true answer, short or long, and no false one; what it asks is in no training."""

import re
from random import Random

import pytest

from data_recipes.scenes.language import PROMPTS, conversation, questions, requests, story, words
from data_recipes.scenes.language.grammar import normalized
from data_recipes.scenes.world import (
    CLASSES,
    COLORS,
    NUMBERS,
    Background,
    Scene,
    Thing,
    World,
    combinations,
    is_held_out,
)
from eval.scenes.language import (
    FACTS,
    OPERATIONS,
    asked,
    draw_requests,
    edit_requests,
    impossible_requests,
    knows,
    right,
    score,
    text_only,
)
from eval.scenes.language_texts import MESSAGES

PLAIN = Background("plain", ((206, 208, 210),) * 2, "light gray", False, 1, 0.5)
# A red dog on the left, a cup in its own colours on the right, two blue cars at the bottom.
SCENE = Scene(
    "edited",
    (
        Thing("dog", "red", (6, 30, 46, 70)),
        Thing("cup", None, (84, 34, 116, 66)),
        Thing("car", "blue", (10, 92, 42, 116)),
        Thing("car", "blue", (80, 92, 112, 116)),
    ),
    PLAIN,
)
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "top": "bottom", "bottom": "top"}


@pytest.fixture(scope="module")
def world():
    return World("shapes")


def every_question(world, number):
    """(scene, question) of every kind, about scenes of both splits and such as changes leave."""
    rng = Random(0)
    for seed in range(number):
        scene = story(world, seed, rng.choice(("train", "held_out")), rng.choice(("look", "edit")))[-1].scene
        for kind in questions.KINDS:
            question = questions.ask(scene, rng, kind, rng.choice(("train", "held_out")))
            if question:
                yield scene, question


def falsified(scene, question, rng):
    """The answer with one thing in it made wrong."""
    answer = question.answer
    denies = re.search(r"\bno\b|n't|nothing|no\b|not\b|both", answer, re.IGNORECASE)
    if re.match("yes", answer, re.IGNORECASE):
        yield re.sub("^yes", "No", answer, flags=re.IGNORECASE)
    if re.match("no(,|$)", answer, re.IGNORECASE) and question.kind != "absent":
        yield re.sub("^no", "Yes", answer, flags=re.IGNORECASE)
    if denies:
        return
    for word, other in OPPOSITE.items():
        if re.search(rf"\b{word}\b", answer) and not re.search(rf"\b{other}\b", answer):
            yield re.sub(rf"\b{word}\b", other, answer)
    for number in NUMBERS[1:]:
        if re.search(rf"\b{number}\b", answer):
            yield re.sub(rf"\b{number}\b", "three" if number != "three" else "two", answer)
    unseen = [c for c in COLORS if c != "orange" and not any(words.may_look(t.name, t.color, c) for t in scene.things)]
    for color in COLORS:
        if unseen and color != "orange" and re.search(rf"\b(?<!light )(?<!dark ){color}\b", answer):
            yield re.sub(rf"\b(?<!light )(?<!dark ){color}\b", rng.choice(unseen), answer)
    absent = [n for n in CLASSES if n not in (*words.UNITS, "orange") and all(n != t.name for t in scene.things)]
    for name in {t.name for t in scene.things} - {"orange"}:
        if re.search(rf"\b{words.written(name)}\b", answer):
            yield re.sub(rf"\b{words.written(name)}\b", rng.choice(absent), answer)


def test_every_answer_of_training_is_true_and_answers(world):
    seen = set()
    for scene, question in every_question(world, 250):
        assert right(scene, question.meaning, question.answer), (scene, question)
        seen.add(question.meaning[0])
    assert seen == set(OPERATIONS)


def test_follow_ups_are_true_and_answer(world):
    found = 0
    for scene, question in every_question(world, 200):
        follow_up = questions.follow_up(scene, question, Random(found))
        if follow_up:
            found += 1
            assert right(scene, follow_up.meaning, follow_up.answer), (scene, question, follow_up)
    assert found > 100


def test_an_answer_made_wrong_in_one_thing_is_wrong(world):
    rng, found = Random(0), 0
    for scene, question in every_question(world, 150):
        for wrong in falsified(scene, question, rng):
            found += 1
            assert not right(scene, question.meaning, wrong), (scene, question, wrong)
    assert found > 900


DOG, CUP, CARS, CAT = ("dog", None), ("cup", None), ("car", None), ("cat", None)


@pytest.mark.parametrize(
    "meaning, replies",
    {
        ("what", None, None): (
            "dog, cup and two cars",
            "A red dog, a cup, and some cars.",
            "I can see a dog, a mug of the kind called cup, and two automobiles: cars.",
        ),
        ("what", "red", None): ("a dog", "dog", "That is the dog.", "It's the red dog"),
        ("what", None, ("left of", CUP)): ("dog", "The dog is to the left of the cup.", "the red dog"),
        ("what", None, ("above", DOG)): ("nothing", "There's nothing above the dog.", "I don't see anything there."),
        ("else", CUP): ("a dog and two cars", "Besides the cup, there are two cars and a red dog."),
        ("exists", "dog", None): (
            "yes",
            "Yes.",
            "Yes, a red one: there is a dog on the left.",
            "There is a dog.",
            "I see one dog.",
        ),
        ("exists", "cat", None): (
            "no",
            "No.",
            "No, there isn't a cat.",
            "There is no cat in the picture.",
            "I don't see a cat.",
        ),
        ("exists", "dog", "blue"): ("no", "No, the dog is red.", "There is no blue dog."),
        ("color", DOG): ("red", "Red.", "It's red.", "The dog is red.", "The colour of the dog is red."),
        ("color", CARS): ("blue", "They are blue", "Both cars are blue.", "The two cars are blue."),
        ("color", CUP): ("white", "The cup is white"),
        ("color", CAT): ("There is no cat.", "I don't see a cat in this picture.", "none"),
        ("count", "car", None): (
            "2",
            "two",
            "There are two cars.",
            "Two cars.",
            "I count 2 cars in the picture.",
            "two blue cars",
        ),
        ("count", "cat", None): ("0", "zero", "none", "There are no cats.", "I see no cats."),
        ("count", None, None): ("4", "four", "There are four things."),
        ("where", DOG): (
            "left",
            "on the left",
            "It's to the left of the cup.",
            "The dog is on the left side of the picture.",
            "to the left of the cup",
            "above the car",
        ),
        ("where to", DOG, CUP): ("left", "to the left", "The dog is to the left of the cup.", "It's on the left."),
        ("is", DOG, "left of", CUP): (
            "yes",
            "Yes, it is.",
            "Yes, the dog is to the left of the cup.",
            "That is right.",
        ),
        ("is", DOG, "right of", CUP): ("no", "No, it's to the left of the cup.", "No, the dog is left of the cup."),
        ("background",): ("light gray", "The background is light grey.", "It's light gray."),
        ("bigger", DOG, CUP): ("the dog", "dog", "The dog is bigger.", "The dog is larger than the cup."),
        ("more", "car", "dog"): ("yes", "Yes, there are two cars but only one dog."),
        ("number", "car", "more than", 2): ("No, there are only two cars.", "no", "No, because I count two cars."),
        ("alone", DOG): ("no", "No, there are also a cup and two cars."),
        ("describe",): (
            "A red dog to the left of a cup, and two blue cars.",
            "There are two blue cars below a red dog and a cup.",
        ),
    }.items(),
)
def test_true_replies_in_other_words_are_right(meaning, replies):
    for reply in replies:
        assert right(SCENE, meaning, reply), reply


@pytest.mark.parametrize(
    "meaning, replies",
    {
        ("what", None, None): (
            "a dog",
            "a dog, a cup, two cars and a cat",
            "a blue dog, a cup and two cars",
            "",
            "two dogs, a cup and two cars",
        ),
        ("what", "red", None): ("the cup", "red", "a dog and a cup"),
        ("what", None, ("left of", CUP)): ("nothing", "the cup", "a cat", "two cars"),
        ("what", None, ("above", DOG)): ("a cup", "the dog"),
        ("exists", "dog", None): ("no", "Yes, there is a blue dog.", "There is no dog."),
        ("exists", "cat", None): ("yes", "There is a cat.", "21246780"),
        ("color", DOG): ("blue", "It's red and blue.", "dog", "The cup is red.", "I don't see a dog."),
        ("color", CAT): ("black", "The cat is black.", "red"),
        ("count", "car", None): ("3", "There are three cars.", "There is a car.", "cars", "one"),
        ("count", "cat", None): ("one", "There is a cat."),
        ("where", DOG): ("on the right", "It's below the cup.", "dog", "to the right of the cup", "at the bottom"),
        ("where to", DOG, CUP): ("right", "left or right", "above"),
        ("is", DOG, "left of", CUP): ("no", "Yes, the dog is to the right of the cup."),
        ("background",): ("gray and red", "dark gray", "beige"),
        ("bigger", DOG, CUP): ("the cup", "cup", "The cup is bigger than the dog.", "The dog is smaller."),
        ("number", "car", "more than", 2): ("yes", "No, there are three cars."),
        ("describe",): ("A red dog to the right of a cup, and two blue cars.", "A dog."),
    }.items(),
)
def test_false_or_empty_replies_are_wrong(meaning, replies):
    for reply in replies:
        assert not right(SCENE, meaning, reply), reply


def test_the_fruit_is_told_from_the_colour():
    scene = Scene("colors", (Thing("orange", "orange", (40, 40, 80, 80)),), PLAIN)
    assert right(scene, ("color", ("orange", None)), "The orange is orange.")
    assert right(scene, ("what", None, None), "an orange") and right(scene, ("what", None, None), "orange")
    assert right(scene, ("what", None, None), "It is an orange orange.")
    assert not right(scene, ("color", ("orange", None)), "The orange is blue.")


def test_scores_are_shares_by_kind(world):
    ones = list(asked(world, range(40)))
    assert {one.kind for one in ones} == set(questions.KINDS)
    assert set(score((one, one.question.answer) for one in ones).values()) == {1.0}
    half = score((one, one.question.answer if n % 2 else "mumble") for n, one in enumerate(ones))
    assert half["overall"] == pytest.approx(sum(half[kind] for kind in questions.KINDS) / len(questions.KINDS))
    assert 0.3 < half["overall"] < 0.7
    assert score([]) == {}


def test_questions_are_the_same_every_time_and_show_held_out_combinations(world):
    assert list(asked(world, range(10))) == list(asked(world, range(10)))
    for one in asked(world, range(50)):
        assert any(map(is_held_out, combinations(one.scene.things)))


# ---- messages without pictures, and requests


def training_texts(world, number):
    return {
        normalized(part["text"])
        for seed in range(number)
        for message in conversation(world, seed)
        for part in message["content"]
        if part["type"] == "text"
    }


def test_what_is_asked_is_in_no_training(world):
    trained = training_texts(world, 1000) | {normalized(p) for prompts in PROMPTS.values() for p in prompts}
    measured = [*text_only(), *impossible_requests(), *(text for text, _ in draw_requests(world)), *MESSAGES]
    measured += [text for chain in edit_requests(world, 50) for text, _ in chain]
    measured += [fact.question for fact in FACTS]
    for text in measured:
        assert normalized(text) not in trained, text


def test_there_are_a_hundred_messages_and_a_hundred_requests(world):
    assert len(set(text_only(100))) == 100 and text_only(100) == text_only(100)
    assert len(impossible_requests(100)) == 100
    prompts = draw_requests(world, 100)
    assert len({text for text, _ in prompts}) == 100
    assert all(any(map(is_held_out, combinations(scene.things))) for _, scene in prompts)
    with pytest.raises(ValueError, match="the most is"):
        text_only(1000)


def test_chains_of_edits_follow_on_each_other(world):
    chains = edit_requests(world, 20, length=3)
    assert len(chains) == 20 and {len(chain) for chain in chains} == {3}
    for chain in chains:
        assert [edit.before for _, edit in chain][1:] == [edit.after for _, edit in chain][:-1]


def test_what_cannot_be_drawn_is_asked_in_things_that_training_never_names():
    trained = {thing for by_split in requests.BEYOND.values() for thing in by_split["train"]}
    measured = {thing for by_split in requests.BEYOND.values() for thing in by_split["held_out"]}
    assert measured and not trained & measured


def test_facts_are_known_by_any_of_their_answers():
    assert len({fact.question for fact in FACTS}) == len(FACTS) >= 50
    paris = next(n for n, fact in enumerate(FACTS) if "France?" in fact.question)
    assert knows(paris, "The capital of France is Paris.") and not knows(paris, "It is Lyon.")
    week = next(n for n, fact in enumerate(FACTS) if "in a week" in fact.question)
    assert knows(week, "There are 7 days.") and not knows(week, "There are 17 days.")
