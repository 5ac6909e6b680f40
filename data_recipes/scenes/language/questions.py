"""Questions about a scene, as people ask them, with answers that are true of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from ..world import CLASSES, COLORS, NUMBERS, RELATIONS, Scene, Thing, is_held_out
from . import words
from .facts import CORNERS, PLACES, Group, at_place, axis_of, clear_relations, groups, lying, place, singles
from .grammar import sentence_case, typed
from .question_forms import FORMS, PLACE_WORDS, REASONS, RELATION_WORDS, SAID_RELATION, TONE_SHARES, TONES


class Ask(NamedTuple):
    """What to ask and what to answer, before it is put into words: the key of FORMS and what goes into its slots, the
    short answer, and sentences any of which will do.

    `meaning` says the same to a program that knows the scene: an operation, as in ("color", ("dog", None)), and what
    it is about. Things are named by (class, colour or None), places by ("at", one of PLACES) or (relation, name of the
    other thing). eval/scenes/language.py has all operations. `about` is the group that "it" then stands for."""

    form: str
    slots: dict[str, str]
    meaning: tuple
    short: str
    sentences: tuple[str, ...]
    about: Group | None = None


@dataclass(frozen=True)
class Question:
    kind: str
    form: str
    text: str
    answer: str
    meaning: tuple
    about: Group | None = None


def ask(scene: Scene, rng: Random, kind: str | None = None, forms: str = "train") -> Question | None:
    """A question of this kind (None: of any); None when the scene leaves nothing to ask."""
    kind = kind or rng.choice(tuple(KINDS))
    found = KINDS[kind](scene, rng)
    return found and worded(kind, found, rng, forms)


PLACE_TOLD = ("left", "right", "above", "below", "top", "bottom", "middle")  # in an answer: where it is was said


def follow_up(scene: Scene, before: Question, rng: Random, forms: str = "train") -> Question | None:
    """What only makes sense after the question before: about "it", or "and the cup?"; None when nothing does."""
    group = before.about
    if before.form in ("color", "where") and rng.random() < 0.5:
        found = groups(scene) if before.form == "color" else singles(groups(scene))
        others = [g for g in found if g.key != before.meaning[1] and not g.distinct]
        if not others:
            return None
        other = rng.choice(others)
        x = other.the(words.called(other.name, rng))
        if before.form == "where":
            asked = _where_of(scene, other, x, rng, "and")
        else:
            asked = _color_of(other, x, "and") if other.said_color else None
        return asked and worded(before.form, asked, rng, forms)
    if not group or group.distinct:
        return None
    if group.said_color and group.said_color not in before.answer and rng.random() < 0.6:
        return worded("color", _color_of(group, "", "it color"), rng, forms)
    if len(group) == 1 and not any(word in before.answer for word in PLACE_TOLD):
        asked = _where_of(scene, group, "", rng, "it where")
        return asked and worded("where", asked, rng, forms)
    return None


def worded(kind: str, asked: Ask, rng: Random, forms: str = "train") -> Question:
    """In the words and the tone of someone; the answer follows the tone."""
    text = FORMS[asked.form][forms].sample(rng).format(**asked.slots)
    if kind == "reason":
        text = f"{text} {REASONS[forms].sample(rng)}"
        return Question(kind, asked.form, typed(text, rng), rng.choice(asked.sentences), asked.meaning, asked.about)
    tone, short = _tone(asked, rng)
    if tone:
        text = f"{text} {TONES[tone][forms].sample(rng)}"
    answer = short if tone in ("word", "short") else rng.choice(asked.sentences)
    return Question(kind, asked.form, typed(text, rng), answer, asked.meaning, asked.about)


def _tone(asked: Ask, rng: Random) -> tuple[str | None, str]:
    """A tone or none, and the short answer in it: one word where one is asked for, which is not done where it takes
    two."""
    if asked.form in ("describe", "describe all"):
        return None, asked.short
    tone = next((tone for tone, share in TONE_SHARES.items() if rng.random() < share), None)
    if tone == "word" and " " not in words.bare(asked.short):
        return tone, words.bare(asked.short)
    return "short" if tone == "word" else tone, asked.short


# ---- sentences


def denial(name: str, color: str | None = None) -> tuple[str, ...]:
    nothing = words.any_of(name, color)
    be_ = "is" if name == "broccoli" else "are"
    return (
        f"There {be_} no {nothing} in the picture.",
        f"I don't see {words.one(name, color)} in the picture.",
        f"There is no {words.bare(words.one(name, color))} here.",
    )


def shown(found: list[Group], colored: bool = True) -> str:
    return words.listed([group.some(colored) for group in found])


def there_are(found: list[Group], colored: bool = True) -> str:
    """ "there is a dog", "there are two dogs and a cup"."""
    first = found[0]
    be_ = "are" if len(first) > 1 else "is"
    return f"there {be_} {shown(found, colored)}"


def its(group: Group) -> str:
    return "They're" if group.it == "they" else "It's"


def naming(group: Group, rng: Random) -> str:
    """As the asker calls it, its colour said when needed and now and then when not."""
    colored = group.color is not None and rng.random() < 0.15
    return group.the(words.called(group.name, rng), colored)


def absent(scene: Scene, rng: Random) -> str:
    """A class that the scene does not show."""
    present = {thing.name for thing in scene.things}
    while True:
        name = CLASSES[int(rng.random() * len(CLASSES))]
        if name not in present:
            return name


def absent_color(group: Group, found: list[Group], rng: Random) -> str | None:
    """A colour that nobody sees in things of this class; never one that makes a held-out combination, or training would
    teach that it does not exist."""
    seen = {other.color for other in found if other.name == group.name}
    colors = [
        color
        for color in COLORS
        if color not in seen
        and not any(may_look(other, color) for other in found if other.name == group.name)
        and not is_held_out(("color", group.name, color))
    ]
    return rng.choice(colors) if colors else None


def may_look(group: Group, color: str) -> bool:
    return words.may_look(group.name, group.color, color)


# ---- what to ask


def ask_what(scene: Scene, rng: Random) -> Ask | None:
    found = groups(scene)
    asks = [_what_all, _what_color, _what_beside, _what_else, _what_place] if len(found) > 1 else [_what_all]
    return _first(asks, scene, found, rng)


def _what_all(scene: Scene, found: list[Group], rng: Random) -> Ask:
    listed = there_are(found, colored=False)
    sentences = (
        f"{sentence_case(listed)}.",
        f"I see {shown(found, colored=False)}.",
        f"The picture shows {shown(found, colored=False)}.",
    )
    if len(found) > 1:
        return Ask("what all", {}, ("what", None, None), shown(found, colored=False), sentences)
    group = found[0]
    several = words.is_plural(len(group), group.name)
    slots = {
        "this": "these" if several else "this",
        "is_this": "are these" if several else "is this",
        "this_is": "these are" if several else "this is",
        "things": "things" if several else "thing",
        "be": group.be,
    }
    subject = "These are" if several else "This is"
    said = words.one(group.name) if len(group) == 1 else words.any_of(group.name)
    sentences = (f"{subject} {said}.", f"{group.it.capitalize()} {group.be} {said}.", *sentences[1:])
    return Ask("what one", slots, ("what", None, None), said, sentences, group)


def _what_color(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    """Which one is red; nobody may find the colour in another one."""
    options = [
        group
        for group in singles(found)
        if group.color and not any(may_look(other, group.color) for other in found if other is not group)
    ]
    if not options:
        return None
    group = rng.choice(options)
    plain = words.the(1, group.name)
    sentences = (f"{sentence_case(plain)} {group.be} {group.color}.", f"{its(group)} {plain}.")
    slots = {"color": group.color}
    return Ask("what color", slots, ("what", group.color, None), words.one(group.name), sentences, group)


def _what_beside(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    options = singles(found)
    if not options:
        return None
    other, word = rng.choice(options), rng.choice(RELATIONS)
    there = lying(scene, word, other.thing)
    if there is None or (not there and rng.random() < 0.7):
        return None
    rel, y = rng.choice(RELATION_WORDS[word]), naming(other, rng)
    slots = {"rel": rel, "y": y, "it": other.them}
    meaning = ("what", None, (word, other.key))
    where = f"{SAID_RELATION[word]} {other.the()}"
    if not there:
        sentences = (
            f"There is nothing {where}.",
            f"Nothing is {where}.",
            f"I don't see anything {where}.",
        )
        return Ask("what beside", slots, meaning, "nothing", sentences)
    neighbors = [group for group in found if any(thing in there for thing in group.things)]
    if sum(map(len, neighbors)) != len(there):
        return None  # a part of a group only
    said, be_ = shown(neighbors), "are" if len(neighbors[0]) > 1 else "is"
    sentences = (
        f"There {be_} {said} {where}.",
        f"{sentence_case(said)} {'are' if len(there) > 1 else neighbors[0].be} {where}.",
        f"I see {said} {where}.",
    )
    return Ask("what beside", slots, meaning, shown(neighbors, False), sentences, _only(neighbors))


def _what_else(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    options = [group for group in found if not group.distinct]
    if not options:
        return None
    group = rng.choice(options)
    others = [other for other in found if other is not group]
    slots = {"y": naming(group, rng)}
    sentences = (
        f"{sentence_case(there_are(others))}, too.",
        f"Besides {group.the()}, {there_are(others)}.",
        f"I also see {shown(others)}.",
    )
    return Ask("what else", slots, ("else", group.key), shown(others, False), sentences, _only(others))


def _what_place(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    options = [(where, thing) for thing in scene.things for where in _places(thing, scene)]
    rng.shuffle(options)
    for where, thing in options:
        if all(at_place(other, where, scene.size) is False for other in scene.things if other is not thing):
            group = next(group for group in found if thing in group.things)
            said = words.one(group.name, group.color)
            sentences = (
                f"There is {said} {where}.",
                f"{sentence_case(said)} {words.be(1, group.name)} {where}.",
                f"I see {said} {where}.",
            )
            slots = {"place": rng.choice(PLACE_WORDS[where])}
            about = group if len(group) == 1 else None
            return Ask("what place", slots, ("what", None, ("at", where)), words.one(group.name), sentences, about)
    return None


def ask_exists(scene: Scene, rng: Random) -> Ask | None:
    """As often yes as no; of classes, coloured things and kinds."""
    found = groups(scene)
    chance = rng.random()
    if chance < 0.15:
        return _kind_exists(scene, found, rng)
    if chance < 0.55:
        return _shown_exists(rng.choice(found), found, rng)
    if chance < 0.75:
        return _wrong_color_exists(rng.choice(found), found, rng)
    return _missing_exists(absent(scene, rng), rng)


def _exists_slots(name: str, color: str | None, rng: Random) -> dict[str, str]:
    said = words.called(name, rng)
    return {
        "a": words.one(said, color),
        "any": words.any_of(said, color),
        "is_any": "is" if name == "broccoli" else "are",
    }


def _shown_exists(group: Group, found: list[Group], rng: Random) -> Ask:
    color = group.color if rng.random() < 0.5 else None
    of_class = [other for other in found if other.name == group.name]
    said = [group] if color else of_class
    sentences = (
        f"Yes, {there_are(said, bool(color))}.",
        f"Yes, I see {shown(said, bool(color))}.",
        f"Yes, {there_are(said)} in the picture.",
    )
    meaning = ("exists", group.name, color)
    return Ask("exists", _exists_slots(group.name, color, rng), meaning, "yes", sentences, _only(said))


def _wrong_color_exists(group: Group, found: list[Group], rng: Random) -> Ask | None:
    color = absent_color(group, found, rng) if group.color else None
    if color is None:
        return None
    of_class = [other for other in found if other.name == group.name]
    sentences = (
        f"No, there is no {words.bare(words.one(group.name, color))}.",
        f"No, {there_are(of_class)}, but no {color} {'one' if not words.is_plural(1, group.name) else 'ones'}.",
        f"No, {group.the()} {group.be} {group.color}." if len(of_class) == 1 else f"No, I see {shown(of_class)}.",
    )
    return Ask("exists", _exists_slots(group.name, color, rng), ("exists", group.name, color), "no", sentences)


def _missing_exists(name: str, rng: Random) -> Ask:
    color = rng.choice(tuple(COLORS)) if rng.random() < 0.2 else None
    if color and is_held_out(("color", name, color)):
        color = None
    sentences = tuple(f"No, {sentence.replace('There', 'there')}" for sentence in denial(name, color))
    return Ask("exists", _exists_slots(name, color, rng), ("exists", name, color), "no", sentences)


def _kind_exists(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    kind = _kind_like(rng.choice(found).name, rng)
    several, names = words.KINDS[kind]
    if any(group.name in words.DOUBTFUL[kind] for group in found):
        return None
    of_kind = [group for group in found if group.name in names]
    slots = {"a": words.a(kind), "any": several, "is_any": "are" if several.endswith("s") else "is"}
    meaning = ("exists kind", kind)
    if of_kind:
        sentences = (f"Yes, {there_are(of_kind)}.", f"Yes, I see {shown(of_kind)}.")
        return Ask("exists", slots, meaning, "yes", sentences, _only(of_kind))
    sentences = (f"No, there {slots['is_any']} no {several} in the picture.", f"No, I see {shown(found)} only.")
    return Ask("exists", slots, meaning, "no", sentences)


def ask_color(scene: Scene, rng: Random) -> Ask | None:
    if scene.background.name and rng.random() < 0.15:
        return _background(scene)
    options = [group for group in groups(scene) if group.said_color and not group.distinct]
    if not options:
        return _background(scene) if scene.background.name else None
    group = rng.choice(options)
    return _color_of(group, words.the(len(group), words.called(group.name, rng)))


def _color_of(group: Group, x: str, form: str = "color") -> Ask:
    slots = {"x": x, "be": group.be, "it": group.it}
    sentences = (f"{sentence_case(group.the())} {group.be} {group.said_color}.", f"{its(group)} {group.said_color}.")
    return Ask(form, slots, ("color", group.key), group.said_color, sentences, group)


def _background(scene: Scene) -> Ask:
    name = scene.background.name
    return Ask("background", {}, ("background",), name, (f"The background is {name}.", f"It's {name}."))


def ask_count(scene: Scene, rng: Random) -> Ask:
    found = groups(scene)
    if rng.random() < 0.15:
        number = len(scene.things)
        be_, things = ("are", "things") if number > 1 else ("is", "thing")
        sentences = (
            f"There {be_} {NUMBERS[number]} {things} in the picture.",
            f"I count {NUMBERS[number]}: {shown(found)}." if len(found) == number else f"I count {NUMBERS[number]}.",
        )
        return Ask("count all", {}, ("count", None, None), NUMBERS[number], tuple(sentences))
    group = rng.choice(found)
    color = group.color if group.distinct or (group.color and rng.random() < 0.15) else None
    if rng.random() < 0.12:
        return _count_none(absent(scene, rng), rng)
    number = sum(thing.name == group.name and color in (None, thing.color) for thing in scene.things)
    said = words.some(number, group.name, color) if number > 1 else words.counted(1, group.name, color)
    sentences = (
        f"There {'are' if number > 1 else 'is'} {said}.",
        f"I see {said}.",
        f"There {'are' if number > 1 else 'is'} {said} in the picture.",
    )
    slots = {"many": words.many(words.called(group.name, rng), color)}
    about = group if number == len(group) else None
    return Ask("count", slots, ("count", group.name, color), NUMBERS[number], sentences, about)


def _count_none(name: str, rng: Random) -> Ask:
    slots = {"many": words.many(words.called(name, rng))}
    return Ask(
        "count", slots, ("count", name, None), NUMBERS[0], (*denial(name)[:1], f"I see no {words.any_of(name)}.")
    )


def ask_where(scene: Scene, rng: Random) -> Ask | None:
    """Where one thing is, to which side of another one, or whether it is there."""
    found = groups(scene)
    options = singles(found)
    if not options:
        return None
    return _first((_where, _where, _which_side, _is_where), scene, options, rng)


def _where(scene: Scene, options: list[Group], rng: Random) -> Ask | None:
    group = rng.choice(options)
    return _where_of(scene, group, naming(group, rng), rng)


def _where_of(scene: Scene, group: Group, x: str, rng: Random, form: str = "where") -> Ask | None:
    said = [f"{SAID_RELATION[word]} {b.the()}" for a, word, b in clear_relations(scene) if a.key == group.key]
    at = place(group.thing, scene.size)
    said = said or ([at] if at else [])
    if not said:
        return None
    answer = rng.choice(said)
    slots = {"x": x, "be": group.be, "it": group.it}
    sentences = (f"{sentence_case(group.the())} {group.be} {answer}.", f"{its(group)} {answer}.")
    return Ask(form, slots, ("where", group.key), answer, sentences, group)


def _which_side(scene: Scene, options: list[Group], rng: Random) -> Ask | None:
    related = [found for found in clear_relations(scene) if found[0].be == "is"]
    if not related:
        return None
    a, word, b = rng.choice(related)
    offered = list(axis_of(word))
    rng.shuffle(offered)
    left, right = (rng.choice(RELATION_WORDS[one]) for one in offered)
    slots = {"x": naming(a, rng), "word": left, "other": right, "y": naming(b, rng), "it": b.them}
    where = f"{SAID_RELATION[word]} {b.the()}"
    sentences = (f"{sentence_case(a.the())} is {where}.", f"It's {where}.")
    return Ask("which side", slots, ("where to", a.key, b.key), word.removesuffix(" of"), sentences, a)


def _is_where(scene: Scene, options: list[Group], rng: Random) -> Ask | None:
    group = rng.choice(options)
    related = [(word, other) for a, word, other in clear_relations(scene) if a.key == group.key]
    if group.be != "is":
        return None
    if related:
        true, other = rng.choice(related)
        word = true if rng.random() < 0.5 else rng.choice([w for w in RELATIONS if w != true])
        where, meaning = f"{rng.choice(RELATION_WORDS[word])} {naming(other, rng)}", ("is", group.key, word, other.key)
        yes, said = word == true, f"{SAID_RELATION[true]} {other.the()}"
    else:
        true = place(group.thing, scene.size)
        if not true:
            return None
        asked = (
            true
            if rng.random() < 0.5
            else rng.choice([w for w in PLACES if at_place(group.thing, w, scene.size) is False])
        )
        where, meaning = rng.choice(PLACE_WORDS[asked]), ("is at", group.key, asked)
        yes, said = asked == true, true
    sentences = (
        f"{'Yes' if yes else 'No'}, {group.the()} is {said}.",
        f"{'Yes' if yes else 'No'}, it's {said}.",
    )
    slots = {"x": naming(group, rng), "where": where}
    return Ask("is where", slots, meaning, "yes" if yes else "no", sentences, group)


def ask_describe(scene: Scene, rng: Random) -> Ask:
    said = description(scene, rng)
    if rng.random() < 0.3:
        details = details_of(scene)
        return Ask("describe all", {}, ("describe",), said, (details,))
    sentences = (f"The picture shows {said}.", f"{sentence_case(said)}.")
    return Ask("describe", {}, ("describe",), said, sentences)


def description(scene: Scene, rng: Random) -> str:
    """ "a red dog to the left of a cup": all things, and of two how they lie."""
    found = groups(scene)
    if len(found) == 2:
        related = list(clear_relations(scene))
        if related:
            a, word, b = rng.choice(related)
            return f"{a.some()} {SAID_RELATION[word]} {b.some()}"
    return shown(found)


def details_of(scene: Scene) -> str:
    """All things, the place of each where it is clear, and the background."""
    found = groups(scene)
    sentences = [f"The picture shows {shown(found)}."]
    for group in found:
        at = place(group.thing, scene.size) if len(group) == 1 else None
        if at:
            sentences.append(f"{sentence_case(group.the())} {group.be} {at}.")
    if scene.background.name:
        sentences.append(f"The background is {scene.background.name}.")
    return " ".join(sentences)


def ask_two_step(scene: Scene, rng: Random) -> Ask | None:
    """First find what is meant, or look at two things; then answer."""
    found = groups(scene)
    return _first((_two_color, _two_count, _two_is, _same_color, _bigger, _more), scene, found, rng)


def _neighbor(scene: Scene, found: list[Group], rng: Random) -> tuple[Group, str, Group] | None:
    """(thing, word, other) where the thing is all that lies `word` the other."""
    options = [(a, word, b) for a, word, b in clear_relations(scene) if lying(scene, word, b.thing) == [a.thing]]
    return rng.choice(options) if options else None


def _two_color(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    related = _neighbor(scene, found, rng)
    if not related or not related[0].said_color:
        return None
    a, word, b = related
    slots = {"rel": rng.choice(RELATION_WORDS[word]), "y": naming(b, rng)}
    where = f"{SAID_RELATION[word]} {b.the()}"
    plain = words.the(1, a.name)
    sentences = (
        f"{sentence_case(plain)} {where} {a.be} {a.said_color}.",
        f"{sentence_case(plain)} {a.be} {a.said_color}.",
    )
    return Ask("two color", slots, ("color of", word, b.key), a.said_color, sentences, a)


def _two_count(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    options = singles(found)
    if not options or len(scene.things) < 2:
        return None
    other, word = rng.choice(options), rng.choice(RELATIONS)
    there = lying(scene, word, other.thing)
    if there is None:
        return None
    number = len(there)
    where = f"{SAID_RELATION[word]} {other.the()}"
    be_, things = ("is", "thing") if number == 1 else ("are", "things")
    sentences = (f"There {be_} {NUMBERS[number]} {things} {where}." if number else f"There is nothing {where}.",)
    slots = {"rel": rng.choice(RELATION_WORDS[word]), "y": naming(other, rng)}
    return Ask("two count", slots, ("count at", word, other.key), NUMBERS[number], sentences)


def _two_is(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    related = _neighbor(scene, found, rng)
    if not related or related[0].be != "is":
        return None
    a, word, b = related
    slots = {"rel": rng.choice(RELATION_WORDS[word]), "y": naming(b, rng)}
    where = f"{SAID_RELATION[word]} {b.the()}"
    kind = _kind_like(a.name, rng)
    if a.color and rng.random() < 0.6:
        color = a.color if rng.random() < 0.5 else absent_color(a, found, rng)
        if not color:
            return None
        slots["what"], meaning, yes = color, ("is color at", word, b.key, color), color == a.color
        reason = f"{words.the(1, a.name)} {where} is {a.color}"
    elif a.name in words.DOUBTFUL[kind]:
        return None
    else:
        slots["what"], meaning = words.a(kind), ("is kind at", word, b.key, kind)
        yes, reason = a.name in words.KINDS[kind][1], f"it's {words.one(a.name)}"
    answer = "yes" if yes else "no"
    return Ask("two is", slots, meaning, answer, (f"{answer.capitalize()}, {reason}.",), a)


def _same_color(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    options = [group for group in found if group.color and not group.distinct]
    if len(options) < 2:
        return None
    a, b = rng.sample(options, 2)
    slots = {"x": a.the(words.called(a.name, rng)), "y": b.the(words.called(b.name, rng))}
    meaning = ("same color", a.key, b.key)
    if a.color == b.color:
        return Ask("same color", slots, meaning, "yes", (f"Yes, both are {a.color}.",))
    sentences = (f"No, {a.the()} {a.be} {a.color} and {b.the()} {b.be} {b.color}.",)
    return Ask("same color", slots, meaning, "no", sentences)


def _bigger(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    """Of two things, one of which is bigger in its longest side and its box, by far."""
    options = singles(found)
    if len(options) < 2:
        return None
    a, b = rng.sample(options, 2)
    big, small = (a, b) if _area(a) > _area(b) else (b, a)
    if "are" in (a.be, b.be) or _area(big) < 1.6 * _area(small) or _longest(big) < _longest(small):
        return None
    slots = {"x": naming(a, rng), "y": naming(b, rng)}
    sentences = (
        f"{sentence_case(big.the())} is bigger.",
        f"{sentence_case(big.the())} is bigger than {small.the()}.",
    )
    return Ask("bigger", slots, ("bigger", a.key, b.key), big.the(), sentences, big)


def _area(group: Group) -> int:
    x1, y1, x2, y2 = group.thing.box
    return (x2 - x1) * (y2 - y1)


def _longest(group: Group) -> int:
    x1, y1, x2, y2 = group.thing.box
    return max(x2 - x1, y2 - y1)


def _more(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    names = list({group.name: None for group in found})
    names = rng.sample(names, 2) if len(names) > 1 else [names[0], absent(scene, rng)]
    rng.shuffle(names)
    a, b = names
    numbers = [sum(thing.name == name for thing in scene.things) for name in (a, b)]
    slots = {"many": words.many(words.called(a, rng)), "others": words.many(words.called(b, rng))}
    answer = "yes" if numbers[0] > numbers[1] else "no"
    said = words.listed([words.counted(n, name) for n, name in zip(numbers, (a, b), strict=True)])
    be_ = "are" if numbers[0] != 1 else "is"
    return Ask("more", slots, ("more", a, b), answer, (f"{answer.capitalize()}, there {be_} {said}.",))


def ask_reason(scene: Scene, rng: Random) -> Ask | None:
    """Yes or no, with what shows it."""
    found = groups(scene)
    return _first((_is_color, _number, _alone, _why_where, _why_exists), scene, found, rng)


def _is_color(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    options = [group for group in found if group.color and not group.distinct]
    if not options:
        return None
    group = rng.choice(options)
    color = group.color if rng.random() < 0.4 else absent_color(group, found, rng)
    if color is None:
        return None
    slots = {"x": group.the(words.called(group.name, rng)), "be": group.be, "color": color}
    yes = color == group.color
    sentences = (
        f"{'Yes' if yes else 'No'}, because {group.the()} I see {group.be} {group.color}.",
        f"{'Yes' if yes else 'No'}, {group.the()} {group.be} {group.color}{'' if yes else ', not ' + color}.",
    )
    return Ask("is color", slots, ("is color", group.key, color), "yes" if yes else "no", sentences, group)


def _number(scene: Scene, found: list[Group], rng: Random) -> Ask:
    name = rng.choice(found).name
    number = sum(thing.name == name for thing in scene.things)
    bound = rng.choice(("more than", "at least", "exactly"))
    asked = rng.choice((1, 2, 3)) if bound == "more than" else rng.choice((2, 3, 4))
    yes = {"more than": number > asked, "at least": number >= asked, "exactly": number == asked}[bound]
    called = words.called(name, rng)
    slots = {
        "bound": bound,
        "number": NUMBERS[asked],
        "many": words.many(called) if asked > 1 else words.bare(words.one(called)),
        "is_n": "are" if asked > 1 else "is",
        "was_n": "were" if asked > 1 else "was",
    }
    said = words.counted(number, name)
    be_ = "are" if number > 1 else "is"
    answer = "yes" if yes else "no"
    sentences = (
        f"{answer.capitalize()}, because there {be_} {said}.",
        f"{answer.capitalize()}, I count {said}.",
    )
    return Ask("number", slots, ("number", name, bound, asked), answer, sentences)


def _alone(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    group = rng.choice(found)
    if group.distinct:
        return None
    others = [other for other in found if other is not group]
    form = rng.choice(("alone", "company"))
    yes = bool(others) == (form == "company")
    answer = "Yes" if yes else "No"
    slots = {"x": naming(group, rng), "be": group.be}
    meaning = (form, group.key)
    if others:
        sentences = (
            f"{answer}, because {there_are(others)}, too.",
            f"{answer}, I also see {shown(others)}.",
        )
    else:
        sentences = (
            f"{answer}, because I see nothing besides {group.the()}.",
            f"{answer}, because {group.the()} {group.be} all the picture shows.",
        )
    return Ask(form, slots, meaning, answer.lower(), sentences, group)


def _why_where(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    options = singles(found)
    asked = _is_where(scene, options, rng) if options else None
    if not asked:
        return None
    first, _ = asked.sentences
    answer, rest = first.split(", ", 1)
    return asked._replace(sentences=(first, f"{answer}, because {rest}"))


def _why_exists(scene: Scene, found: list[Group], rng: Random) -> Ask | None:
    """Whether there is one, and what there is instead."""
    if rng.random() < 0.5:
        asked = _shown_exists(rng.choice(found), found, rng)
        return asked._replace(sentences=asked.sentences[:2])
    name = absent(scene, rng)
    asked = _missing_exists(name, rng)._replace(slots=_exists_slots(name, None, rng), meaning=("exists", name, None))
    only = shown(found)
    return asked._replace(sentences=(f"No, because I see {only} and nothing else.", f"No, all I see is {only}."))


def ask_absent(scene: Scene, rng: Random) -> Ask | None:
    """About what is not there, as if it were."""
    return _first((_absent_thing, _absent_thing, _absent_other, _nothing_beside), scene, rng)


def _absent_thing(scene: Scene, rng: Random) -> Ask:
    name = absent(scene, rng)
    x = words.the(1, words.called(name, rng))
    found = groups(scene)
    form, meaning = rng.choice((("color", "color"), ("where", "where")))
    slots = {"x": x, "be": words.be(1, name), "it": words.it(1, name)}
    sentences = (*denial(name)[:2], f"I don't see {words.one(name)}, only {shown(found)}.")
    nothing = f"no {words.any_of(name)} here" if words.is_plural(1, name) else f"no {words.bare(words.one(name))} here"
    return Ask(form, slots, (meaning, (name, None)), nothing, sentences)


def _absent_other(scene: Scene, rng: Random) -> Ask:
    """What lies beside something that is not there."""
    name, word = absent(scene, rng), rng.choice(RELATIONS)
    slots = {
        "rel": rng.choice(RELATION_WORDS[word]),
        "y": words.the(1, words.called(name, rng)),
        "it": words.them(1, name),
    }
    found = groups(scene)
    sentences = (*denial(name)[:2], f"I don't see {words.one(name)}, only {shown(found)}.")
    nothing = f"no {words.bare(words.one(name))} here"
    return Ask("what beside", slots, ("what", None, (word, (name, None))), nothing, sentences)


def _nothing_beside(scene: Scene, rng: Random) -> Ask | None:
    """What lies beside a thing where nothing does."""
    for group in singles(groups(scene)):
        empty = [word for word in RELATIONS if lying(scene, word, group.thing) == []]
        if empty:
            word = rng.choice(empty)
            where = f"{SAID_RELATION[word]} {group.the()}"
            slots = {"rel": rng.choice(RELATION_WORDS[word]), "y": naming(group, rng), "it": group.them}
            sentences = (f"There is nothing {where}.", f"Nothing is {where}.", f"I see nothing {where}.")
            return Ask("what beside", slots, ("what", None, (word, group.key)), "nothing", sentences)
    return None


def _places(thing: Thing, scene: Scene) -> list[str]:
    """Where it is: its one place and, for a corner, the sides."""
    at = place(thing, scene.size)
    return [at, *CORNERS.get(at, ())] if at else []


def _kind_like(name: str, rng: Random) -> str:
    """A kind of things: half of the time one that the class is of."""
    own = [kind for kind, (_, names) in words.KINDS.items() if name in names]
    return own[0] if own and rng.random() < 0.5 else rng.choice(tuple(words.KINDS))


def _first(asks: Sequence[Callable[..., Ask | None]], *about: Any) -> Ask | None:
    """What one of them finds to ask, tried in the order that the last of `about`, a Random, draws."""
    for ask_ in about[-1].sample(asks, len(asks)):
        asked = ask_(*about)
        if asked:
            return asked
    return None


def _only(found: list[Group]) -> Group | None:
    return found[0] if len(found) == 1 else None


KINDS: dict[str, Callable[[Scene, Random], Ask | None]] = {
    "what": ask_what,
    "exists": ask_exists,
    "color": ask_color,
    "count": ask_count,
    "where": ask_where,
    "describe": ask_describe,
    "two step": ask_two_step,
    "reason": ask_reason,
    "absent": ask_absent,
}
