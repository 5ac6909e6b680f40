"""Judges whether a reply about a scene is true and answers the question, in whatever words; and makes the questions.

The judge reads a reply as claims: things with a number and a colour, colours, relations, places, yes or no, numbers. It
knows the scene and the question's `meaning` (see `language/questions.py` of the scenes world), and measures boxes
itself: it shares no code with what writes the answers of training.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from data_recipes.scenes.language import edits, questions, requests, talk, words
from data_recipes.scenes.world import CLASSES, COLORS, NUMBERS, Scene, Thing, World

from .language_texts import FACTS, MESSAGES

# ---- reading a reply

COUNTS = {**{word: number for number, word in enumerate(NUMBERS)}, **{str(n): n for n in range(10)}}
COUNTS |= {"none": 0, "no": 0, "five": 5, "six": 6, "seven": 7, "eight": 8}
DENIALS = re.compile(r"\b(no|not|none|nothing|neither|nowhere|without|isn't|aren't|don't|doesn't|can't|cannot)\b")
YES = re.compile(r"^(yes|yeah|yep|true|right|correct|indeed|sure)\b")
NO = re.compile(r"^(no|nope|false|wrong|not)\b")
RELATIONS = {
    "left of": r"(?:(?:to|on|at) the )?left(?:[- ]hand)?(?: side)? of",
    "right of": r"(?:(?:to|on|at) the )?right(?:[- ]hand)?(?: side)? of",
    "above": r"above|over|on top of",
    "below": r"below|under|underneath|beneath",
}
PLACES = {
    "at the top left": r"(?:top|upper)[- ]left(?: corner)?",
    "at the top right": r"(?:top|upper)[- ]right(?: corner)?",
    "at the bottom left": r"(?:bottom|lower)[- ]left(?: corner)?",
    "at the bottom right": r"(?:bottom|lower)[- ]right(?: corner)?",
    "in the middle": r"middle|cent(?:er|re)",
    "at the top": r"(?:at|near|in|on) the (?:top|upper)",
    "at the bottom": r"(?:at|near|in|on) the (?:bottom|lower)",
    "on the left": r"(?:on|at|to|in) the left",
    "on the right": r"(?:on|at|to|in) the right",
}


class Mention(NamedTuple):
    """A thing that a reply names. `number`: None for "the", 0 for one that is denied; `at`: where it stands."""

    name: str
    color: str | None
    number: int | None
    several: bool
    at: tuple[int, int]


@cache
def _names() -> dict[str, tuple[str, bool]]:
    """What things are called -> (class, is it a plural)."""
    found = {}
    for name in CLASSES:
        for called in (name, *words.SYNONYMS.get(name, ())):
            for several in (words.plural(called), words.many(called).removesuffix(" " + called)):
                found[several.lower()] = (name, True)
            found[called] = (name, False)
    return {called: known for called, known in found.items() if not called.startswith(("pair", "head"))}


@cache
def _noun() -> re.Pattern:
    names = "|".join(sorted(map(re.escape, _names()), key=len, reverse=True))
    return re.compile(
        rf"(?:\b(?P<number>{'|'.join(COUNTS)}|an?|the|any|another)\s+)?"
        rf"(?P<unit>(?:pairs?|heads?) of\s+)?(?:\b(?P<color>{'|'.join(COLORS)})\s+)?\b(?P<name>{names})\b"
    )


def mentions(reply: str) -> list[Mention]:
    """Things named in a reply in lower case. "orange" is the fruit after an article or a number, else the colour."""
    found = []
    for noun in _noun().finditer(reply):
        name, several = _names()[noun["name"]]
        if noun["name"] == "orange" and not noun["number"] and not noun["color"]:
            continue
        number = COUNTS.get(noun["number"]) if noun["number"] not in ("a", "an", "another") else 1
        if noun["unit"]:
            several = noun["unit"].startswith(("pairs", "heads"))
        start = max(reply.rfind(mark, 0, noun.start()) for mark in (".", ",", ":", ";", " but ", " only "))
        if noun["number"] not in (*COUNTS, "the") and DENIALS.search(reply[start + 1 : noun.start()]):
            number = 0
        found.append(Mention(name, noun["color"], number, several, noun.span()))
    return found


def plain_colors(reply: str, named: Sequence[Mention]) -> set[str]:
    """Colours that are not part of a thing's name: "red" in "the dog is red"."""
    for mention in reversed(named):
        reply = reply[: mention.at[0]] + "*" * (mention.at[1] - mention.at[0]) + reply[mention.at[1] :]
    reply = re.sub(r"\b(not|than) \w+", "", reply)
    return set(re.findall(rf"\b({'|'.join(COLORS)}|gray|grey)\b", reply.replace("grey", "gray")))


# ---- what is true of a scene


def _offset(thing: Thing, other: Thing | None, size: int) -> tuple[float, float]:
    """From the other's centre, or the picture's, to the thing's; in pixels."""
    x, y = ((thing.box[axis] + thing.box[axis + 2]) / 2 for axis in (0, 1))
    ox, oy = ((other.box[axis] + other.box[axis + 2]) / 2 for axis in (0, 1)) if other else (size / 2, size / 2)
    return x - ox, y - oy


def lies(thing: Thing, other: Thing, word: str, size: int) -> bool:
    """Whether that can be said: of a diagonal layout, both relations can."""
    dx, dy = _offset(thing, other, size)
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[word]
    return along > 0 and along >= abs(across) / 2


def at_place(thing: Thing, where: str, size: int) -> bool:
    dx, dy = (offset / size for offset in _offset(thing, None, size))
    far = 1 / 16
    if where == "in the middle":
        return abs(dx) <= 2 * far and abs(dy) <= 2 * far
    sides = {"left": dx < -far, "right": dx > far, "top": dy < -far, "bottom": dy > far}
    return all(right for side, right in sides.items() if side in where)


def has_color(thing: Thing, color: str) -> bool:
    return color == thing.color if thing.color else words.may_look(thing.name, None, color)


def meant(scene: Scene, key: tuple[str | None, str | None]) -> list[Thing]:
    name, color = key
    return [t for t in scene.things if name in (None, t.name) and (color is None or t.color == color)]


def consistent(scene: Scene, reply: str, subject: Sequence[Thing] = ()) -> bool:
    """Whether no claim of the reply is false. `subject` is what "it" stands for, and what a relation without a thing
    before it is about."""
    named = mentions(reply)
    return (
        all(_mention_holds(scene, mention) for mention in named)
        and _relations_hold(scene, reply, named, subject)
        and _places_hold(scene, reply, named, subject)
        and _colors_hold(scene, reply, named)
    )


def _mention_holds(scene: Scene, mention: Mention) -> bool:
    of_kind = [t for t in scene.things if t.name == mention.name]
    if mention.color:
        of_kind = [t for t in of_kind if has_color(t, mention.color)]
    if mention.number == 0:
        return not of_kind
    if mention.number is not None and mention.number > 1:
        return len(of_kind) == mention.number
    return bool(of_kind)


def _things(scene: Scene, mention: Mention) -> list[Thing]:
    return [
        t for t in scene.things if t.name == mention.name and (mention.color is None or has_color(t, mention.color))
    ]


def _relations_hold(scene: Scene, reply: str, named: Sequence[Mention], subject: Sequence[Thing]) -> bool:
    for word, pattern in RELATIONS.items():
        for found in re.finditer(rf"\b(?:{pattern})\b", reply):
            after = next(
                (m for m in named if m.at[0] >= found.end() and not reply[found.end() : m.at[0]].strip()), None
            )
            if after is None:
                continue
            before = _before(reply, named, found.start())
            others = _things(scene, after)
            if re.search(r"\b(nothing|anything)\b[^.]*$", reply[: found.start()]):
                if any(lies(t, o, word, scene.size) and _clearly(t, o, word) for t in scene.things for o in others):
                    return False
                continue
            things = _things(scene, before) if before else subject
            if things and not any(lies(t, o, word, scene.size) for t in things for o in others if t is not o):
                return False
    return True


def _clearly(thing: Thing, other: Thing, word: str) -> bool:
    """Whether the relation holds beyond doubt."""
    dx, dy = _offset(thing, other, 0)
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[word]
    return along > 2 * abs(across)


def _before(reply: str, named: Sequence[Mention], at: int) -> Mention | None:
    """The last thing named before a place in the same sentence."""
    start = max(reply.rfind(mark, 0, at) for mark in (".", ";"))
    earlier = [m for m in named if start < m.at[0] and m.at[1] <= at]
    return earlier[-1] if earlier else None


def _places_hold(scene: Scene, reply: str, named: Sequence[Mention], subject: Sequence[Thing]) -> bool:
    for found, where in _places(reply):
        before = _before(reply, named, found)
        things = _things(scene, before) if before else subject
        if things and not any(at_place(thing, where, scene.size) for thing in things):
            return False
    return True


def _places(reply: str) -> list[tuple[int, str]]:
    """(position, place) of every place of the picture that is named, corners before the sides in their names."""
    for pattern in RELATIONS.values():
        reply = re.sub(rf"\b(?:{pattern})\b(?! the (?:picture|image|photo))", lambda m: "*" * len(m[0]), reply)
    found = []
    for where, pattern in PLACES.items():
        for match in re.finditer(rf"\b(?:{pattern})\b", reply):
            found.append((match.start(), where))
        reply = re.sub(rf"\b(?:(?:in|at|on) the )?(?:{pattern})\b", lambda m: "*" * len(m[0]), reply)
    return found


def _colors_hold(scene: Scene, reply: str, named: Sequence[Mention]) -> bool:
    """ "the dog is red", "both are red": of the thing named last before the verb, or of some. A thing that only says
    where another is, "the dog above the cup is red", is passed over."""
    for pattern in RELATIONS.values():
        references = [
            mention
            for found in re.finditer(rf"\b(?:{pattern})\b", reply)
            for mention in named
            if mention.at[0] >= found.end() and not reply[found.end() : mention.at[0]].strip()
        ]
        named = [mention for mention in named if mention not in references]
    for claim in re.finditer(rf"\b(?:is|are) ({'|'.join(COLORS)})\b(?! \w+ (?:one|ones))", reply):
        if any(m.at[0] < claim.end(1) <= m.at[1] for m in named):
            continue  # "there are red dogs"
        before = _before(reply, named, claim.start())
        things = _things(scene, before) if before else []
        if re.search(r"\bboth $", reply[: claim.start()]):
            things = list(scene.things)
            if not any(has_color(thing, claim[1]) for thing in things):
                return False
        elif things and not any(has_color(thing, claim[1]) for thing in things):
            return False
    return True


# ---- whether a reply answers


def right(scene: Scene, meaning: tuple, reply: str) -> bool:
    """Whether the reply answers the question of this meaning, and all it says is true of the scene."""
    reply = " ".join(reply.lower().split()).strip(' "')
    operation, *about = meaning
    return bool(reply) and OPERATIONS[operation](scene, reply, *about)


def _denies(scene: Scene, reply: str) -> bool:
    return bool(DENIALS.search(reply)) and consistent(scene, reply)


def _names_are(scene: Scene, reply: str, expected: Iterable[Thing], others: Sequence[Thing] = ()) -> bool:
    """Whether the reply names all the expected things, and none but them and `others`."""
    said = mentions(reply) or mentions(f"a {reply}")
    names = {mention.name for mention in said if mention.number != 0}
    wanted = {thing.name for thing in expected}
    allowed = wanted | {thing.name for thing in others}
    return wanted <= names <= allowed and consistent(scene, reply)


def _located(scene: Scene, where: tuple) -> tuple[list[Thing], list[Thing]]:
    """(things there, things that "there" is said by) for ("at", a place) or (a relation, a class and colour)."""
    if where[0] == "at":
        return [t for t in scene.things if at_place(t, where[1], scene.size)], []
    references = meant(scene, where[1])
    return [t for t in scene.things for o in references if t is not o and lies(t, o, where[0], scene.size)], references


def _what(scene: Scene, reply: str, color: str | None, where: tuple | None) -> bool:
    things, references = (list(scene.things), []) if where is None else _located(scene, where)
    if where and where[0] != "at" and not references:
        return _denies(scene, reply)
    if where and where[0] == "at" and any(_opposite(where[1], said) for _, said in _places(reply)):
        return False  # true, maybe, but of another place
    things = [t for t in things if color is None or t.color == color]
    if where:  # of a diagonal layout one may leave out what is hardly there
        sure = [t for t in things if where[0] == "at" or any(_clearly(t, o, where[0]) for o in references)]
        if not sure:
            return _denies(scene, reply) or (bool(things) and _names_are(scene, reply, things, references))
        return any(_names_are(scene, reply, wanted, [*things, *references]) for wanted in (sure, things))
    return _names_are(scene, reply, things)


def _opposite(where: str, other: str) -> bool:
    sides = (("left", "right"), ("top", "bottom"))
    return any((a in where and b in other) or (b in where and a in other) for a, b in sides)


def _else(scene: Scene, reply: str, key: tuple) -> bool:
    known = meant(scene, key)
    return _names_are(scene, reply, [t for t in scene.things if t not in known], known)


def _answers_yes(reply: str) -> bool:
    if YES.match(reply) or NO.match(reply):
        return bool(YES.match(reply))
    return not DENIALS.search(reply)


def _yes_no(scene: Scene, reply: str, truth: bool, subject: Sequence[Thing] = ()) -> bool:
    rest = re.sub(r"^(yes|no)\b[,.]?\s*(because\s+)?", "", reply)
    return _answers_yes(reply) == truth and consistent(scene, rest, subject)


def _exists(scene: Scene, reply: str, name: str, color: str | None) -> bool:
    found = [t for t in scene.things if t.name == name and (color is None or has_color(t, color))]
    return _yes_no(scene, reply, bool(found))


def _exists_kind(scene: Scene, reply: str, kind: str) -> bool:
    return _yes_no(scene, reply, any(t.name in words.KINDS[kind][1] for t in scene.things))


def _color_is(scene: Scene, reply: str, things: Sequence[Thing]) -> bool:
    """Whether the one colour of the things is said, or, of the artwork's own, what can be seen in it."""
    if not things:
        return _denies(scene, reply)
    named = mentions(reply)
    if named and things[0].name not in {mention.name for mention in named}:
        return False
    said = plain_colors(reply, named) or {mention.color for mention in named} - {None}
    if not all(any(has_color(t, color) for t in things) for color in said):
        return False
    colors = {t.color for t in things}
    if None in colors:
        known = words.own_color(things[0].name)
        wanted = set(known.split(" and ")) if known else said
        return bool(said & wanted) and consistent(scene, reply)
    return said == colors and consistent(scene, reply)


def _color(scene: Scene, reply: str, key: tuple) -> bool:
    return _color_is(scene, reply, meant(scene, key))


def _color_of(scene: Scene, reply: str, word: str, key: tuple) -> bool:
    return _color_is(scene, reply, _clear(scene, word, key))


def _clear(scene: Scene, word: str, key: tuple) -> list[Thing]:
    """The things that lie there beyond doubt."""
    return [t for t in scene.things for o in meant(scene, key) if t is not o and _clearly(t, o, word)]


def _background(scene: Scene, reply: str) -> bool:
    name = scene.background.name
    reply = reply.replace("grey", "gray")
    if name is None or name not in reply:
        return False
    rest = reply.replace(name, "")
    return not any(re.search(rf"\b{color}\b", rest) for color in (*COLORS, "gray", "beige", "teal", "tan", "lavender"))


def _number_said(reply: str, name: str | None) -> int | None:
    """The number of things of the class, or the first number that the reply says."""
    named = [m for m in mentions(reply) if name is not None and m.name == name and m.number is not None]
    if named:
        return named[0].number
    number = re.search(rf"\b({'|'.join(COUNTS)})\b", reply)
    if number:
        return COUNTS[number[1]]
    if DENIALS.search(reply):
        return 0
    return 1 if re.search(r"\ban?\b", reply) else None


def _count(scene: Scene, reply: str, name: str | None, color: str | None) -> bool:
    return _number_said(reply, name) == len(meant(scene, (name, color))) and consistent(scene, reply)


def _count_at(scene: Scene, reply: str, word: str, key: tuple) -> bool:
    references = meant(scene, key)
    possible = {t for t in scene.things for o in references if t is not o and lies(t, o, word, scene.size)}
    sure = set(_clear(scene, word, key))
    number = re.split("|".join(f"(?:{pattern})" for pattern in RELATIONS.values()), reply)[0]
    said = _number_said(number, None)
    named = {name for name, pattern in RELATIONS.items() if re.search(rf"\b(?:{pattern})\b", reply)}
    if said is None or named - {word} or not all(_mention_holds(scene, mention) for mention in mentions(reply)):
        return False
    return len(sure) <= said <= len(possible)


def _where(scene: Scene, reply: str, key: tuple) -> bool:
    things = meant(scene, key)
    if not things:
        return _denies(scene, reply)
    reply = re.sub(r"^(?:the )?(left|right|top|bottom)(?: side)?[.]?$", r"at the \1", reply)
    says = bool(_places(reply)) or any(re.search(rf"\b(?:{pattern})\b", reply) for pattern in RELATIONS.values())
    return says and consistent(scene, reply, things)


def _where_to(scene: Scene, reply: str, key: tuple, other: tuple) -> bool:
    things, references = meant(scene, key), meant(scene, other)
    said = {
        word
        for word, pattern in (
            ("left of", r"left"),
            ("right of", r"right"),
            ("above", RELATIONS["above"]),
            ("below", RELATIONS["below"]),
        )
        if re.search(rf"\b(?:{pattern})\b", reply)
    }
    true = all(lies(things[0], references[0], word, scene.size) for word in said)
    return bool(said) and true and consistent(scene, reply, things)


def _is(scene: Scene, reply: str, key: tuple, word: str, other: tuple) -> bool:
    things, references = meant(scene, key), meant(scene, other)
    return _yes_no(scene, reply, lies(things[0], references[0], word, scene.size), things)


def _is_at(scene: Scene, reply: str, key: tuple, where: str) -> bool:
    things = meant(scene, key)
    return _yes_no(scene, reply, at_place(things[0], where, scene.size), things)


def _is_color(scene: Scene, reply: str, key: tuple, color: str) -> bool:
    return _yes_no(scene, reply, all(has_color(t, color) for t in meant(scene, key)), meant(scene, key))


def _is_color_at(scene: Scene, reply: str, word: str, key: tuple, color: str) -> bool:
    things = _clear(scene, word, key)
    return _yes_no(scene, reply, all(has_color(t, color) for t in things), things)


def _is_kind_at(scene: Scene, reply: str, word: str, key: tuple, kind: str) -> bool:
    things = _clear(scene, word, key)
    return _yes_no(scene, reply, all(t.name in words.KINDS[kind][1] for t in things), things)


def _same_color(scene: Scene, reply: str, key: tuple, other: tuple) -> bool:
    colors = [{t.color for t in meant(scene, one)} for one in (key, other)]
    return _yes_no(scene, reply, colors[0] == colors[1])


def _bigger(scene: Scene, reply: str, key: tuple, other: tuple) -> bool:
    def area(thing: Thing) -> int:
        x1, y1, x2, y2 = thing.box
        return (x2 - x1) * (y2 - y1)

    things = [meant(scene, one)[0] for one in (key, other)]
    big = max(things, key=area)
    said = mentions(reply) or mentions(f"the {reply}")
    smaller = re.search(r"\b(smaller|less)\b", reply)
    return bool(said) and big in _things(scene, said[0]) and not smaller and consistent(scene, reply)


def _more(scene: Scene, reply: str, name: str, other: str) -> bool:
    return _yes_no(scene, reply, len(meant(scene, (name, None))) > len(meant(scene, (other, None))))


def _number(scene: Scene, reply: str, name: str, bound: str, number: int) -> bool:
    count = len(meant(scene, (name, None)))
    truth = {"more than": count > number, "at least": count >= number, "exactly": count == number}[bound]
    rest = _number_said(re.sub(r"^(yes|no)\b[,.]?\s*", "", reply), name)
    return _yes_no(scene, reply, truth) and rest in (None, count)


def _alone(scene: Scene, reply: str, key: tuple) -> bool:
    return _yes_no(scene, _without_nothing(reply), len(meant(scene, key)) == len(scene.things))


def _company(scene: Scene, reply: str, key: tuple) -> bool:
    return _yes_no(scene, _without_nothing(reply), len(meant(scene, key)) < len(scene.things))


def _without_nothing(reply: str) -> str:
    """ "nothing besides the dog" denies no dog."""
    return re.sub(r"nothing (besides|but|other than|else)", "only", reply)


def _describe(scene: Scene, reply: str) -> bool:
    ground = re.search(r"background is ([a-z ]+)", reply)
    if ground and ground[1].strip() != scene.background.name:
        return False
    return _names_are(scene, re.sub(r"the background is [a-z ]+", "", reply), scene.things)


OPERATIONS = {
    "what": _what,
    "else": _else,
    "exists": _exists,
    "exists kind": _exists_kind,
    "color": _color,
    "color of": _color_of,
    "background": _background,
    "count": _count,
    "count at": _count_at,
    "where": _where,
    "where to": _where_to,
    "is": _is,
    "is at": _is_at,
    "is color": _is_color,
    "is color at": _is_color_at,
    "is kind at": _is_kind_at,
    "same color": _same_color,
    "bigger": _bigger,
    "more": _more,
    "number": _number,
    "alone": _alone,
    "company": _company,
    "describe": _describe,
}


# ---- what to ask


class Asked(NamedTuple):
    """A question about the scene of `seed` in split "held_out"."""

    seed: int
    kind: str
    scene: Scene
    question: questions.Question


def asked(world: World, seeds: Iterable[int], forms: str = "held_out") -> Iterator[Asked]:
    """A question of each kind about each scene that leaves one to ask, in forms that training uses or never does."""
    for seed in seeds:
        scene = world.scene(seed, "held_out")
        for kind in questions.KINDS:
            question = questions.ask(scene, Random(f"{forms} {kind} {seed}"), kind, forms)
            if question:
                yield Asked(seed, kind, scene, question)


def score(asked_and_replies: Iterable[tuple[Asked, str]]) -> dict[str, float]:
    """Share of right replies of each kind, and "overall" as the plain mean of the kinds."""
    verdicts: dict[str, list[bool]] = {}
    for one, reply in asked_and_replies:
        verdicts.setdefault(one.kind, []).append(right(one.scene, one.question.meaning, reply))
    shares = {kind: sum(found) / len(found) for kind, found in verdicts.items()}
    return {**shares, "overall": sum(shares.values()) / len(shares)} if shares else {}


def text_only(number: int = 100) -> list[str]:
    """Messages that ask for words and no picture, none of which is in training: small talk in held-out forms, and
    everyday messages. Raises ValueError for more than there are."""
    if number > 2 * len(MESSAGES):
        raise ValueError(f"{number} messages asked for; the most is {2 * len(MESSAGES)}")
    half, rng, ours = number // 2, Random("text only"), []
    while len(ours) < half:
        said, _ = talk.small_talk(rng, "held_out")
        if said not in ours:
            ours.append(said)
    return ours + list(MESSAGES[: number - half])


def impossible_requests(number: int = 100) -> list[str]:
    """For pictures that cannot be drawn, in held-out forms, of what training never asks for: words are right."""
    return [requests.declined(Random(f"impossible {n}"), "held_out")[0] for n in range(number)]


def draw_requests(world: World, number: int = 100) -> list[tuple[str, Scene]]:
    """Requests in held-out forms, each with a scene of split "held_out" that it is true of."""
    scenes = [world.scene(seed, "held_out") for seed in range(number)]
    return [(requests.request(scene, Random(f"draw {n}"), "held_out"), scene) for n, scene in enumerate(scenes)]


def edit_requests(world: World, number: int = 100, length: int = 1) -> list[list[tuple[str, edits.Edit]]]:
    """Chains of `length` instructions in held-out forms, with what they change: the first in a scene of split
    "held_out". Kinds of edits that make new combinations make held-out ones."""
    found, seed = [], 0
    while len(found) < number:
        rng = Random(f"edit {seed}")
        chain = edits.chain(world, world.scene(seed, "held_out"), rng, "held_out", length)
        if len(chain) == length:
            found.append([(edit.words(rng, "held_out"), edit) for edit in chain])
        seed += 1
    return found


def knows(fact: int, reply: str) -> bool:
    """Whether the reply to `FACTS[fact]` says one of its answers."""
    said = f" {' '.join(re.findall(r'[a-z0-9]+', reply.lower()))} "
    return any(f" {answer} " in said for answer in FACTS[fact].answers)
