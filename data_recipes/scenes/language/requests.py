"""Requests to draw: what a scene is asked for with, and what cannot be drawn, which is said in words."""

from collections.abc import Mapping
from random import Random

from ..world import CLASSES, MIRROR, SKILLS, Scene, geneval_prompt, relation
from . import words
from .facts import Group, groups, place, singles
from .grammar import forms_by_split, typed
from .question_forms import RELATION_WORDS

FORMS = forms_by_split(
    """
    {x}
    {x}, please
    (a|one) (picture|photo|drawing|sketch) of {x}
    an (image|illustration) of {x}
    a picture (with|showing|that shows) {x}
    draw {x}.
    (please|now|just) draw {x}.
    draw me {x}.
    (draw|make|paint|create|generate) a picture (of|with) {x}.
    (create|generate|make) an image (of|with) {x}.
    (create|make|paint|sketch|generate) {x}.
    <can_you> (draw|paint|sketch|make|create|generate) {x} (for me|)?
    <can_you> (draw|make|create) a picture of {x}?
    <can_you> (make|create|generate) an image (of|with) {x}?
    <can_you> show me {x}?
    (i want|i would like|i need) a (picture|drawing|photo) of {x}.
    (i want|i would like) to see {x}.
    (i want|i would like) you to draw {x}.
    (show|draw) me a picture of {x}.
    show me {x}.
    let me see {x}.
    (can|could|may) i (have|get|see) a (picture|drawing) of {x}?
    how about a (picture|drawing) of {x}?
    let us draw {x}.
    try to draw {x}.
    will you draw {x} (for me|)?
    give me a (picture|drawing|sketch) of {x}.
    next, draw {x}.
    """,
    """
    depict the following: {x}.
    illustrate this idea: {x}.
    render {x} for my daughter's birthday card.
    i could use an artwork that features {x}.
    my story needs art, namely {x}.
    turn these words into pixels: {x}.
    visualize the following for me: {x}.
    fill a blank canvas with {x}.
    be my artist today and come up with {x}.
    design a postcard on which one can see {x}.
    grab your pencils, it is time for {x}.
    wanted: {x}, freshly drawn.
    """,
)
AGAIN = forms_by_split(
    """
    again.
    again, please.
    (please|) (do|draw) (it|that) (again|once more).
    another one(, please|).
    (one more|once more)(, please|).
    draw another one.
    (now|) (make|draw) one more (like this|).
    the same (thing|) (again|once more).
    (can|could) you draw (it|that) (again|once more)?
    (can|could) i have another one?
    another (picture|drawing|version|try)(, please|).
    i want another one.
    (make|draw) a (new|different) version.
    """,
    """
    encore!
    have a second go at it.
    repeat that for me.
    give us a fresh take.
    """,
)
LIKE_THIS = forms_by_split(
    """
    draw (a picture|something|one) like this.
    draw this (again|once more|for me|).
    (make|draw|create) another (picture|one|image) like this (one|).
    <can_you> draw (the same thing|something like this|this again)?
    redraw this (picture|image|).
    draw the same (things|thing|picture) (again|).
    (make|draw|paint) a (new|similar) picture of (this|the same things).
    (i want|i would like) a drawing of this.
    (i want|i would like) another picture like this.
    """,
    """
    imitate what i just showed you.
    let me have your own version of it.
    use this as inspiration for an artwork.
    """,
)
# After a drawing of one thing: the same in another colour.
RECOLORED = forms_by_split(
    """
    in {color} this time.
    (and|) now in {color}.
    (again|once more), (but|and|) in {color}.
    the same (thing|), but (in|) {color}.
    (and|) (make|draw|paint) {it} {color} (this time|).
    (can|could) you (make|draw) {it} {color} (instead|)?
    (and|) in {color}?
    (not like that, i want|i want|i would like) {it} in {color}.
    no, (make|draw) {it} {color}.
    another one, but {color}.
    """,
    """
    i prefer {color} for that.
    {color} would be nicer, do you not think so?
    what if {it} came in {color}?
    """,
)

SIDE_WORDS = {
    "left of": ("to {its} left", "on {its} left"),
    "right of": ("to {its} right", "on {its} right"),
    "above": ("above {it}",),
    "below": ("below {it}", "under {it}"),
}
SIDES_OF_TWO = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}


def request(scene: Scene, rng: Random, forms: str = "train") -> str:
    """To draw the scene, as someone types it; now and then in GenEval's words."""
    if scene.skill in SKILLS and forms == "train" and rng.random() < 0.1:
        return geneval_prompt(scene)
    return typed(FORMS[forms].sample(rng).format(x=phrase(scene, rng)), rng)


def phrase(scene: Scene, rng: Random) -> str:
    """What to draw: every thing, most colours, how two things lie, now and then the background."""
    found = groups(scene)
    colored = rng.random() < 0.9
    said = [_some(group, colored, rng) for group in found]
    if len(found) == 2 and len(singles(found)) == 2:
        text = _two(found, said, rng)
    else:
        text = words.listed(said)
        at = place(found[0].thing, scene.size) if len(scene.things) == 1 else None
        if at and rng.random() < 0.15:
            text += f" {at}"
    if scene.background.name and rng.random() < 0.15:
        text += f" {rng.choice(('on', 'with', 'against'))} {words.a(scene.background.name)} background"
    return text


def _some(group: Group, colored: bool, rng: Random) -> str:
    color = group.color if colored or group.distinct else None
    number, called = len(group), words.called(group.name, rng)
    if number > 1 and rng.random() < 0.15:
        return f"{number} {words.many(called, color)}"
    return words.some(number, called, color)


def _two(found: list[Group], said: list[str], rng: Random) -> str:
    order = rng.sample((0, 1), 2)
    (a, b), (first, second) = (found[i] for i in order), (said[i] for i in order)
    word = relation(a.thing, b.thing)
    style = rng.random()
    if word is None or style < 0.25:
        return f"{first} and {second}"
    if style < 0.75:
        return f"{first} {rng.choice(RELATION_WORDS[word])} {second}"
    if style < 0.9:
        at, other = SIDES_OF_TWO[word]
        return f"{first} {at} and {second} {other}"
    side = rng.choice(SIDE_WORDS[MIRROR[word]]).format(it=a.them, its="their" if a.it == "they" else "its")
    return f"{first} with {second} {side}"


# ---- what cannot be drawn

OUTSIDE = """
a castle|a dragon|a tree|a house|a mountain|a unicorn|a fish|a spaceship|a rainbow|a rose|a flower|a robot|a beach
a lion|a tiger|a monkey|a rabbit|a hamster|a snake|a frog|a shark|a whale|a butterfly|a spider|a duck|a pig
a guitar|a piano|a violin|a drum|a camera|a hammer|a ladder|a candle|a lamp|a mirror|a pillow|a carpet|a window
a bridge|a church|a skyscraper|a lighthouse|a windmill|a barn|a tent|a garden|a forest|a lake|a river|a waterfall
a dinosaur|a mermaid|a wizard|a knight|a pirate|a vampire|a ghost|a snowman|a superhero|an angel
a tractor|a helicopter|a submarine|a rocket|a balloon|a tank|a scooter|a canoe
a burger|a lemon|a strawberry|a cherry|a tomato|a potato|an egg|a loaf of bread|some cheese|a plate of soup
a hat|a shoe|a sock|a jacket|a ring|a crown|a sword|an anchor|a flag|a globe
the moon|the sun|the ocean|the Eiffel Tower|a sunset|a city at night|a starry sky|a volcano|an island
a hair drier|a toaster|a microwave|an oven|a refrigerator|a bench|a fire hydrant|a parking meter|a remote control
"""
PEOPLE = """
a photo of my mother|a portrait of the queen|a realistic photo of a woman|a photo of my best friend|a famous actor
a portrait of Mona Lisa|the president of France|a selfie of us|a photo of the two of us at the beach|my grandfather
a close-up of an old man's face|a wedding photo|a group photo of my class|a baby smiling at the camera|your face
a family at dinner|a crowd of people at a concert|a football team|two people shaking hands|a woman in a red dress
"""
WRITING = """
the word hello|a sign that says open|my name in big letters|the letter A|the number seven|a birthday card with my name
a poster that says no smoking|a page of text|the alphabet|a newspaper front page|a cup with the word love on it
a chart of my income|a map of Europe|a logo for my shop|a calendar|a crossword puzzle|a diagram of an engine
"""
ACTIONS = """
a dog riding a bicycle|a cat wearing a hat|a bear dancing|an elephant flying over the sea|a horse jumping over a fence
a person eating pizza|a giraffe playing football|a car racing through the desert|a bird singing in a tree
a zebra reading a book|a sheep sleeping on a couch|a cow drinking milk|a boat sinking in a storm|a train in a tunnel
"""
SHADES = "turquoise|golden|silver|beige|violet|crimson|transparent|rainbow-colored|striped|spotted|glittering|lime"
COUNTS = "five|six|seven|eight|nine|ten|eleven|twelve|a dozen|twenty|fifty|a hundred|a thousand|5|6|8|10|12|100"

KNOWN = "I can draw up to four things on a quiet background: animals, vehicles, food, furniture and everyday things."
DECLINED = {
    "outside": (
        "I can't draw {x}: I only know 70 kinds of things, such as dogs, cars and cups.",
        "Sorry, I never learned to draw {x}.",
        "I'm afraid I can't draw {x}. " + KNOWN,
    ),
    "people": (
        "I can't draw people you would recognize, only one simple figure of a person.",
        "Sorry, I can't make pictures of real people.",
        "I'm afraid that is beyond me. " + KNOWN,
    ),
    "writing": (
        "I can't draw letters, numbers or words.",
        "Sorry, I can't write in pictures. " + KNOWN,
        "I'm afraid I can't draw text, charts or maps.",
    ),
    "actions": (
        "I can't draw things that do something: in my pictures they are only next to each other.",
        "Sorry, that is too much for me. " + KNOWN,
        "I'm afraid I can only place things, not show what they do.",
    ),
    "shade": (
        "I can't draw things in that color. I know red, orange, yellow, green, blue, purple, pink, brown, black and "
        "white.",
        "Sorry, I only know ten colors, and that isn't one of them.",
    ),
    "count": (
        "I can draw at most four things in a picture.",
        "Sorry, that is too many: four things are the most that I can draw.",
    ),
}


def _by_split(text: str) -> dict[str, list[str]]:
    """What is asked for in training, and every fifth, which never is."""
    listed = [part for line in text.strip().splitlines() for part in line.split("|")]
    return {
        "train": [part for number, part in enumerate(listed) if number % 5 != 4],
        "held_out": listed[4::5],
    }


BEYOND = {
    "outside": _by_split(OUTSIDE),
    "people": _by_split(PEOPLE),
    "writing": _by_split(WRITING),
    "actions": _by_split(ACTIONS),
    "shade": _by_split(SHADES),
    "count": _by_split(COUNTS),
}
_SHARES: Mapping[str, float] = {"outside": 10, "people": 3, "writing": 3, "actions": 3, "shade": 2, "count": 3}


def declined(rng: Random, forms: str = "train") -> tuple[str, str]:
    """A request for what cannot be drawn, and the answer in words."""
    kind = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
    chosen = rng.choice(BEYOND[kind][forms])
    asked = chosen
    if kind == "shade":
        asked = words.a(f"{chosen} {words.written(rng.choice([name for name in CLASSES if name not in words.UNITS]))}")
    elif kind == "count":
        name = words.called(rng.choice(CLASSES), rng)
        asked = f"{chosen} {words.many(name)}"
    elif kind == "outside" and rng.random() < 0.2:
        asked = words.listed(rng.sample([chosen, words.one(words.called(rng.choice(CLASSES), rng))], 2))
    text = typed(_asking(kind, forms, rng).format(x=asked), rng)
    return text, rng.choice(DECLINED[kind]).format(x=chosen)


def _asking(kind: str, forms: str, rng: Random) -> str:
    """A form that says that something is to be drawn: bare words could be meant as a remark."""
    while True:
        form = FORMS[forms].sample(rng)
        if not form.startswith("{x}") and not (kind == "people" and (" photo of" in form or "picture of" in form)):
            return form
