"""What a training sequence looks like, and where it carries loss: as a line for the log, and as a page."""

from collections.abc import Iterable
from html import escape
from itertools import groupby
from typing import NamedTuple

import torch
from PIL import Image

from data_recipes.page import make_page, picture_source
from mllm.text.processor import MllmProcessor
from mllm.text.templates import IGNORED, Sample
from tokenizer import ImageTokenizer
from tokenizer.transform import to_images

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
section { border-top: 1px solid #ccc; padding: .5rem 0; overflow-wrap: anywhere; white-space: pre-wrap }
small { color: #666; display: block } img { height: 6rem; vertical-align: middle; border: 4px solid transparent }
mark { background: #bfe8bf } img.loss { border-color: #2a2 }
"""


class Stretch(NamedTuple):
    """Text, or one image of so many `positions`, with or without loss."""

    has_loss: bool
    text: str = ""
    image: Image.Image | torch.Tensor | None = None
    positions: int = 0


def stretches(processor: MllmProcessor, sample: Sample) -> list[Stretch]:
    """A sample cut where its loss begins or ends, and around images, each followed by its positions' words, if any."""
    images = iter(zip(sample.images, sample.is_target, strict=True))
    pairs, found = zip(sample.ids, sample.labels, strict=True), []
    for is_image, run in groupby(pairs, lambda pair: pair[0] == processor.image_id):
        run = list(run)
        if is_image:
            image, is_target = next(images)
            found.append(Stretch(is_target, image=image, positions=len(run)))
            run = [(label, label) for _, label in run if label != IGNORED]
        for has_loss, part in groupby(run, lambda pair: pair[1] != IGNORED):
            text = processor.tokenizer.decode([id for id, _ in part], skip_special_tokens=False)
            found.append(Stretch(has_loss, text))
    return found


def preview_line(processor: MllmProcessor, sample: Sample) -> str:
    """In one line; what carries loss is between « and »."""
    words = []
    for has_loss, text, image, positions in stretches(processor, sample):
        shown = text.replace("\n", "\\n") if image is None else f"({positions} codes)"
        words.append(f"«{shown}»" if has_loss else shown)
    return " ".join(words)


def preview_page(
    processor: MllmProcessor, image_tokenizer: ImageTokenizer, samples: Iterable[tuple[str, Sample]], title: str
) -> str:
    """HTML that needs no other file, from (name, sample)."""
    sections = []
    for name, sample in samples:
        shown = "".join(_html(stretch, image_tokenizer) for stretch in stretches(processor, sample))
        sections.append(f"<section><small>{escape(name)}, {len(sample.ids)} tokens</small>{shown}</section>")
    legend = "<p><mark>Marked text</mark> and framed images carry loss.</p>"
    return make_page(title, STYLE, f"<h1>{escape(title)}</h1>{legend}{''.join(sections)}")


def _html(stretch: Stretch, image_tokenizer: ImageTokenizer) -> str:
    if stretch.image is None:
        return f"<mark>{escape(stretch.text)}</mark>" if stretch.has_loss else escape(stretch.text)
    source = picture_source(_picture(stretch.image, image_tokenizer))
    return f'<img{" class=loss" if stretch.has_loss else ""} src="{source}">'


def _picture(image: Image.Image | torch.Tensor, image_tokenizer: ImageTokenizer) -> Image.Image:
    if not torch.is_tensor(image):
        return image
    return to_images(image[None])[0] if image.is_floating_point() else image_tokenizer.decode(image[None].long())[0]
