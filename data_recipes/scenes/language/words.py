"""English for the things of the world: articles, plurals, agreement, lists; synonyms, kinds and own colours."""

from collections.abc import Sequence
from random import Random

from .. import world as scenes
from ..world import NUMBERS, a

# Words that are counted by another word: "a pair of scissors", "two heads of broccoli".
UNITS = {"scissors": "pair", "skis": "pair", "broccoli": "head"}
PLURAL_ONLY = ("scissors", "skis")
WRITTEN = {"tv": "TV"}
IRREGULAR = {"computer mouse": "computer mice", "mouse": "mice", "TV": "TVs", "tv": "TVs"}

# What people call a class that has another name here. None is a part of another class's name or plural.
SYNONYMS = {
    "bicycle": ("bike",),
    "motorcycle": ("motorbike",),
    "airplane": ("plane",),
    "boat": ("sailboat",),
    "backpack": ("rucksack",),
    "handbag": ("purse",),
    "tie": ("necktie",),
    "sports ball": ("ball", "soccer ball", "football"),
    "tennis racket": ("racket",),
    "couch": ("sofa",),
    "potted plant": ("plant", "houseplant"),
    "dining table": ("table",),
    "tv": ("television",),
    "computer mouse": ("mouse",),
    "computer keyboard": ("keyboard",),
    "cell phone": ("phone", "mobile phone", "smartphone"),
    "clock": ("alarm clock",),
}
SYNONYM_SHARE = 0.15

# Kinds that people ask about: name, plural, and the classes that are of it beyond doubt.
KINDS = {
    "animal": ("animals", ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"]),
    "vehicle": ("vehicles", ["bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"]),
    "piece of fruit": ("fruit", ["banana", "apple", "orange"]),
    "piece of furniture": ("furniture", ["chair", "couch", "bed", "dining table"]),
}
# Of these it can be argued, so nobody is asked whether they are of the kind.
DOUBTFUL = {
    "animal": ("teddy bear", "person"),
    "vehicle": ("skateboard", "surfboard", "snowboard", "skis"),
    "piece of fruit": ("broccoli", "carrot", "cake", "bowl"),
    "piece of furniture": ("toilet", "tv", "sink", "potted plant", "clock"),
}

# Colours of the emoji artwork as it is. First what one says of it, then what else can be seen in it: a thing whose
# class is not listed has no colour that all people would name.
OWN_COLORS = {
    "car": ("red", "black gray white blue"),
    "motorcycle": ("red", "black gray"),
    "stop sign": ("red", ""),
    "bird": ("blue", "orange black"),
    "sheep": ("white", "gray black"),
    "cow": ("black and white", "pink yellow gray"),
    "elephant": ("gray", "white"),
    "bear": ("brown", "orange black"),
    "zebra": ("black and white", "gray"),
    "backpack": ("red", "gray pink orange"),
    "handbag": ("brown", "yellow orange"),
    "suitcase": ("blue", "gray black green orange"),
    "frisbee": ("blue", "white"),
    "sports ball": ("black and white", "gray"),
    "skateboard": ("black", "red gray"),
    "bottle": ("green", "yellow red white brown"),
    "fork": ("gray", "white"),
    "spoon": ("gray", "white"),
    "bowl": ("blue", "gray"),
    "banana": ("yellow", "brown white orange"),
    "apple": ("red", "green brown"),
    "orange": ("orange", "green"),
    "broccoli": ("green", "yellow"),
    "carrot": ("orange", "green"),
    "donut": ("brown", "pink yellow blue orange"),
    "chair": ("brown", "orange"),
    "couch": ("blue", "yellow brown"),
    "potted plant": ("green", "orange brown red"),
    "toilet": ("white", "gray blue"),
    "cell phone": ("black", "gray blue pink orange yellow green red white"),
    "book": ("red", "white black gray"),
    "clock": ("red and white", "black gray"),
    "vase": ("orange", "brown black"),
    "teddy bear": ("brown", "yellow black"),
    "toothbrush": ("orange", "white blue"),
}


def own_color(name: str) -> str | None:
    """What one says of the class in its own colours."""
    return OWN_COLORS[name][0] if name in OWN_COLORS else None


def may_look(name: str, color: str | None, asked: str) -> bool:
    """Whether someone may find the colour `asked` in the thing."""
    if color:
        return color == asked
    return name not in OWN_COLORS or asked in " ".join(OWN_COLORS[name]).split()


def written(name: str) -> str:
    return WRITTEN.get(name, name)


def bare(noun: str) -> str:
    """Without its article."""
    return noun.split(" ", 1)[1] if noun.startswith(("a ", "an ", "the ")) else noun


def plural(name: str) -> str:
    return IRREGULAR.get(name) or scenes.plural(name)


def one(name: str, color: str | None = None) -> str:
    """ "a red dog", "a pair of red scissors"."""
    words = _colored(name, color)
    return f"a {UNITS[name]} of {words}" if name in UNITS else a(words)


def many(name: str, color: str | None = None) -> str:
    """ "red dogs", "pairs of scissors"."""
    if name in UNITS:
        return f"{UNITS[name]}s of {_colored(name, color)}"
    return f"{color} {plural(name)}" if color else plural(name)


def any_of(name: str, color: str | None = None) -> str:
    """After "any" or "no": "dogs", "scissors", "broccoli"."""
    return _colored(name, color) if name in UNITS else many(name, color)


def counted(number: int, name: str, color: str | None = None) -> str:
    """ "one red dog", "two red dogs", "no dogs"."""
    if number == 0:
        return f"no {any_of(name, color)}"
    if number == 1:
        return f"one {bare(one(name, color))}"
    return f"{NUMBERS[number]} {many(name, color)}"


def some(number: int, name: str, color: str | None = None) -> str:
    """The same, but "a red dog" for one."""
    return one(name, color) if number == 1 else counted(number, name, color)


def the(number: int, name: str, color: str | None = None) -> str:
    """ "the red dog", "the red dogs"."""
    return f"the {_colored(name, color) if number == 1 else many(name, color)}"


def is_plural(number: int, name: str) -> bool:
    return number > 1 or name in PLURAL_ONLY


def be(number: int, name: str) -> str:
    return "are" if is_plural(number, name) else "is"


def it(number: int, name: str) -> str:
    return "they" if is_plural(number, name) else "it"


def them(number: int, name: str) -> str:
    return "them" if is_plural(number, name) else "it"


def listed(words: Sequence[str]) -> str:
    """ "a dog, a cup and a clock"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def called(name: str, rng: Random) -> str:
    """The class, or now and then what else people call it."""
    if name in SYNONYMS and rng.random() < SYNONYM_SHARE:
        return rng.choice(SYNONYMS[name])
    return written(name)


def _colored(name: str, color: str | None) -> str:
    return f"{color} {written(name)}" if color else written(name)
