"""The scenes world: an endless seeded source of small pictures with captions, questions and object lists.

A scene is a skill, up to four things in boxes and a background. Everything follows from (seed, split, skill).
Splits are by combination (class and colour, two classes, class and relation): see docs/data.md.
"""

import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from . import artwork as art

SIZE = 128
SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PAIR_SKILLS, COLOR_SKILLS = ("two_object", "position", "color_attr"), ("colors", "color_attr")
SPLITS = ("train", "held_out")
CLASSES = tuple(art.EMOJI)
COLORS = {color: shades[1] for color, shades in art.SHADES.items()}
RELATIONS = ("left of", "right of", "above", "below")
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
GENEVAL = Path(__file__).parents[1] / "geneval" / "evaluation_metadata.jsonl"

# In pixels of a 128-pixel picture; World scales them.
MARGIN, GAP = 2, 4
ONE_SIZES, TWO_SIZES, MANY_SIZES = range(44, 89, 4), range(36, 57, 4), range(32, 49, 4)
COLORED_SHARE = 0.2  # of the scenes whose skill does not ask for colours
DIAGONAL_SHARE = 0.25  # of the two-thing scenes whose skill does not ask for a relation

# Per mille of all combinations of a kind that never appear in training, chosen by a stable hash.
HELD_OUT_PER_MILLE = {"color": 80, "pair": 30, "relation": 80}
# A held-out scene of a skill shows a held-out combination of one of these kinds.
TESTED_KINDS = {
    "single_object": ("color",),
    "two_object": ("pair",),
    "counting": ("color",),
    "colors": ("color",),
    "position": ("pair", "relation"),
    "color_attr": ("pair", "color"),
}

BACKGROUNDS = {
    "light blue": (176, 206, 232),
    "light green": (186, 218, 182),
    "light pink": (240, 210, 216),
    "light gray": (206, 208, 210),
    "lavender": (202, 192, 226),
    "beige": (228, 214, 186),
    "gray": (142, 146, 150),
    "teal": (110, 156, 158),
    "tan": (178, 156, 126),
    "dark gray": (82, 86, 92),
    "dark blue": (58, 74, 108),
    "dark green": (60, 92, 76),
}
BACKGROUND_KINDS = ("plain", "gradient", "horizon", "stripes", "checkerboard")
# Least distance in RGB between a background and the main colour of a thing on it. Lower for the artwork's own
# colours: they vary more than one number says, and some pairs would be left without a background.
MIN_CONTRAST_COLORED, MIN_CONTRAST_NATURAL = 95, 75


@dataclass(frozen=True)
class Thing:
    """`color` None: the artwork's own colours. `box`: x1, y1, x2, y2 in pixels, tight around the glyph."""

    name: str
    color: str | None
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Background:
    """Two colours and how they mix: see `paint`. `name` is None when no one word is true of the whole."""

    kind: str
    colors: tuple[tuple[int, int, int], tuple[int, int, int]]
    name: str | None
    across: bool
    waves: float
    start: float


@dataclass(frozen=True)
class Scene:
    skill: str
    things: tuple[Thing, ...]
    background: Background
    size: int = SIZE


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


# ---- relations and splits


def center(thing: Thing) -> tuple[float, float]:
    x1, y1, x2, y2 = thing.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def gap(a: Thing, b: Thing, axis: int) -> int:
    """Free pixels between two boxes along x (0) or y (1); negative when they share a stretch of the axis."""
    return max(a.box[axis] - b.box[axis + 2], b.box[axis] - a.box[axis + 2])


def relation(a: Thing, b: Thing) -> str | None:
    """How `a` lies to `b` when that is clear: boxes apart on one axis, centres nearly level on the other."""
    dx, dy = (p - q for p, q in zip(center(a), center(b), strict=True))
    axis = 0 if abs(dx) > abs(dy) else 1
    if gap(a, b, axis) < 0 or min(abs(dx), abs(dy)) * 3 > max(abs(dx), abs(dy)):
        return None
    return ("left of" if dx < 0 else "right of", "above" if dy < 0 else "below")[axis]


def shown_relations(a: Thing, b: Thing) -> list[str]:
    """The clear relation, or for a diagonal layout both that it shows."""
    clear = relation(a, b)
    if clear:
        return [clear]
    (ax, ay), (bx, by) = center(a), center(b)
    return ["left of" if ax < bx else "right of", "above" if ay < by else "below"]


def is_diagonal(a: Thing, b: Thing) -> bool:
    dx, dy = (abs(p - q) for p, q in zip(center(a), center(b), strict=True))
    return min(dx, dy) * 5 >= max(dx, dy) * 3


def combinations(things: Iterable[Thing]) -> list[tuple[str, str, str]]:
    """What the things teach: (color, class, colour), (pair, class, class) and (relation, class, relation)."""
    things = list(things)
    found = [("color", t.name, t.color) for t in things if t.color]
    for i, a in enumerate(things):
        for b in things[:i]:
            if a.name != b.name:
                found.append(("pair", *sorted((a.name, b.name))))
                for word in shown_relations(a, b):
                    found += [("relation", a.name, word), ("relation", b.name, MIRROR[word])]
    return found


@cache
def geneval_pairs() -> frozenset[tuple[str, str]]:
    """The sorted class pairs of GenEval's two-class prompts."""
    with open(GENEVAL, encoding="utf-8") as lines:
        includes = [json.loads(line)["include"] for line in lines]
    pairs = [[item["class"] for item in include] for include in includes if len(include) == 2]
    return frozenset(tuple(sorted(pair)) for pair in pairs)


@cache
def is_held_out(combination: tuple[str, str, str]) -> bool:
    """Whether training scenes never show this combination (see `combinations`)."""
    kind = combination[0]
    if kind == "pair" and combination[1:] in geneval_pairs():
        return True
    return zlib.crc32("|".join(combination).encode()) % 1000 < HELD_OUT_PER_MILLE[kind]


def expressible(metadata: dict) -> bool:
    """Whether every class of a GenEval record has artwork."""
    return all(item["class"] in art.EMOJI for item in metadata["include"])


def held_out(metadata: dict) -> bool:
    """Whether training scenes never show what a GenEval record asks for."""
    if len(metadata["include"]) > 1:
        return True
    item = metadata["include"][0]
    return "color" in item and is_held_out(("color", item["class"], item["color"]))


# ---- layout and rendering


def known(word: str, value: str, choices: Iterable[str]) -> str:
    if value not in choices:
        raise ValueError(f"unknown {word} {value!r}; known: {', '.join(choices)}")
    return value


def paint(background: Background, size: int) -> Image.Image:
    """A plain, soft or wavy mix of the two colours, free of noise and of hard edges."""

    def wave(u: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + 4 * np.sin(2 * np.pi * (background.waves * u + background.start)), 0, 1)

    u = (np.arange(size) + 0.5) / size
    line = {
        "plain": lambda: np.zeros(size),
        "gradient": lambda: u,
        "horizon": lambda: np.clip((u - background.start) * 12 + 0.5, 0, 1),
        "stripes": lambda: wave(u),
        "checkerboard": lambda: wave(u),
    }[background.kind]()
    mix = line[None, :] if background.across else line[:, None]
    if background.kind == "checkerboard":
        mix = mix + mix.T - 2 * mix * mix.T
    first, second = (np.array(color, dtype=np.float32) for color in background.colors)
    pixels = (first + (second - first) * mix[..., None] + 0.5).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (size, size, 3)).copy())


@lru_cache(maxsize=1024)
def clear_backgrounds(artwork: str, name: str, color: str | None) -> frozenset[str]:
    """Names of the backgrounds on which the thing stands out."""
    main = np.array(COLORS[color] if color else art.main_color(artwork, name))
    least = MIN_CONTRAST_COLORED if color else MIN_CONTRAST_NATURAL
    far = [ground for ground, rgb in BACKGROUNDS.items() if np.linalg.norm(main - rgb) >= least]
    return frozenset(ground for ground in far if color not in ground.split())


class World:
    """The scenes, drawn with one kind of artwork on pictures of size x size pixels."""

    def __init__(self, artwork: str = "emoji", size: int = SIZE):
        self.artwork = known("artwork", artwork, art.ARTWORK)
        self.size = size
        if size < 32:
            raise ValueError(f"size {size} is too small for up to four things; the least is 32")

    def scene(self, seed: int, split: str = "train", skill: str | None = None) -> Scene:
        """The scene of this seed: in "train" without any held-out combination, in "held_out" with one."""
        known("split", split, SPLITS)
        rng = random.Random(f"{split} {skill} {seed}")
        skill = known("skill", skill, SKILLS) if skill else rng.choice(SKILLS)
        tests_color = split == "held_out" and TESTED_KINDS[skill] == ("color",)
        colored = skill in COLOR_SKILLS or tests_color or rng.random() < COLORED_SHARE
        while True:
            things = self._draw_things(rng, skill, colored)
            shown = combinations(things)
            if split == "train" and not any(map(is_held_out, shown)):
                break
            if split == "held_out" and any(is_held_out(c) for c in shown if c[0] in TESTED_KINDS[skill]):
                break
        return Scene(skill, things, self._background(rng, things), self.size)

    def scene_of(self, metadata: dict, seed: int) -> Scene:
        """A scene that is true of one GenEval record. ValueError when the record cannot be shown."""
        items = metadata["include"]
        names = [known("class (no artwork)", item["class"], CLASSES) for item in items for _ in range(item["count"])]
        colors = [item.get("color") for item in items for _ in range(item["count"])]
        skill = known("skill", metadata["tag"], SKILLS)
        if not 1 <= len(names) <= 4:
            raise ValueError(f"a scene shows 1 to 4 things, the record asks for {len(names)}")
        rng = random.Random(f"{json.dumps(metadata, sort_keys=True)} {seed}")
        word = next((item["position"][0] for item in items if "position" in item), None)
        if word:  # GenEval lists the reference first, its prompt and ours the thing that is placed
            names, colors = names[::-1], colors[::-1]
        else:
            word = rng.choice(RELATIONS)
        things = self._place(rng, names, colors, word)
        return Scene(skill, things, self._background(rng, things), self.size)

    def again(self, scene: Scene, seed: int, split: str = "train") -> Scene:
        """Another scene of the same things, placed anew: of two, with the relation they had. In "train" it shows no
        held-out combination, if `scene` shows none."""
        rng = random.Random(f"again {scene} {seed}")
        names, colors = [t.name for t in scene.things], [t.color for t in scene.things]
        word = relation(*scene.things) if len(scene.things) == 2 else None
        while True:
            things = self._place(rng, names, colors, word)
            if split != "train" or not any(map(is_held_out, combinations(things))):
                break
        # Three classes or more may leave no other background than the one they have.
        background = scene.background if len({t.name for t in things}) > 2 else self._background(rng, things)
        return Scene(scene.skill, things, background, self.size)

    def render(self, scene: Scene) -> Image.Image:
        image = paint(scene.background, scene.size)
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            glyph = art.sized_glyph(self.artwork, thing.name, thing.color, x2 - x1, y2 - y1)
            image.paste(glyph, (x1, y1), glyph)
        return image

    def _draw_things(self, rng: random.Random, skill: str, colored: bool) -> tuple[Thing, ...]:
        if skill in PAIR_SKILLS:
            names = rng.sample(CLASSES, 2)
            colors = rng.sample(tuple(COLORS), 2)
        else:
            count = rng.randint(2, 4) if skill == "counting" else 1
            names = [rng.choice(CLASSES)] * count
            colors = [rng.choice(tuple(COLORS))] * count
        diagonal = skill != "position" and rng.random() < DIAGONAL_SHARE
        word = None if diagonal else rng.choice(RELATIONS)
        return self._place(rng, names, colors if colored else [None] * len(names), word)

    def _place(self, rng: random.Random, names: list, colors: list, word: str | None) -> tuple[Thing, ...]:
        """Things inside, apart; the first of two classes lies `word` the second (None: diagonal)."""
        pair = len(names) == 2 and names[0] != names[1]
        if pair:
            longest = [rng.choice(TWO_SIZES), rng.choice(TWO_SIZES)]
        else:
            longest = [rng.choice(MANY_SIZES if len(names) > 1 else ONE_SIZES)] * len(names)
        sizes = [art.glyph_size(self.artwork, n, self._px(side)) for n, side in zip(names, longest, strict=True)]
        while True:
            corners = self._pair_corners(rng, sizes, word) if pair else self._free_corners(rng, sizes)
            boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
            things = tuple(Thing(n, c, box) for n, c, box in zip(names, colors, boxes, strict=True))
            if self._apart(things) and (not pair or (relation(*things) == word if word else is_diagonal(*things))):
                return things

    def _pair_corners(self, rng: random.Random, sizes: list, word: str | None) -> list[tuple[int, int]]:
        """Upper left corners: in order and apart along the axis of `word`, anywhere on the other axis."""
        word = word or rng.choice(RELATIONS)
        axis = 0 if word in ("left of", "right of") else 1
        low, high = (0, 1) if word in ("left of", "above") else (1, 0)
        margin, between = self._px(MARGIN), self._px(GAP)
        free = self.size - 2 * margin - between - sizes[0][axis] - sizes[1][axis]
        before, until = sorted((rng.randint(0, free), rng.randint(0, free)))
        along = {low: margin + before, high: margin + until + between + sizes[low][axis]}
        across = [rng.randint(margin, self.size - margin - s[1 - axis]) for s in sizes]
        return [(along[i], across[i]) if axis == 0 else (across[i], along[i]) for i in (0, 1)]

    def _free_corners(self, rng: random.Random, sizes: list) -> list[tuple[int, int]]:
        """Upper left corners: anywhere, or for several things half the time in quarters, where they fit."""
        margin = self._px(MARGIN)
        side, quarters = self.size, [(0, 0)] * len(sizes)
        if len(sizes) > 1 and rng.random() < 0.5:
            side = self.size // 2
            quarters = rng.sample([(0, 0), (0, side), (side, 0), (side, side)], len(sizes))
        return [
            (x + rng.randint(margin, side - margin - w), y + rng.randint(margin, side - margin - h))
            for (x, y), (w, h) in zip(quarters, sizes, strict=True)
        ]

    def _apart(self, things: tuple[Thing, ...]) -> bool:
        between = self._px(GAP)
        return all(max(gap(a, b, 0), gap(a, b, 1)) >= between for i, a in enumerate(things) for b in things[:i])

    def _background(self, rng: random.Random, things: tuple[Thing, ...]) -> Background:
        clear = [clear_backgrounds(self.artwork, t.name, t.color) for t in things]
        names = [b for b in BACKGROUNDS if all(b in c for c in clear)]
        kind = rng.choice(BACKGROUND_KINDS)
        name, other = rng.choice(names), rng.choice(names)
        if kind != "horizon" or name == other:
            other, shift = name, rng.choice((-1, 1)) * rng.randint(14, 26)
        else:
            shift = 0
        tint = [rng.randint(-6, 6) for _ in range(3)]
        colors = (
            tuple(c + t for c, t in zip(BACKGROUNDS[name], tint, strict=True)),
            tuple(min(255, c + t + shift) for c, t in zip(BACKGROUNDS[other], tint, strict=True)),
        )
        across = kind != "horizon" and rng.random() < 0.5
        waves, start = rng.choice((1, 1.5, 2)), rng.uniform(0.35, 0.75)
        return Background(kind, colors, name if name == other else None, across, waves, start)

    def _px(self, length: int) -> int:
        """A length on a 128-pixel picture in pixels of ours."""
        return length * self.size // SIZE


# ---- captions

NUMBERS = ("zero", "one", "two", "three", "four")
IRREGULAR = {"person": "people", "knife": "knives", "sheep": "sheep", "skis": "skis", "scissors": "scissors"}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
CAPTION_FORMS = (
    "a photo of {}",
    "{}",
    "a picture of {}",
    "an image of {}",
    "an image with {}",
    "draw {}",
    "please draw {}",
    "can you draw {}?",
    "show me {}",
    "make a picture of {}",
)


def a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def noun(thing: Thing, with_color: bool = True) -> str:
    return f"{thing.color} {thing.name}" if with_color and thing.color else thing.name


def plural(words: str) -> str:
    for name, many in IRREGULAR.items():
        if words == name or words.endswith(" " + name):
            return words.removesuffix(name) + many
    return words + ("es" if words.endswith(("s", "x", "ch", "sh")) else "s")


def geneval_prompt(scene: Scene) -> str:
    """The words of GenEval's prompts, its plurals ("two toothbrushs") included."""
    with_color = scene.skill in COLOR_SKILLS
    first = noun(scene.things[0], with_color)
    if scene.skill == "counting":
        return f"a photo of {NUMBERS[len(scene.things)]} {first}{'es' if first.endswith('s') else 's'}"
    if len(scene.things) == 1:
        return f"a photo of {a(first)}"
    link = relation(*scene.things) if scene.skill == "position" else "and"
    return f"a photo of {a(first)} {link} {a(noun(scene.things[1], with_color))}"


def geneval_record(scene: Scene) -> dict:
    """What `geneval_prompt` asks for, as a line of GenEval's evaluation_metadata.jsonl."""
    first, *others = scene.things
    color = {"color": first.color} if scene.skill in COLOR_SKILLS else {}
    include = [{"class": first.name, "count": 1, **color}]
    record = {"tag": scene.skill, "include": include, "prompt": geneval_prompt(scene)}
    if scene.skill == "counting":
        include[0]["count"] = len(scene.things)
        record["exclude"] = [{"class": first.name, "count": len(scene.things) + 1}]
    elif others:
        color = {"color": others[0].color} if scene.skill in COLOR_SKILLS else {}
        include.append({"class": others[0].name, "count": 1, **color})
    if scene.skill == "position":  # GenEval lists the reference first
        record["include"] = [include[1], {**include[0], "position": [relation(*scene.things), 0]}]
    return record


def phrases(scene: Scene, with_color: bool) -> list[str]:
    """Ways to name what the scene shows."""
    words = [noun(thing, with_color) for thing in scene.things]
    if scene.skill == "counting":
        return [f"{NUMBERS[len(words)]} {plural(words[0])}"]
    if len(words) == 1:
        return [a(words[0])]
    first, second = map(a, words)
    if scene.skill != "position":
        return [f"{first} and {second}", f"{second} and {first}"]
    word = relation(*scene.things)
    forward = [f"{first} {link} {second}" for link in RELATION_WORDS[word]]
    return forward + [f"{second} {link} {first}" for link in RELATION_WORDS[MIRROR[word]]]


def captions(scene: Scene) -> list[str]:
    """Every phrasing that is true of the scene, GenEval's first.

    Colours that the skill does not ask for are in half of them.
    """
    named = phrases(scene, with_color=True)
    if scene.skill not in COLOR_SKILLS and scene.things[0].color:
        named = phrases(scene, with_color=False) + named
    forms = [*CAPTION_FORMS, "there are {}" if scene.skill == "counting" else "there is {}"]
    if scene.background.name:
        ground = a(scene.background.name) + " background"
        forms += [f"{{}} on {ground}", f"a photo of {{}} on {ground}", f"draw {{}} on {ground}"]
    found = [geneval_prompt(scene)] + [form.format(words) for words in named for form in forms]
    return list(dict.fromkeys(found))


def some_caption(scene: Scene, rng: random.Random) -> str:
    """Half of the time in GenEval's wording."""
    options = captions(scene)
    return options[0] if rng.random() < 0.5 else rng.choice(options)


# ---- layouts

BINS = 64
ASKED_FOR_LAYOUT = "?"
LAYOUT_WORDS = (
    ASKED_FOR_LAYOUT,
    *(f"thing {name}" for name in CLASSES),
    *(f"color {color}" for color in COLORS),
    *(f"ground {name}" for name in BACKGROUNDS),
    *map(str, range(BINS)),
)
"""Every word of layouts. None of them is text: a language model has an id of its own for each."""


def layout(scene: Scene) -> list[str]:
    """All things in reading order, each with its box, and the background, if it has a name: "color red", "thing cup",
    "32", "6", "38", "25", "thing dog", "8", "19", "28", "37", "ground beige"."""
    things = [word for thing in sorted(scene.things, key=_reading) for word in (*named(thing), *box(thing, scene.size))]
    return [*things, *([f"ground {scene.background.name}"] if scene.background.name else [])]


def named(thing: Thing) -> list[str]:
    return [*([f"color {thing.color}"] if thing.color else []), f"thing {thing.name}"]


def box(thing: Thing, size: int) -> list[str]:
    """Left, top, right and bottom, each as one of `BINS` equal parts of the picture's side."""
    return [str(min(BINS - 1, BINS * side // size)) for side in thing.box]


def _reading(thing: Thing) -> tuple[int, int]:
    return thing.box[1], thing.box[0]


# ---- questions

FORMS = {
    "what one": "what is this? | what is in the picture? | what does it show? | what object is this?",
    "what many": "what are these? | what is in the picture? | what does it show? | name these objects.",
    "what there": "what is {}? | which object is {}? | what do you see {}? | name the thing {}.",
    "what else": "what is with {}? | what else than {} is there? | what is next to {}? | what is beside {}?",
    "what color": "what is {}? | which thing is {}? | what object is {}? | name the {} thing.",
    "count": "how many {} are there? | how many {} do you see? | how many {} are shown? | count the {}.",
    "color": "what color {}? | which color {}? | can you tell what color {}? | say what color {}.",
    "where": "where is {}? | where do you see {}? | where in the picture is {}? | where can I find {}?",
    "exists": "is there {}? | do you see {}? | does the picture show {}? | can you find {} here?",
    "describe": "describe the picture. | describe this image. | write a short description. | give a caption.",
}
# The same questions in words that are in no training sample: who learned the forms above by heart fails here.
FREE_FORMS = {
    "what one": "can you identify the item? | tell me which object appears here. | what am I looking at?",
    "what many": "can you identify the items? | tell me which objects appear here. | what am I looking at?",
    "what there": "tell me which object appears {}. | can you identify the item located {}? | what has been put {}?",
    "what else": "apart from {}, which object appears? | besides {}, what am I looking at? | what keeps {} company?",
    "what color": "tell me which object has been painted {}. | can you identify the {} item? | which one looks {}?",
    "count": "please tell me the number of {}. | can you count the {} for me? | what is the total number of {}?",
    "color": "tell me, which hue {}? | would you know which color {}? | I wonder, what color {}?",
    "where": "tell me the place of {}. | can you say where {} has been put? | in which part of the photo is {}?",
    "exists": "would you say that this photo contains {}? | am I looking at {}? | can {} be seen anywhere?",
    "describe": "tell me what this photo contains. | please sum up what you see. | how would you title this photo?",
}
Asked = Iterator[tuple[str, str, str]]  # key of FORMS, what goes into the form, answer


def describe(scene: Scene) -> str:
    """The one canonical description: left or upper thing first."""
    things = scene.things
    if len({t.name for t in things}) == 1:
        word = noun(things[0])
        return a(word) if len(things) == 1 else f"{NUMBERS[len(things)]} {plural(word)}"
    first, second = things
    word = relation(first, second)
    if word in ("right of", "below") or (word is None and center(second) < center(first)):
        first, second = second, first
    return f"{a(noun(first))} {relation(first, second) or 'and'} {a(noun(second))}"


def side_of(scene: Scene) -> str | None:
    """Where a single thing lies, when it is clearly off-centre on one axis and central on the other."""
    dx, dy = (c / scene.size - 0.5 for c in center(scene.things[0]))
    if min(abs(dx), abs(dy)) > 1 / 16 or max(abs(dx), abs(dy)) < 1 / 8:
        return None
    if abs(dx) > abs(dy):
        return "on the left" if dx < 0 else "on the right"
    return "at the top" if dy < 0 else "at the bottom"


def absent(scene: Scene, rng: random.Random) -> str:
    """A class the scene does not show."""
    return rng.choice([name for name in CLASSES if all(name != t.name for t in scene.things)])


def ask_what(scene: Scene, rng: random.Random) -> Asked:
    things = scene.things
    if len(things) == 1:
        yield "what one", "", a(things[0].name)
    elif things[0].name == things[1].name:
        yield "what many", "", plural(things[0].name)
    else:
        first, second = rng.sample(things, 2)
        word = relation(first, second)
        if word:
            yield "what there", f"{rng.choice(RELATION_WORDS[word])} the {second.name}", a(first.name)
        else:
            yield "what else", f"the {second.name}", a(first.name)
        if first.color:
            yield "what color", first.color, a(first.name)


def ask_count(scene: Scene, rng: random.Random) -> Asked:
    name = rng.choice(scene.things).name if rng.random() < 0.9 else absent(scene, rng)
    yield "count", plural(name), NUMBERS[sum(t.name == name for t in scene.things)]


def ask_color(scene: Scene, rng: random.Random) -> Asked:
    for thing in {t.name: t for t in scene.things}.values():
        if thing.color:
            many = scene.skill == "counting"
            yield "color", f"are the {plural(thing.name)}" if many else f"is the {thing.name}", thing.color


def ask_where(scene: Scene, rng: random.Random) -> Asked:
    """Of two things about each: who is asked about one only learns to describe the picture, whatever is asked."""
    if len(scene.things) == 1:
        side = side_of(scene)
        if side:
            yield "where", f"the {scene.things[0].name}", side
    elif scene.skill != "counting":
        for thing, other in permutations(scene.things):
            word = relation(thing, other)
            if word:
                yield "where", f"the {thing.name}", f"{word} the {other.name}"


def ask_exists(scene: Scene, rng: random.Random) -> Asked:
    """One yes and one no; for a coloured thing the no may be about its colour."""
    thing = rng.choice(scene.things)
    wrong = absent(scene, rng)
    if thing.color and rng.random() < 0.5:
        # Not even a "no" names a held-out combination, or training would teach that it never exists.
        shown = {t.color for t in scene.things}
        colors = [c for c in COLORS if c not in shown and not is_held_out(("color", thing.name, c))]
        wrong = f"{rng.choice(colors)} {thing.name}"
    yield "exists", a(noun(thing, rng.random() < 0.5)), "yes"
    yield "exists", a(wrong), "no"


def ask_describe(scene: Scene, rng: random.Random) -> Asked:
    yield "describe", "", describe(scene)


QUESTIONS = {
    "what": ask_what,
    "count": ask_count,
    "color": ask_color,
    "where": ask_where,
    "exists": ask_exists,
    "describe": ask_describe,
}


def layout_questions(scene: Scene) -> list[tuple[list[str], list[str]]]:
    """Questions and answers in words of layouts: one about the whole layout and, of two things, one about the box of
    each. What a name refers to is learned from these, long before it is from "left of"."""
    asked = [([ASKED_FOR_LAYOUT], layout(scene))]
    if len({thing.name for thing in scene.things}) > 1:
        asked += [([ASKED_FOR_LAYOUT, *named(thing)], box(thing, scene.size)) for thing in scene.things]
    return asked


def questions(scene: Scene, rng: random.Random, forms: Mapping[str, str] = FORMS) -> list[Question]:
    """All kinds that apply, one or two of each, in the words of `forms`, with answers that follow from the picture
    alone."""
    return [
        Question(kind, rng.choice(forms[form].split(" | ")).format(words), answer)
        for kind, ask in QUESTIONS.items()
        for form, words, answer in ask(scene, rng)
    ]
