"""Forms: the ways to say one thing, written as alternatives; and how people type them."""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from random import Random
from typing import TypeAlias

from ..world import CLASSES, COLORS, NUMBERS
from .words import SYNONYMS, plural

Part: TypeAlias = "str | list[list[Part]]"  # a text, or alternatives, each of which is a row of parts

# Parts of forms that many share: <here> stands for one of the alternatives.
PARTS = {
    "here": "in the picture|in this picture|in the image|in this image|in the photo|here|",
    "picture": "the picture|this picture|the image|this image|the photo|this photo",
    "see": "do you see|can you see",
    "tell": "tell me|please tell me|say|please say|let me know",
    "can_you": "can you|could you|can you please|could you please|would you please",
    "thing": "thing|object|item",
    "know": "i want to know|i would like to know|i need to know",
}


class Forms:
    """One form a line. "(can|could) you see {a}?" is two forms; alternatives nest and may be empty, <name> stands for
    one of PARTS, and {name} for a slot. Every line is as likely as every other, and so is every alternative."""

    def __init__(self, lines: str):
        text = "|".join(line.strip() for line in lines.strip().splitlines())
        text = re.sub(r"<(\w+)>", lambda name: f"({PARTS[name[1]]})", text)
        self._options = _options(iter(re.findall(r"[()|]|[^()|]+", text)))

    def sample(self, rng: Random) -> str:
        return _tidy(_sample(self._options, rng))

    def __iter__(self) -> Iterator[str]:
        """Every form."""
        return map(_tidy, _every(self._options))


def _options(tokens: Iterator[str]) -> list[list[Part]]:
    """Alternatives up to the bracket that closes them."""
    options: list[list[Part]] = [[]]
    for token in tokens:
        if token == ")":
            break
        if token == "|":
            options.append([])
        else:
            options[-1].append(_options(tokens) if token == "(" else token)
    return options


def _sample(options: list[list[Part]], rng: Random) -> str:
    parts = options[int(rng.random() * len(options))]
    return "".join([part if isinstance(part, str) else _sample(part, rng) for part in parts])


def _every(options: list[list[Part]]) -> Iterator[str]:
    for parts in options:
        choices = [[part] if isinstance(part, str) else list(_every(part)) for part in parts]
        yield from map("".join, product(*choices))


def _tidy(text: str) -> str:
    """Without the spaces that empty alternatives leave."""
    text = " ".join(text.split())
    for mark in ",.?!:;":
        text = text.replace(" " + mark, mark)
    return text


def normalized(text: str) -> str:
    """Words alone: what makes two forms the same whatever their case and punctuation."""
    return " ".join(re.findall(r"[a-z0-9']+|\{\w+\}", text.lower()))


def forms_by_split(train: str, held_out: str) -> Mapping[str, Forms]:
    """What training says, and what only measurements say."""
    return {"train": Forms(train), "held_out": Forms(held_out)}


# ---- how people type

BRITISH = {
    "color": "colour",
    "colors": "colours",
    "colored": "coloured",
    "recolor": "recolour",
    "gray": "grey",
    "favorite": "favourite",
    "center": "centre",
    "airplane": "aeroplane",
    "airplanes": "aeroplanes",
    "donut": "doughnut",
    "donuts": "doughnuts",
    "racket": "racquet",
    "rackets": "racquets",
}
CONTRACTIONS = {
    "what is": "what's",
    "where is": "where's",
    "who is": "who's",
    "that is": "that's",
    "i would": "i'd",
    "i am": "i'm",
    "do not": "don't",
    "cannot": "can't",
    "let us": "let's",
}
OPENINGS = ("hi, ", "hello, ", "hey, ", "ok, ", "okay, ", "so, ", "now, ", "and ", "well, ", "excuse me, ")
CLOSINGS = (", please", " please", ", thanks", " thanks", ", thank you")
BRITISH_SHARE, CONTRACTED_SHARE, POLITE_SHARE, TYPO_SHARE = 0.4, 0.5, 0.08, 0.05
_british = re.compile(rf"\b({'|'.join(BRITISH)})\b")
_contracted = re.compile(rf"\b({'|'.join(CONTRACTIONS)})\b(?= (?!it\b)\w)")


def typed(text: str, rng: Random, courtesies: bool = True) -> str:
    """A form, its slots filled, as someone types it: spelling of either side of the Atlantic, case, punctuation,
    courtesies, now and then a slip of the finger."""
    chance = rng.random
    if chance() < BRITISH_SHARE:
        text = _british.sub(lambda word: BRITISH[word[0]], text)
    if chance() < CONTRACTED_SHARE:
        text = _contracted.sub(lambda words: CONTRACTIONS[words[0]], text)
        if chance() < 0.1:
            text = text.replace("'", "")
    body, mark = (text[:-1], text[-1]) if text[-1] in ".?!" else (text, "")
    if courtesies and chance() < POLITE_SHARE and "please" not in body and "thank" not in body:
        body += rng.choice(CLOSINGS)
    if courtesies and chance() < POLITE_SHARE and not body.startswith(OPENINGS):
        body = rng.choice(OPENINGS) + body
    if chance() < TYPO_SHARE:
        body = mistyped(body, rng)
    return _cased(body, rng) + _marked(mark, rng)


def _cased(text: str, rng: Random) -> str:
    style = rng.random()
    if style < 0.4:
        return text
    if style < 0.42:
        return text.upper()
    return sentence_case(text)


def _marked(mark: str, rng: Random) -> str:
    style = rng.random()
    if mark == "?":
        return "?" if style < 0.75 else "" if style < 0.97 else "??"
    return mark if style < 0.5 else "" if style < 0.96 else "!"


def sentence_case(text: str) -> str:
    text = re.sub(r"\bi\b(?!\.)", "I", text)
    return re.sub(r"(^|[.?!] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def mistyped(text: str, rng: Random) -> str:
    """One letter of a longer word left out, doubled or swapped with the next; never into another word of the world."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    place = rng.choice(long)
    word, at = words[place], rng.randrange(1, len(words[place]) - 1)
    slip = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )
    if slip.lower() not in _vocabulary():
        words[place] = slip
    return " ".join(words)


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    """Words that a slip must not turn into."""
    names = [*CLASSES, *(name for names in SYNONYMS.values() for name in names)]
    known = [*names, *map(plural, names), *COLORS, *NUMBERS, "left", "right", "above", "below", "over", "under"]
    return frozenset(word for name in known for word in name.split())
