"""Changes to a scene: what a person asks to be changed, and the scene after it, in which all else is where it was.

Things never overlap and their boxes are tight. So outside the boxes of what is changed, before and after, the two
pictures are equal pixel for pixel; a new background changes the rest and leaves the things as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import numpy as np

from .. import artwork as art
from ..world import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    GAP,
    MANY_SIZES,
    MARGIN,
    NUMBERS,
    RELATIONS,
    Background,
    Scene,
    Thing,
    World,
    center,
    clear_backgrounds,
    combinations,
    gap,
    is_held_out,
    relation,
)
from . import words
from .facts import PLACES, SIDES, Group, at_place, groups, lies, place, singles
from .grammar import Forms, forms_by_split, sentence_case, typed
from .question_forms import PLACE_WORDS, RELATION_WORDS

EDITED = "edited"  # the skill of a scene after a change: it may show any four things
MOST_THINGS = 4
CHANGES, PLACES_TRIED = 12, 20  # tried before it is found that a scene leaves no room for one

FORMS: Mapping[str, Mapping[str, Forms]] = {
    "recolor": forms_by_split(
        """
        (make|paint|color|recolor) {x} {color}.
        (please|) (make|paint|turn|color) {x} {color}.
        <can_you> (make|paint|color|turn) {x} {color}?
        change the color of {x} to {color}.
        change {x} to {color}.
        change {x} (from {old}|) to {color}.
        turn {x} {color}.
        {x} should be {color}.
        {x} (should|must) be {color}, not {old}.
        (i want|i would like) {x} to be {color}.
        (i want|i would like) {x} in {color}.
        let {x} be {color}.
        give {x} ({a_color} color|the color {color}).
        could {x} be {color} (instead|)?
        (now|) {x} in {color}(, please|).
        edit <picture> so that {x} {be} {color}.
        """,
        """
        i think {color} would suit {x} better.
        what if {x} were {color}?
        {color} is the right shade for {x}.
        dip {x} into a bucket of {color}.
        swap the shade of {x} for {color}.
        """,
    ),
    "add": forms_by_split(
        """
        add {a} {where}.
        (please|) (put|place|insert|add) {a} {where}.
        <can_you> (add|put|place|insert) {a} {where}?
        (i want|i would like|there should be) {a} {where}, (too|as well).
        there should be {a} {where}.
        add {a} to <picture>, {where}.
        also (draw|put) {a} {where}.
        (i want|i would like) you to add {a} {where}.
        let there be {a} {where}.
        (edit|change) <picture>: add {a} {where}.
        now (add|insert|put) {a} {where}.
        can <picture> have {a} {where}?
        {where}, (add|put|place|insert) {a}.
        """,
        """
        something is missing {where}: {a}.
        we need {a} {where}.
        what if there were {a} {where}?
        squeeze in {a} {where}.
        bring in {a}, to stand {where}.
        """,
    ),
    "add anywhere": forms_by_split(
        """
        add {a}.
        (please|) (insert|add) {a}.
        <can_you> (add|insert) {a} (somewhere|)?
        <can_you> (put|place) {a} somewhere?
        (i want|i would like|there should be) {a}, (too|as well).
        there should be {a}.
        add {a} to <picture>.
        (also|) put {a} in <picture>.
        also draw {a}.
        (i want|i would like) you to add {a}.
        let there be {a}.
        (edit|change) <picture>: add {a}.
        now (add|insert) {a}.
        can <picture> have {a}?
        """,
        """
        something is missing: {a}.
        we need {a}.
        what if there were {a}?
        squeeze in {a}.
        bring in {a}.
        """,
    ),
    "remove": forms_by_split(
        """
        (remove|delete|erase) {x}.
        (please|) (remove|delete|erase|take away) {x} (from <picture>|).
        <can_you> (remove|delete|erase|take away) {x} (from <picture>|)?
        take {x} away.
        take {x} out of <picture>.
        get rid of {x}.
        (i want|i would like) {x} (removed|gone|deleted).
        (i do not want|i do not need) {x} (in <picture>|any more).
        {x} should (go|be gone|disappear).
        edit <picture>: (remove|delete) {x}.
        the same picture without {x}(, please|).
        (now|) without {x}(, please|).
        (cut|leave) {x} out.
        clear {x} away.
        """,
        """
        i would rather not see {x}.
        make {x} vanish into thin air.
        what if {x} had never been there?
        i cannot stand {x}.
        keep everything except {x}.
        """,
    ),
    "replace": forms_by_split(
        """
        replace {x} (with|by) {a}.
        (swap|exchange) {x} for {a}.
        <can_you> replace {x} (with|by) {a}?
        <can_you> (swap|exchange) {x} for {a}?
        <can_you> (turn|change) {x} into {a}?
        (please|) (turn|change) {x} into {a}.
        put {a} in place of {x}.
        put {a} where {x} {be}.
        (i want|i would like) {a} instead of {x}.
        instead of {x}, (draw|put|show) {a}.
        there should be {a} instead of {x}.
        {x} should be {a} (instead|).
        make {x} {a}.
        make it {a} instead of {x}.
        edit <picture>: {a} instead of {x}.
        (take away|remove) {x} and put {a} there.
        """,
        """
        i would rather see {a} than {x}.
        let {a} take over from {x}.
        what if {x} had been {a} all along?
        the spot of {x} now belongs to {a}.
        """,
    ),
    "move": forms_by_split(
        """
        move {x} {to}.
        (please|) (move|shift|bring) {x} {to}.
        <can_you> (move|shift|bring) {x} {to}?
        <can_you> (put|place) {x} {at}?
        (i want|i would like) {x} {at}.
        {x} should (be|go|stand) {at}.
        (now|please|) (put|place) {x} {at}.
        change the position of {x}: {at}.
        (i want|i would like) {x} (moved|to be moved) {to}.
        let {x} be {at}.
        edit <picture> so that {x} {be} {at}.
        take {x} and put {it} {at}.
        the right place for {x} is {at}.
        """,
        """
        {x} would look better {at}.
        what if {x} were {at}?
        find a new spot for {x}, {at}.
        carry {x} over: i need {it} {at}.
        """,
    ),
    "swap": forms_by_split(
        """
        swap {x} and {y}.
        (please|) (swap|switch|exchange) {x} and {y}.
        <can_you> (swap|switch) {x} and {y}?
        <can_you> swap the places of {x} and {y}?
        swap the (places|positions) of {x} and {y}.
        put {x} where {y} is and {y} where {x} is.
        {x} and {y} should (change|swap|trade) places.
        let {x} and {y} (change|swap|trade) places.
        switch the positions of {x} and {y}.
        (i want|i would like) {x} and {y} (swapped|to change places).
        """,
        """
        what if {x} stood at the spot of {y}, and the other way round?
        have {x} and {y} take each other's spot.
        """,
    ),
    "more": forms_by_split(
        """
        add {more}.
        (please|) (add|draw|put) {more} (in <picture>|).
        <can_you> (add|draw) {more}?
        (make it|there should be) {total}.
        make it {total} (in all|instead of {before}).
        (i want|i would like) {total} (in all|instead of {before}).
        (i want|i would like) {more}.
        change the number of {many} to {number}.
        {total} instead of {before}, please.
        there should be {total} instead of {before}.
        edit <picture> so that there are {total}.
        now make it {total}.
        """,
        """
        {before} will not do, we need {total}.
        raise the number: {total} in the end.
        what if there were {total}?
        """,
    ),
    "fewer": forms_by_split(
        """
        (leave|keep) only {number} of the {many}.
        (make it|there should be) only {total}.
        (please|) keep (just|only) {number} of the {many}.
        keep {number} of the {many} and remove the others.
        (remove|delete|take away) {fewer} of the {many}.
        <can_you> (remove|delete|take away) {fewer} of the {many}?
        change the number of {many} to {number}.
        (i want|i would like) {total} instead of {before}.
        there should be {total} instead of {before}.
        {total} {are} enough.
        {total} instead of {before}, please.
        edit <picture> so that only {number} of the {many} {are} left.
        now make it only {total}.
        """,
        """
        {before} is a crowd, {total} will do.
        bring the number down: {total} in the end.
        what if only {number} of the {many} stayed?
        """,
    ),
    "background": forms_by_split(
        """
        make the background {ground}.
        (please|) (make|paint|color|turn) the background {ground}.
        <can_you> (make|paint|color|turn) the background {ground}?
        change the background to {ground}.
        change the color of the background to {ground}.
        the background should be {ground}.
        (i want|i would like) {a_ground} background.
        (use|give it|give <picture>|put in|draw) {a_ground} background.
        (i want|i would like) the background to be {ground}.
        (now|) with {a_ground} background(, please|).
        replace the background (with|by) {a_ground} one.
        edit <picture>: {a_ground} background.
        put everything on {a_ground} background.
        """,
        """
        behind it all, i would prefer {ground}.
        what if the backdrop were {ground}?
        {ground} is the shade that the backdrop needs.
        """,
    ),
}


class Target(NamedTuple):
    """One of PLACES, or one of RELATIONS to another thing."""

    word: str
    other: Thing | None

    def holds(self, thing: Thing, size: int) -> bool:
        if self.other is None:
            return place(thing, size) == self.word
        return relation(thing, self.other) == self.word


@dataclass(frozen=True)
class Edit:
    """`after` is the scene that `slots`, put into a form of `kind`, ask for: None where `answer` says why nothing
    changes. `target` is where a thing is asked to be."""

    kind: str
    before: Scene
    slots: Mapping[str, str]
    after: Scene | None
    answer: str = ""
    target: Target | None = None

    def words(self, rng: Random, forms: str = "train") -> str:
        """The instruction as someone types it."""
        return typed(FORMS[self.kind][forms].sample(rng).format(**self.slots), rng)


class Change(NamedTuple):
    kind: str
    slots: dict[str, str]
    things: tuple[Thing, ...]
    background: Background | None = None
    target: Target | None = None


def edit(world: World, scene: Scene, rng: Random, split: str = "train", kind: str | None = None) -> Edit | None:
    """A change of this kind (None: of any). In "train" the new scene shows no held-out combination; in "held_out" a
    change that makes combinations makes a held-out one. None when this scene cannot be changed so."""
    kind = kind or rng.choice(tuple(KINDS))
    for _ in range(CHANGES):
        change = KINDS[kind](world, scene, rng)
        if change is None:
            continue
        background = change.background or scene.background
        after = replace(scene, skill=EDITED, things=change.things, background=background)
        if _in_split(scene, after, split) and (change.background or _stands_out(world, after)):
            return Edit(change.kind, scene, change.slots, after, target=change.target)
    return None


def chain(world: World, scene: Scene, rng: Random, split: str = "train", length: int = 3) -> list[Edit]:
    """Changes, each of what the one before left; at least one, and `length` where the scene allows."""
    done: list[Edit] = []
    while len(done) < length:
        change = next(filter(None, (edit(world, scene, rng, split) for _ in range(CHANGES))), None)
        if change is None:
            break
        done.append(change)
        scene = change.after
    return done


def no_edit(scene: Scene, rng: Random) -> Edit:
    """What cannot be done, or is so already: answered in words."""
    while True:
        found = rng.choice(REFUSALS)(scene, rng)
        if found:
            return found


def _in_split(before: Scene, after: Scene, split: str) -> bool:
    if split == "train":
        return not any(map(is_held_out, combinations(after.things)))
    made = set(combinations(after.things)) - set(combinations(before.things))
    return not made or any(map(is_held_out, made))


# ---- room and contrast


def _ground_names(background: Background) -> set[str]:
    """Names of the two colours of a background, which is tinted a little."""

    def nearest(color: tuple[int, int, int]) -> str:
        return min(
            BACKGROUNDS, key=lambda name: sum((p - q) ** 2 for p, q in zip(BACKGROUNDS[name], color, strict=True))
        )

    return {background.name} if background.name else set(map(nearest, background.colors))


def _stands_out(world: World, scene: Scene) -> bool:
    names = _ground_names(scene.background)
    return all(names <= clear_backgrounds(world.artwork, thing.name, thing.color) for thing in scene.things)


def _free(world: World, box: tuple[int, int, int, int], others: list[Thing]) -> bool:
    """Inside the picture, and apart from the others."""
    margin, between = MARGIN * world.size // 128, GAP * world.size // 128
    x1, y1, x2, y2 = box
    if min(x1, y1) < margin or max(x2, y2) > world.size - margin:
        return False
    thing = Thing("", None, box)
    return all(max(gap(thing, other, 0), gap(thing, other, 1)) >= between for other in others)


def _box_at(middle: tuple[float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    (x, y), (w, h) = middle, size
    left, top = round(x - w / 2), round(y - h / 2)
    return left, top, left + w, top + h


def _place(
    world: World, thing: Thing, size: tuple[int, int], others: list[Thing], target: Target | None, rng: Random
) -> Thing | None:
    """The thing, of this size, at a free place on target."""
    margin = MARGIN * world.size // 128
    w, h = size
    across, down = world.size - 2 * margin - w + 1, world.size - 2 * margin - h + 1
    for _ in range(PLACES_TRIED):
        x, y = margin + int(rng.random() * across), margin + int(rng.random() * down)
        placed = Thing(thing.name, thing.color, (x, y, x + w, y + h))
        if (target is None or target.holds(placed, world.size)) and _free(world, placed.box, others):
            return placed
    return None


def _size_of(thing: Thing) -> tuple[int, int]:
    x1, y1, x2, y2 = thing.box
    return x2 - x1, y2 - y1


# ---- what can be meant


def _named(group: Group, rng: Random) -> str:
    colored = group.color is not None and rng.random() < 0.2
    return group.the(words.called(group.name, rng), colored)


def _meant(scene: Scene, rng: Random, alone: bool = False) -> Group | None:
    found = [group for group in groups(scene) if group.clear]
    found = singles(found) if alone else found
    return rng.choice(found) if found else None


def _without(scene: Scene, group: Group) -> list[Thing]:
    return [thing for thing in scene.things if thing not in group.things]


def _target(scene: Scene, thing: Thing | None, rng: Random) -> tuple[dict[str, str], Target] | None:
    """Somewhere to put a thing: how it is said, with "to" and with "at", and where it is."""
    others = [group for group in singles(groups(scene)) if group.thing is not thing]
    if others and rng.random() < 0.6:
        other, word = rng.choice(others), rng.choice(RELATIONS)
        if thing and lies(thing, other.thing, word) is not False:
            return None
        said = f"{rng.choice(RELATION_WORDS[word])} {_named(other, rng)}"
        return {"to": said, "at": said}, Target(word, other.thing)
    where = rng.choice(PLACES)
    if thing and at_place(thing, where, scene.size) is not False:
        return None
    return _said_place(where, rng), Target(where, None)


def _said_place(where: str, rng: Random) -> dict[str, str]:
    """ "at": "at the top", "to": "to the top"."""
    at = rng.choice(PLACE_WORDS[where])
    return {"to": f"to {at.split(' ', 1)[1]}", "at": at}


def _colors(color: str, old: str | None, it: str) -> dict[str, str]:
    old = old or f"{'their' if it == 'they' else 'its'} old color"
    return {"color": color, "a_color": words.a(color), "old": old}


# ---- the kinds


def recolor(world: World, scene: Scene, rng: Random) -> Change | None:
    group = _meant(scene, rng)
    if group is None:
        return None
    color = rng.choice([color for color in COLORS if not words.may_look(group.name, group.color, color)] or [None])
    if color is None:
        return None
    slots = {"x": _named(group, rng), "be": group.be, **_colors(color, group.said_color, group.it)}
    things = tuple(replace(thing, color=color) if thing in group.things else thing for thing in scene.things)
    return Change("recolor", slots, things)


def add(world: World, scene: Scene, rng: Random) -> Change | None:
    """One thing of a class that is not there yet, beside another, somewhere in the picture, or anywhere."""
    if len(scene.things) >= MOST_THINGS:
        return None
    present = {thing.name for thing in scene.things}
    name = rng.choice([name for name in CLASSES if name not in present])
    color = rng.choice(tuple(COLORS)) if rng.random() < 0.5 else None
    target = _target(scene, None, rng) if rng.random() < 0.8 else None
    said, where = target or ({}, None)
    size = _glyph_size(world, name, rng.choice(MANY_SIZES))
    placed = _place(world, Thing(name, color, (0, 0, 0, 0)), size, list(scene.things), where, rng)
    if placed is None:
        return None
    called = words.called(name, rng)
    slots = {"a": words.one(called, color), **({"where": said["at"]} if target else {})}
    return Change("add" if target else "add anywhere", slots, (*scene.things, placed), target=where)


def remove(world: World, scene: Scene, rng: Random) -> Change | None:
    """One group, if something stays."""
    group = _meant(scene, rng)
    left = _without(scene, group) if group else []
    if not left:
        return None
    return Change("remove", {"x": _named(group, rng), "be": group.be}, tuple(left))


def replaced(world: World, scene: Scene, rng: Random) -> Change | None:
    """One thing by one of another class, as large and at the same place."""
    group = _meant(scene, rng, alone=True)
    if group is None:
        return None
    present = {thing.name for thing in scene.things}
    name = rng.choice([name for name in CLASSES if name not in present])
    color = rng.choice(tuple(COLORS)) if rng.random() < 0.4 else None
    size = art.glyph_size(world.artwork, name, max(_size_of(group.thing)))
    thing = Thing(name, color, _box_at(center(group.thing), size))
    if not _free(world, thing.box, _without(scene, group)):
        return None
    slots = {"x": _named(group, rng), "be": group.be, "a": words.one(words.called(name, rng), color)}
    return Change("replace", slots, tuple(thing if old is group.thing else old for old in scene.things))


def move(world: World, scene: Scene, rng: Random) -> Change | None:
    group = _meant(scene, rng, alone=True)
    target = group and _target(scene, group.thing, rng)
    if not target:
        return None
    said, where = target
    placed = _place(world, group.thing, _size_of(group.thing), _without(scene, group), where, rng)
    if placed is None:
        return None
    slots = {"x": _named(group, rng), "be": group.be, "it": group.them, **said}
    return Change("move", slots, tuple(placed if old is group.thing else old for old in scene.things), target=where)


def swap(world: World, scene: Scene, rng: Random) -> Change | None:
    """Two things, each of which goes where the other was."""
    found = singles(groups(scene))
    if len(found) < 2:
        return None
    a, b = rng.sample(found, 2)
    moved = {
        a.thing: replace(a.thing, box=_box_at(center(b.thing), _size_of(a.thing))),
        b.thing: replace(b.thing, box=_box_at(center(a.thing), _size_of(b.thing))),
    }
    things = [moved.get(thing, thing) for thing in scene.things]
    if not all(_free(world, t.box, [other for other in things if other is not t]) for t in moved.values()):
        return None
    slots = {"x": _named(a, rng), "y": _named(b, rng)}
    return Change("swap", slots, tuple(things))


def number(world: World, scene: Scene, rng: Random) -> Change | None:
    """More or fewer of a class that has one colour; those that stay do not move."""
    group = _meant(scene, rng)
    if group is None or group.distinct:
        return None
    before, room = len(group), MOST_THINGS - len(scene.things)
    totals = [total for total in range(1, before + room + 1) if total != before]
    if not totals:
        return None
    total = rng.choice(totals)
    called = words.called(group.name, rng)
    slots = {
        "many": words.many(called),
        "number": NUMBERS[total],
        "total": words.counted(total, called),
        "before": NUMBERS[before],
        "are": "are" if total > 1 else "is",
    }
    if total < before:
        slots["fewer"] = NUMBERS[before - total]
        kept = group.things[:total]
        return Change("fewer", slots, tuple(t for t in scene.things if t in kept or t not in group.things))
    added = total - before
    slots["more"] = (
        f"another {words.bare(words.one(called))}" if added == 1 else f"{NUMBERS[added]} more {words.many(called)}"
    )
    things = list(scene.things)
    for _ in range(added):
        placed = _place(world, group.thing, _size_of(group.thing), things, None, rng)
        if placed is None:
            return None
        things.append(placed)
    return Change("more", slots, tuple(things))


def background(world: World, scene: Scene, rng: Random) -> Change | None:
    """Another colour of the background, on which every thing stands out."""
    clear = [clear_backgrounds(world.artwork, thing.name, thing.color) for thing in scene.things]
    names = [
        name
        for name in BACKGROUNDS
        if all(name in ground for ground in clear) and name not in _ground_names(scene.background)
    ]
    if not names:
        return None
    name = rng.choice(names)
    kept = scene.background
    if kept.name is None:
        kept = replace(kept, kind="plain", colors=(kept.colors[0],) * 2)
    shift = np.subtract(BACKGROUNDS[name], kept.colors[0])
    colors = tuple(tuple(int(c) for c in np.clip(np.add(color, shift), 0, 255)) for color in kept.colors)
    slots = {"ground": name, "a_ground": words.a(name)}
    return Change("background", slots, scene.things, replace(kept, colors=colors, name=name))


def _glyph_size(world: World, name: str, longest: int) -> tuple[int, int]:
    return art.glyph_size(world.artwork, name, longest * world.size // 128)


KINDS: dict[str, Callable[[World, Scene, Random], Change | None]] = {
    "recolor": recolor,
    "add": add,
    "remove": remove,
    "replace": replaced,
    "move": move,
    "swap": swap,
    "number": number,
    "background": background,
}


# ---- what is not done


def _absent_thing(scene: Scene, rng: Random) -> Edit:
    """Something is to happen to a thing that is not there."""
    present = {thing.name for thing in scene.things}
    name = rng.choice([name for name in CLASSES if name not in present])
    other = rng.choice([one for one in CLASSES if one != name])
    where = rng.choice(list(SIDES))
    slots = {
        "x": words.the(1, words.called(name, rng)),
        "be": words.be(1, name),
        "it": words.them(1, name),
        **_colors(rng.choice(tuple(COLORS)), None, words.it(1, name)),
        "a": words.one(other),
        **_said_place(where, rng),
    }
    kind = rng.choice(("recolor", "remove", "replace", "move"))
    shown = words.listed([group.some() for group in groups(scene)])
    answer = rng.choice(
        (f"There is no {words.bare(words.one(name))} in the picture.", f"I don't see {words.one(name)}, only {shown}.")
    )
    return Edit(kind, scene, slots, None, answer)


def _same_color(scene: Scene, rng: Random) -> Edit | None:
    found = [group for group in groups(scene) if group.color and not group.distinct]
    if not found:
        return None
    group = rng.choice(found)
    slots = {
        "x": group.the(words.called(group.name, rng)),
        "be": group.be,
        **_colors(group.color, None, group.it),
    }
    answer = f"{sentence_case(group.the())} {group.be} {group.color} already."
    return Edit("recolor", scene, slots, None, answer)


def _same_place(scene: Scene, rng: Random) -> Edit | None:
    found = singles(groups(scene))
    if not found:
        return None
    group = rng.choice(found)
    where = place(group.thing, scene.size)
    if where is None:
        return None
    slots = {"x": _named(group, rng), "be": group.be, "it": group.them, **_said_place(where, rng)}
    return Edit("move", scene, slots, None, f"{sentence_case(group.the())} {group.be} {where} already.")


def _same_background(scene: Scene, rng: Random) -> Edit | None:
    name = scene.background.name
    if name is None:
        return None
    slots = {"ground": name, "a_ground": words.a(name)}
    return Edit("background", scene, slots, None, f"The background is {name} already.")


def _no_room(scene: Scene, rng: Random) -> Edit | None:
    if len(scene.things) < MOST_THINGS:
        return None
    present = {thing.name for thing in scene.things}
    name = rng.choice([name for name in CLASSES if name not in present])
    slots = {"a": words.one(words.called(name, rng))}
    answer = f"There are {NUMBERS[MOST_THINGS]} things in the picture already, and I can't draw more than that."
    return Edit("add anywhere", scene, slots, None, answer)


REFUSALS = (_absent_thing, _same_color, _same_place, _same_background, _no_room)
