"""The images GenEval's rules found wrong, with what was detected: one HTML file that needs no other."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from data_recipes.page import make_page, picture_source
from tokenizer.transform import load_image

from .rules import THRESHOLD

PER_TASK = 50
SIDE = 320  # pixels of a shown image
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem }
figure { margin: 0 } svg { width: 100%; background: #eee } figcaption small { color: #a00 }
rect { fill: none; stroke: #f0f; stroke-width: 2; vector-effect: non-scaling-stroke }
text { fill: #fff; stroke: #000; stroke-width: .25em; paint-order: stroke }
"""


def failures_page(folder: Path, title: str, rows: Sequence[dict]) -> str:
    """At most 50 images of each task, from `result_row`s."""
    wrong = [row for row in rows if not row["correct"]]
    sections = []
    for tag in dict.fromkeys(row["tag"] for row in rows):
        of_tag = [row for row in wrong if row["tag"] == tag]
        shown = "".join(figure(folder, row) for row in of_tag[:PER_TASK])
        count = f"{len(of_tag)} wrong of {sum(row['tag'] == tag for row in rows)}"
        note = f", the first {PER_TASK} shown" if len(of_tag) > PER_TASK else ""
        sections.append(f"<h2>{escape(tag)}: {count}{note}</h2><main>{shown}</main>")
    return make_page(title, STYLE, f"<h1>{escape(title)}</h1>{''.join(sections)}")


def figure(folder: Path, row: dict) -> str:
    """The image with boxes around what could count, or the reason alone if it cannot be read."""
    caption = f"<figcaption>{escape(row['prompt'])}<br><small>{escape(row['reason'])}</small></figcaption>"
    try:
        image = load_image(folder / row["filename"])
    except ValueError:
        return f"<figure>{caption}</figure>"
    width, height = image.size
    image.thumbnail((SIDE, SIDE))
    source = picture_source(image, "JPEG", quality=85)
    size = f'width="{width}" height="{height}"'
    boxes = [box(thing, width / 20) for thing in json.loads(row["details"]) if thing["score"] > THRESHOLD]
    view = f'<svg viewBox="0 0 {width} {height}"><image href="{source}" {size}/>{"".join(boxes)}</svg>'
    return f"<figure>{view}{caption}</figure>"


def box(thing: dict, font: float) -> str:
    left, top, right, bottom = thing["box"]
    place = f'x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"'
    label = escape(f"{thing.get('color', '')} {thing['cls']} {thing['score']:.2f}".strip())
    return f'<rect {place}/><text x="{left + 1}" y="{max(top, 0) + font}" font-size="{font:g}">{label}</text>'
