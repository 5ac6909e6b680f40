"""Conversations about scenes: pictures that follow from a seed, and words that can differ every time they are seen.

Messages are as in data_recipes/messages.py, with a Scene in place of each image, in a list content: what renders or
encodes them, and knows their layout, is the caller's. An image in an answer is one to draw.
"""

from random import Random
from typing import Any, NamedTuple

from ..world import SPLITS, Scene, World, known
from . import edits, questions, requests, talk
from .facts import groups
from .grammar import typed

TASKS = {"look": 0.4, "draw": 0.25, "edit": 0.25, "talk": 0.1}
MOST_QUESTIONS = 5  # about one picture that is shown

Messages = list[dict[str, Any]]


class Step(NamedTuple):
    """A picture of a conversation. `how`: it is "shown" by the user, or drawn: as "asked" for anew, "again", as one
    "like this" that was shown, "recolored", or by an "edit" of the picture before."""

    how: str
    scene: Scene
    edit: edits.Edit | None = None


def conversation(
    world: World, seed: int, split: str = "train", task: str | None = None, forms: str = "train", wording: int = 0
) -> Messages:
    """The conversation of this seed, in words that follow from `wording`: the scenes of every wording are the same, so
    that codes of their pictures can be made once. `task` is one of TASKS, None for all in their shares; `forms` says
    which forms the user's words are taken from. Raises ValueError for a split, a task or forms that are not known."""
    known("forms", forms, SPLITS)
    task = task_of(seed, task)
    steps = story(world, seed, split, task)
    chat = _Chat(Random(f"{split} {task} {seed} words {wording}"), forms)
    _TELL[task](chat, steps)
    return chat.messages


def task_of(seed: int, task: str | None = None) -> str:
    if task is not None:
        return known("task", task, TASKS)
    return Random(f"task {seed}").choices(list(TASKS), list(TASKS.values()))[0]


def story(world: World, seed: int, split: str = "train", task: str | None = None) -> list[Step]:
    """The pictures of the conversation, in order of appearance."""
    task = task_of(seed, task)
    rng = Random(f"{split} {task} {seed}")
    return [] if task == "talk" else _STORIES[task](world, world.scene(seed, split), rng, split)


# ---- pictures


def _look_story(world: World, scene: Scene, rng: Random, split: str) -> list[Step]:
    """One picture, now and then of more kinds of things than the world's scenes show."""
    if rng.random() < 0.25:
        changes = edits.chain(world, scene, rng, split, rng.choice((1, 2)))
        scene = changes[-1].after if changes else scene
    return [Step("shown", scene)]


def _draw_story(world: World, scene: Scene, rng: Random, split: str) -> list[Step]:
    if rng.random() < 0.1:
        return [Step("shown", scene), Step("like this", world.again(scene, rng.getrandbits(32), split))]
    steps = [Step("asked", scene)]
    while rng.random() < 0.3 and len(steps) < 3:
        steps.append(_next_drawing(world, steps[-1].scene, rng, split))
    return steps


def _next_drawing(world: World, scene: Scene, rng: Random, split: str) -> Step:
    chance = rng.random()
    if chance < 0.35:
        return Step("again", world.again(scene, rng.getrandbits(32), split))
    change = edits.edit(world, scene, rng, split, "recolor") if chance < 0.7 and len(groups(scene)) == 1 else None
    if change:
        return Step("recolored", change.after, change)
    return Step("asked", world.scene(rng.getrandbits(32), split))


def _edit_story(world: World, scene: Scene, rng: Random, split: str) -> list[Step]:
    first = Step("shown" if rng.random() < 0.7 else "asked", scene)
    length = rng.choices((1, 2, 3), (5, 3, 2))[0]
    return [first] + [Step("edit", change.after, change) for change in edits.chain(world, scene, rng, split, length)]


_STORIES = {"look": _look_story, "draw": _draw_story, "edit": _edit_story}


# ---- words


class _Chat:
    """Messages as they grow; a picture that the user shows comes with their next words."""

    def __init__(self, rng: Random, forms: str):
        self.rng, self.forms, self.messages = rng, forms, []
        self._shown: list[dict[str, Any]] = []

    def show(self, scene: Scene) -> None:
        self._shown = [_image(scene)]

    def say(self, words: str, answer: str | Scene) -> None:
        content = [*self._shown, _text(words)]
        self._shown = []
        reply = _image(answer) if isinstance(answer, Scene) else _text(answer)
        self.messages += [{"role": "user", "content": content}, {"role": "assistant", "content": [reply]}]

    def ask(self, scene: Scene, number: int) -> None:
        """So many questions about the picture, no two with the same meaning."""
        before, asked = None, set()
        for _ in range(3 * number):
            question = None
            if before and self.rng.random() < 0.35:
                question = questions.follow_up(scene, before, self.rng, self.forms)
            question = question or questions.ask(scene, self.rng, forms=self.forms)
            if question and question.meaning not in asked:
                self.say(question.text, question.answer)
                asked.add(question.meaning)
                before = question
            if len(asked) == number:
                return

    def small_talk(self, *topics: str) -> None:
        self.say(*talk.small_talk(self.rng, self.forms, self.rng.choice(topics) if topics else None))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


def _text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def _image(scene: Scene) -> dict[str, Any]:
    return {"type": "image", "image": scene}


def _tell_look(chat: _Chat, steps: list[Step]) -> None:
    if chat.chance(0.05):
        chat.small_talk("greeting", "how are you", "see")
    chat.show(steps[0].scene)
    chat.ask(steps[0].scene, chat.rng.choice(range(1, MOST_QUESTIONS + 1)))
    if chat.chance(0.08):
        chat.small_talk("thanks", "praise", "okay", "bye")


def _tell_draw(chat: _Chat, steps: list[Step]) -> None:
    if chat.chance(0.08):
        chat.small_talk()
    if chat.chance(0.05):
        chat.say(*requests.declined(chat.rng, chat.forms))
    for step in steps:
        _tell_step(chat, step)
        if step.how != "shown" and chat.chance(0.2):
            chat.ask(step.scene, chat.rng.choice((1, 2)))
    if chat.chance(0.08):
        chat.small_talk("thanks", "praise", "okay", "bye")


def _tell_edit(chat: _Chat, steps: list[Step]) -> None:
    for step in steps:
        _tell_step(chat, step)
        if chat.chance(0.15):
            refused = edits.no_edit(step.scene, chat.rng)
            chat.say(refused.words(chat.rng, chat.forms), refused.answer)
        if chat.chance(0.1):
            chat.ask(step.scene, 1)


def _tell_step(chat: _Chat, step: Step) -> None:
    rng, forms = chat.rng, chat.forms
    if step.how == "shown":
        chat.show(step.scene)
        return
    if step.how == "asked":
        words = requests.request(step.scene, rng, forms)
    elif step.how == "again":
        words = typed(requests.AGAIN[forms].sample(rng), rng)
    elif step.how == "like this":
        words = typed(requests.LIKE_THIS[forms].sample(rng), rng)
    elif step.how == "recolored":
        group = groups(step.scene)[0]
        words = typed(requests.RECOLORED[forms].sample(rng).format(color=group.color, it=group.them), rng)
    else:
        words = step.edit.words(rng, forms)
    chat.say(words, step.scene)


def _tell_talk(chat: _Chat, steps: list[Step]) -> None:
    for _ in range(chat.rng.choice((1, 1, 2, 3))):
        kind = chat.rng.random()
        if kind < 0.6:
            chat.small_talk()
        elif kind < 0.8:
            chat.say(*talk.without_picture(chat.rng, chat.forms))
        else:
            chat.say(*requests.declined(chat.rng, chat.forms))


_TELL = {"look": _tell_look, "draw": _tell_draw, "edit": _tell_edit, "talk": _tell_talk}
