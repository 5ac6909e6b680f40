"""A model at work: it answers questions about held-out scenes, as people put them, and draws prompts of GenEval; a
table and a page."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from PIL import Image
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from data_recipes.files import whole, write_whole
from data_recipes.page import make_page
from data_recipes.scenes.language.questions import KINDS, ask
from data_recipes.scenes.world import SKILLS, World
from mllm import Mllm, Processor, generate_images, generate_texts

from .models import load_model
from .pieces import drawing_bar
from .scenes.language import Asked as AskedOfScene
from .scenes.language import right

QUESTIONS_PER_IMAGE = 4
CANDIDATES = 8  # drawings of a prompt, of which the model keeps one
# Prompts of GenEval, two for each of its skills.
PROMPTS = {
    "a photo of a giraffe": "one object",
    "a photo of a clock": "one object",
    "a photo of a zebra and a bed": "two objects",
    "a photo of a horse and a train": "two objects",
    "a photo of three hot dogs": "counting",
    "a photo of four boats": "counting",
    "a photo of a pink skateboard": "color",
    "a photo of a green couch": "color",
    "a photo of a dog right of a teddy bear": "position",
    "a photo of a bear above a clock": "position",
    "a photo of a red umbrella and a blue couch": "two colors",
    "a photo of a white dog and a blue potted plant": "two colors",
}


@dataclass
class Asked:
    """A question about a scene, and the model's answer."""

    of: AskedOfScene
    answer: str = ""

    @property
    def question(self) -> str:
        return self.of.question.text

    @property
    def truth(self) -> str:
        """One true answer of many."""
        return self.of.question.answer

    @property
    def right(self) -> bool:
        return right(self.of.scene, self.of.question.meaning, self.answer)


@dataclass
class Example:
    """An image with what is asked about it; `file` is its name in the folder of the page."""

    file: str
    image: Image.Image
    asked: list[Asked]


@dataclass
class Drawing:
    file: str
    image: Image.Image
    prompt: str


@dataclass
class Report:
    """What the page shows; times in seconds."""

    model: str
    model_hash: str
    examples: list[Example]
    drawings: list[Drawing]
    loading: float
    answering: float
    drawing: float

    @property
    def asked(self) -> list[Asked]:
        return [asked for example in self.examples for asked in example.asked]

    @property
    def right(self) -> int:
        return sum(asked.right for asked in self.asked)


# ---- work


def make_examples(seed: int) -> list[Example]:
    """A held-out scene of each skill, and questions of different kinds about it."""
    world, examples = World(), []
    for number, skill in enumerate(SKILLS, 1):
        scene, rng = world.scene(seed, "held_out", skill), random.Random(f"{skill} {seed}")
        found = [AskedOfScene(seed, kind, scene, ask(scene, rng, kind)) for kind in KINDS]
        found = [one for one in found if one.question]
        chosen = rng.sample(found, min(len(found), QUESTIONS_PER_IMAGE))
        examples.append(Example(f"example_{number:02d}.png", world.render(scene), list(map(Asked, chosen))))
    return examples


def answer_all(model: Mllm, processor: Processor, examples: Sequence[Example]) -> None:
    """Fill in the answers; each question is asked in a chat of its own, all as one batch."""

    def chat(image: Image.Image, question: str) -> list[dict]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    chats = [chat(example.image, asked.question) for example in examples for asked in example.asked]
    answers = iter(generate_texts(model, processor, chats))
    for example in examples:
        for asked in example.asked:
            asked.answer = next(answers).strip()


def draw_all(model: Mllm, processor: Processor, seed: int, cfg_scale: float) -> list[Drawing]:
    """One drawing a prompt, the model's choice among some."""
    images = []
    with drawing_bar(len(PROMPTS)) as bar:
        for index, prompt in enumerate(PROMPTS):
            images += generate_images(
                model,
                processor,
                [prompt],
                seeds=seed + index,
                cfg_scale=cfg_scale,
                candidates=CANDIDATES,
                progress=lambda done, index=index: bar(index + done / processor.num_positions),
            )
    return [
        Drawing(f"drawing_{number:02d}.png", image, prompt)
        for number, (prompt, image) in enumerate(zip(PROMPTS, images, strict=True), 1)
    ]


def run_demo(name: str, seed: int, cfg_scale: float, out: Path) -> None:
    """Of a model by name or folder: a table on the terminal, and pictures and index.html in `out`."""
    examples = make_examples(seed)
    start = time.monotonic()
    model, processor = load_model(name)
    loaded = time.monotonic()
    answer_all(model, processor, examples)
    answered = time.monotonic()
    drawings = draw_all(model, processor, seed, cfg_scale)
    drawn = time.monotonic()
    times = (loaded - start, answered - loaded, drawn - answered)
    report = Report(name, model.weights_hash(), examples, drawings, *times)
    for picture in (*report.examples, *report.drawings):
        with whole(out / picture.file) as part:
            picture.image.save(part, "PNG")
    write_whole(out / "index.html", report_page(report))
    print_report(report, out)


# ---- what is printed


def print_report(report: Report, out: Path) -> None:
    console = Console(highlight=False)
    table = Table("image", "question", "answer", "", title="Questions", title_justify="left")
    for example in report.examples:
        for place, asked in enumerate(example.asked):
            mark = "[green]right[/green]" if asked.right else f"[red]wrong[/red]; right: {asked.truth}"
            table.add_row("" if place else example.file, asked.question, printable(asked.answer), mark)
    console.print(table)
    table = Table("image", "prompt", "skill", title="Drawings", title_justify="left")
    for drawing in report.drawings:
        table.add_row(drawing.file, drawing.prompt, PROMPTS[drawing.prompt])
    console.print(table)
    console.print(f"{report.right} of {len(report.asked)} answers right; {times_text(report)}", soft_wrap=True)
    console.print(f"images and page are in {out}: see {out / 'index.html'}", soft_wrap=True)


def printable(text: str) -> str:
    """Without rich's markup and without control characters, which an untrained model may utter."""
    return escape_markup("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))


def times_text(report: Report) -> str:
    return (
        f"model loaded in {report.loading:.1f} s, "
        f"{len(report.asked)} questions answered in {report.answering:.1f} s, "
        f"{len(report.drawings)} images drawn in {report.drawing:.1f} s, each chosen by the model among {CANDIDATES}"
    )


# ---- the page

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f6670; --line: #dfe2e6;
  --card: #fff; --ground: #f5f6f8; --right: #17734a; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a0a7b1; --line: #33373d;
  --card: #1e2125; --ground: #141619; --right: #6cc898; --wrong: #f28b82; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.25rem; }
p { margin: .25rem 0 1rem; color: var(--soft); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.drawings { grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5rem), 1fr)); }
.card { margin: 0; overflow: hidden; border: 1px solid var(--line);
  border-radius: .75rem; background: var(--card); }
.card img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
.card dl, .card figcaption { margin: 0; padding: .75rem 1rem 1rem; overflow-wrap: anywhere; }
dt { color: var(--soft); }
dd { margin: 0 0 .5rem; }
dd:last-child { margin: 0; }
.right { color: var(--right); white-space: nowrap; }
.wrong { color: var(--wrong); }
small { color: var(--soft); }
"""
BODY = Template("""\
<main>
<h1>What &ldquo;$model&rdquo; sees and draws</h1>
<p>$summary.</p>
<h2>Questions about images</h2>
<p>$right of $asked answers are right.
The images are held out: their combinations of things, colors or places are in no training image.</p>
<div class="cards">
$examples
</div>
<h2>Drawings</h2>
<p>Prompts of the GenEval benchmark, of $candidates tries each the one that the model itself finds to fit best.</p>
<div class="cards drawings">
$drawings
</div>
<p><br><small>Model $model, weights $model_hash</small></p>
</main>
""")


def report_page(report: Report) -> str:
    """HTML that needs nothing but the images beside it."""
    summary = times_text(report)
    body = BODY.substitute(
        model=escape(Path(report.model).name),
        model_hash=report.model_hash,
        summary=summary[0].upper() + summary[1:],
        right=report.right,
        asked=len(report.asked),
        candidates=CANDIDATES,
        examples="\n".join(map(example_card, report.examples)),
        drawings="\n".join(map(drawing_card, report.drawings)),
    )
    return make_page(f"{Path(report.model).name}: what it sees and draws", STYLE, body)


def example_card(example: Example) -> str:
    lines = "".join(f"<dt>{escape(asked.question)}</dt><dd>{marked(asked)}</dd>" for asked in example.asked)
    return f'<article class="card"><img src="{example.file}" alt="example image"><dl>{lines}</dl></article>'


def marked(asked: Asked) -> str:
    if asked.right:
        return f'{escape(asked.answer)} <span class="right">&#10003; right</span>'
    return f'{escape(asked.answer)} <span class="wrong">&#10007; wrong; right: {escape(asked.truth)}</span>'


def drawing_card(drawing: Drawing) -> str:
    prompt = escape(drawing.prompt)
    return (
        f'<figure class="card"><img src="{drawing.file}" alt="{prompt}, as drawn by the model">'
        f"<figcaption>{prompt}<br><small>{PROMPTS[drawing.prompt]}</small></figcaption></figure>"
    )
