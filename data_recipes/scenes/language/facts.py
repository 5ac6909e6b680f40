"""What can be said of a scene beyond doubt: its groups of equal things, names that fit one of them only, places."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..world import MIRROR, RELATIONS, Scene, Thing, center, relation, shown_relations
from . import words

# Centres nearer to the middle of the picture than NEAR of its side are level with it, farther than FAR beside it.
# Beyond OUTER, nobody would say that a thing is in the middle.
NEAR, FAR, OUTER = 1 / 16, 1 / 8, 3 / 16
SIDES = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
CORNERS = {
    "at the top left": ("at the top", "on the left"),
    "at the top right": ("at the top", "on the right"),
    "at the bottom left": ("at the bottom", "on the left"),
    "at the bottom right": ("at the bottom", "on the right"),
}
MIDDLE = "in the middle"
PLACES = (*SIDES, *CORNERS, MIDDLE)


@dataclass(frozen=True)
class Group:
    """All things of a class and colour. `distinct`: another group has the same class, so that the colour must be
    said to tell them apart."""

    name: str
    color: str | None
    things: tuple[Thing, ...]
    distinct: bool

    def __len__(self) -> int:
        return len(self.things)

    @property
    def clear(self) -> bool:
        """Whether words can tell the group from the others."""
        return not self.distinct or self.color is not None

    @property
    def thing(self) -> Thing:
        return self.things[0]

    def the(self, name: str | None = None, colored: bool = False) -> str:
        return words.the(len(self), name or self.name, self.color if colored or self.distinct else None)

    def some(self, colored: bool = True) -> str:
        return words.some(len(self), self.name, self.color if colored or self.distinct else None)

    @property
    def be(self) -> str:
        return words.be(len(self), self.name)

    @property
    def it(self) -> str:
        return words.it(len(self), self.name)

    @property
    def them(self) -> str:
        return words.them(len(self), self.name)

    @property
    def said_color(self) -> str | None:
        """What one says of its colour; None when people would not agree."""
        return self.color or words.own_color(self.name)

    @property
    def key(self) -> tuple[str | None, str | None]:
        """Class and colour as far as needed to mean this group: how a meaning names it."""
        return self.name, self.color if self.distinct else None


def groups(scene: Scene) -> list[Group]:
    """In reading order of their first things."""
    ordered = sorted(scene.things, key=lambda thing: (thing.box[1], thing.box[0]))
    keys = list(dict.fromkeys((thing.name, thing.color) for thing in ordered))
    names = [name for name, _ in keys]
    return [
        Group(name, color, tuple(t for t in ordered if (t.name, t.color) == (name, color)), names.count(name) > 1)
        for name, color in keys
    ]


def singles(found: list[Group]) -> list[Group]:
    """The groups of one thing that words can mean."""
    return [group for group in found if len(group) == 1 and group.clear]


def off_center(thing: Thing, size: int) -> tuple[float, float]:
    """Of its centre, as shares of the picture's side."""
    x, y = center(thing)
    return x / size - 0.5, y / size - 0.5


def at_side(thing: Thing, side: str, size: int) -> bool | None:
    """Whether the thing lies on that side; None: one could argue."""
    axis, sign = SIDES[side]
    offset = sign * off_center(thing, size)[axis]
    return True if offset >= FAR else False if offset <= -NEAR else None


def place(thing: Thing, size: int) -> str | None:
    """The one of PLACES that is right beyond doubt, or None."""
    offsets = off_center(thing, size)
    if any(NEAR < abs(offset) < FAR for offset in offsets):
        return None
    at = [side for side, (axis, sign) in SIDES.items() if sign * offsets[axis] >= FAR]
    if len(at) < 2:
        return at[0] if at else MIDDLE
    return next(corner for corner, sides in CORNERS.items() if set(sides) == set(at))


def at_place(thing: Thing, where: str, size: int) -> bool | None:
    """Whether the thing is there: a corner is also on both its sides."""
    if where in SIDES:
        return at_side(thing, where, size)
    found = place(thing, size)
    if where == MIDDLE and found != MIDDLE:
        return False if max(map(abs, off_center(thing, size))) >= OUTER else None
    return None if found is None else found == where


def lies(a: Thing, b: Thing, word: str) -> bool | None:
    """Whether `a` lies `word` `b`; None for diagonal layouts that leave doubt."""
    clear = relation(a, b)
    if clear:
        return clear == word
    return None if word in shown_relations(a, b) else False


def lying(scene: Scene, word: str, other: Thing) -> list[Thing] | None:
    """All things that lie `word` the other one; None when one could argue about any."""
    found = {thing: lies(thing, other, word) for thing in scene.things if thing is not other}
    return None if None in found.values() else [thing for thing, there in found.items() if there]


def clear_relations(scene: Scene) -> Iterator[tuple[Group, str, Group]]:
    """(a, word, b) for all groups of one thing, both ways."""
    alone = singles(groups(scene))
    for place_, a in enumerate(alone):
        for b in alone[:place_]:
            word = relation(a.thing, b.thing)
            if word:
                yield a, word, b
                yield b, MIRROR[word], a


def axis_of(word: str) -> tuple[str, str]:
    """The two relations of its axis."""
    return RELATIONS[:2] if word in RELATIONS[:2] else RELATIONS[2:]
