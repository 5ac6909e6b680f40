"""The driver of a function call: programs run in the caller's thread until all have ended.

Shapes: N images, L positions an image, K sub-codebooks.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from tokenizer.transform import to_rgb

from ..model import MllmForConditionalGeneration
from ..text.processor import MllmProcessor
from ..text.templates import IGNORED, Sample, as_image
from .batch import Batch
from .options import DrawingOptions, EditingOptions, Sampling
from .program import (
    Chat,
    Drawing,
    Edit,
    Messages,
    Piece,
    Preview,
    Program,
    Track,
    check_drawing,
    draw_steps,
    plan_steps,
    unconditional,
)

DEFAULT_DRAWING = DrawingOptions()
Picture: TypeAlias = Image.Image | str | Path
Pictures: TypeAlias = Picture | Sequence[Picture]


@torch.no_grad()
def run(batch: Batch, programs: Sequence[Program]) -> Iterator[None]:
    """Run programs to their ends; yields after each step. Raises the error of a request or a step."""
    running = {program: set(program.tracks) for program in programs}
    owners = {track: program for program in programs for track in program.tracks}
    batch.enter(owners)
    while running:
        for track in batch.step():
            program = owners.pop(track)
            running[program].discard(track)
            if running[program]:
                continue
            following = program.resume()
            if following:
                running[program] = set(following)
                owners |= dict.fromkeys(following, program)
                batch.enter(following)
            else:
                del running[program]
        yield


def run_tracks(batch: Batch, tracks: Sequence[Track], told: Callable[[], Any] = lambda: None) -> list[Any]:
    """Run tracks to their ends and return their results. `told` is called after each step. Raises the first error of a
    track."""
    batch.enter(tracks)
    while batch.tracks:
        for track in batch.step():
            if track.error:
                raise track.error
        told()
    return [track.result for track in tracks]


def generate_images(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    prompts: Sequence[str] | str,
    seeds: Sequence[int] | int = 0,
    progress: Callable[[int], Any] | None = None,
    kernels: str = "auto",
    **options: Any,
) -> list[Image.Image]:
    """One image a prompt, as one batch; a string is one prompt. An image depends on its prompt and seed, not on the
    batch around it.

    `seeds` has one seed for each prompt, or is the first of consecutive seeds. `progress` is called with the number of
    positions drawn so far, of `processor.num_positions`. `options` are those of `DrawingOptions`: cfg_scale,
    temperature, candidates and others. `kernels` "eager" runs operation by operation and gives the same images. Raises
    ValueError for prompts or options that cannot be drawn.
    """
    DrawingOptions(**options)  # also where there are no prompts
    prompts = [prompts] if isinstance(prompts, str) else prompts
    seeds = _seeds(seeds, prompts)
    requests = [Drawing(prompt, seed, **options) for prompt, seed in zip(prompts, seeds, strict=True)]
    return _images(model, processor, requests, progress, kernels)


def edit_images(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    images: Sequence[Pictures] | Picture,
    prompts: Sequence[str] | str,
    masks: Sequence[Image.Image | None] | Image.Image | None = None,
    seeds: Sequence[int] | int = 0,
    progress: Callable[[int], Any] | None = None,
    kernels: str = "auto",
    **options: Any,
) -> list[Image.Image]:
    """Each picture as its prompt changes it, as one batch. A result depends on its picture, prompt, mask and seed, not
    on the batch around it.

    An element of `images` is a picture (PIL or path), or a list of several, of which the first is changed; a picture
    and a string are a batch of one. `Edit` explains masks, the size of a result, and when a picture comes back as it
    was, with words in `info["answer"]`. `options` are those of `EditingOptions`, the rest is as in `generate_images`.
    Raises ValueError for what cannot be edited.
    """
    EditingOptions(**options)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    images = [images] if isinstance(images, Picture) else images
    masks = [None] * len(prompts) if masks is None else [masks] if isinstance(masks, Image.Image) else masks
    for name, given in (("images", images), ("masks", masks)):
        if len(given) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(given)} {name}: give one for each")
    pictures = [[one] if isinstance(one, Picture) else one for one in images]
    loaded = [[to_rgb(as_image(picture)) for picture in several] for several in pictures]
    each = zip(loaded, prompts, masks, _seeds(seeds, prompts), strict=True)
    return _images(model, processor, [Edit(*one, **options) for one in each], progress, kernels)


def _seeds(seeds: Sequence[int] | int, prompts: Sequence[str]) -> Sequence[int]:
    seeds = range(seeds, seeds + len(prompts)) if isinstance(seeds, int) else seeds
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds")
    return seeds


def _images(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    requests: Sequence[Drawing | Edit],
    progress: Callable[[int], Any] | None,
    kernels: str,
) -> list[Image.Image]:
    """The image of each request, as one batch."""
    images: list[list[Image.Image]] = [[] for _ in requests]
    with torch.no_grad():
        programs = [
            Program(model, processor, request, into.append) for request, into in zip(requests, images, strict=True)
        ]
    done = 0
    for _ in run(Batch(model, processor, kernels), programs):
        now = min(program.positions for program in programs)
        if progress and now != done:
            progress(now)
        done = now
    return [image for [image] in images]


def generate_texts(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    conversations: Sequence[Messages] | Messages,
    max_new_tokens: int = 64,
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> list[str]:
    """The answers to several chats as one batch, text only: an answer ends where the model would begin to draw. One
    chat alone is a batch of one. `options` are those of `Sampling`, and `stop`, strings before which an answer ends.
    Raises ValueError for chats that cannot be read."""
    if isinstance(conversations, str) or conversations and isinstance(conversations[0], dict):
        conversations = [conversations]
    seeds = range(len(conversations)) if seeds is None else seeds
    with torch.no_grad():
        programs = [
            Program(model, processor, Chat(messages, max_new_tokens, seed, None, **options), None)
            for messages, seed in zip(conversations, seeds, strict=True)
        ]
    for _ in run(Batch(model, processor), programs):
        pass
    return [program.text for program in programs]


def generate_text(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    messages: Messages,
    max_new_tokens: int = 64,
    seed: int = 0,
    drawing: DrawingOptions | None = DEFAULT_DRAWING,
    **options: Any,
) -> Iterator[str | Image.Image | Preview]:
    """The answer to a chat, piece by piece as it comes: text, and PIL images where the model decides to draw.

    `drawing` says how it draws; with None, the answer ends where an image would begin. `options` are those of
    `Sampling`, `stop` (strings before which the answer ends) and `previews` (how many come before each image). Raises
    ValueError for a chat that cannot be read."""
    pieces: deque[Piece] = deque()
    with torch.no_grad():
        chat = Chat(messages, max_new_tokens, seed, drawing, **options)
        program = Program(model, processor, chat, pieces.append)
    for _ in run(Batch(model, processor), [program]):
        while pieces:
            if (piece := pieces.popleft()) != "":
                yield piece


def plan_drawings(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    starts: Sequence[Sample],
    generators: Sequence[torch.Generator],
    **options: Any,
) -> list[Sample]:
    """Continue the sequences of `start_drawing` up to the begin of the image, with a plan if the model writes plans.
    `options` are those of `Sampling`."""
    sampling, limit = Sampling(**options), model.config.plan_length
    if not limit:
        return list(starts)
    tracks = [
        Track(start, lambda _: plan_steps(model, processor, sampling), generator, limit)
        for start, generator in zip(starts, generators, strict=True)
    ]
    with torch.no_grad():
        plans = run_tracks(Batch(model, processor), tracks)
    return [
        Sample([*start.ids, *plan, processor.boi_id], [IGNORED] * (len(start.ids) + len(plan) + 1))
        for start, plan in zip(starts, plans, strict=True)
    ]


def sample_codes(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    samples: Sequence[Sample],
    generators: Sequence[torch.Generator],
    progress: Callable[[int], Any] | None = None,
    kernels: str = "auto",
    **options: Any,
) -> torch.Tensor:
    """Sequences that end with the begin-of-image id -> codes_NLK, one image for each. `options` are those of
    `DrawingOptions`."""
    drawing, L = DrawingOptions(**options), processor.num_positions
    check_drawing(model, drawing)
    rest = unconditional(processor, drawing)
    tracks = [
        Track(sample, lambda track: draw_steps(track, model.order, L), generator, L, drawing, unconditional=rest)
        for sample, generator in zip(samples, generators, strict=True)
    ]
    told = (lambda: progress(len(tracks[0].codes))) if progress else (lambda: None)
    with torch.no_grad():
        return torch.stack(run_tracks(Batch(model, processor, kernels), tracks, told))
