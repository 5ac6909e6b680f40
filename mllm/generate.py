"""Generation: prefill, one step at a time, pick. Text and images come from the same stream and the same loop shape.

Shapes: B sequences, T positions, D width, S text vocabulary, V code entries, K sub-codebooks, L positions an image.
Under guidance a batch is doubled, [cond; uncond], and only `picker` knows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from .codes import CodebookEmbedding, Pick
from .model import MllmForConditionalGeneration
from .processor import MllmProcessor, as_codes
from .stream import Stream
from .templates import IGNORED, Sample

Messages = Sequence[dict[str, Any]]

CFG_SCALE = 3.0  # guidance of drawings, where a caller does not choose
CODE_CONTEXTS = ("exact", "published")


def filter_logits(logits_BV: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """-inf outside the `top_k` largest (0: all) and outside the smallest set that holds probability `top_p`."""
    if 0 < top_k < logits_BV.shape[-1]:
        lowest = logits_BV.topk(top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < lowest, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits_BV.sort(-1, descending=True)
        p = ordered.softmax(-1)
        # What comes before an entry decides, so the most likely one always stays.
        outside = (p.cumsum(-1) - p >= top_p).scatter(-1, order, p.cumsum(-1) - p >= top_p)
        logits_BV = logits_BV.masked_fill(outside, float("-inf"))
    return logits_BV


def sample(
    logits_BV: torch.Tensor,
    noise_BV: torch.Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> torch.Tensor:
    """-> ids_B, drawn from what `filter_logits` keeps by Gumbel `noise_BV`; temperature 0 is greedy.

    Nothing is sorted: the largest sum of logit and noise is a draw from all entries. One that the filters would drop
    shows that they drop all entries below it, too, and the largest of the others is next.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.float() / temperature
    noisy_BV = logits_BV + noise_BV
    if top_k == 0 and top_p == 1.0:
        return noisy_BV.argmax(-1)
    p_BV = filter_logits(logits_BV, top_k).softmax(-1) if top_p < 1.0 else None
    while True:
        ids_B1 = noisy_BV.argmax(-1, keepdim=True)
        least_B1 = logits_BV.gather(-1, ids_B1)
        above_BV = logits_BV > least_B1
        outside_B1 = above_BV.sum(-1, keepdim=True) >= (top_k or math.inf)
        if p_BV is not None:
            outside_B1 |= (p_BV * above_BV).sum(-1, keepdim=True) >= top_p
        if not outside_B1.any():
            return ids_B1[:, 0]
        noisy_BV = noisy_BV.masked_fill(outside_B1 & ~above_BV, float("-inf"))


def gumbel(generators: Sequence[torch.Generator], size: int, device: torch.device) -> torch.Tensor:
    """[B, size]: each row from its own generator, apart from its batch.

    Gumbel's argmax in place of multinomial: it needs no sum over the row, whose rounding would depend on the batch.
    """
    uniform = torch.stack([torch.rand(size, generator=generator) for generator in generators])
    return -torch.log(-torch.log(uniform.clamp_min(1e-20).to(device)))


def picker(cfg_scale: float, generators: Sequence[torch.Generator], num_codebooks: int = 1, **sampling: Any) -> Pick:
    """The one place of classifier-free guidance (arXiv 2207.12598): logits = u + scale * (c - u); both halves get the
    same ids. At scale 1 the batch is not doubled and this only samples. A position's noise is drawn at once."""
    noise: torch.Tensor | None = None

    def pick(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
        nonlocal noise
        if cfg_scale != 1.0:
            cond, uncond = logits_BV.float().chunk(2)
            logits_BV = torch.lerp(uncond, cond, cfg_scale)
        V = logits_BV.shape[-1]
        if k == 0 and sampling.get("temperature", 1.0) != 0:
            noise = gumbel(generators, num_codebooks * V, logits_BV.device)
        ids_B = sample(logits_BV, None if noise is None else noise[:, k * V : (k + 1) * V], **sampling)
        return ids_B if cfg_scale == 1.0 else ids_B.repeat(2)

    return pick


def check_sampling(
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    code_context: str = "exact",
    **_: Any,
) -> None:
    """Raises ValueError, naming the option, its value and what it may be."""
    if code_context not in CODE_CONTEXTS:
        raise ValueError(f"unknown code_context {code_context!r}; known: {', '.join(CODE_CONTEXTS)}")
    # `not x >= 0` is true of NaN, too.
    if not 0 <= temperature < math.inf or 0 < temperature < 1e-3:
        raise ValueError(f"temperature {temperature} is neither 0 (greedy) nor at least 0.001; 1 is the model's own")
    if not 1 <= cfg_scale < math.inf:
        raise ValueError(f"cfg_scale {cfg_scale} is below 1 or no number; 1 is no guidance")
    if top_k < 0:
        raise ValueError(f"top_k {top_k} is negative; 0 keeps all entries")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is outside (0, 1]; 1 keeps all entries")


def code_steps(stream: Stream, positions: int, pick: Pick, code_context: str = "exact") -> Iterator[torch.Tensor]:
    """The codes_BK of each position, fed back to the stream before the next.

    "exact" embeds a position in the context of the earlier ones, as in training. "published" embeds it alone, as
    UniTok's released generation does: a difference where the embedding attends (`CodebookEmbedding`).
    """
    cache = {} if code_context == "exact" else None
    for position in range(positions):
        codes_BK = stream.model.code_head.sample(stream.h_BD, pick)
        yield codes_BK
        if position + 1 < positions:
            stream.feed(stream.model.code_embed(codes_BK[:, None], cache)[:, 0])


@torch.no_grad()
def sample_codes(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    samples: Sequence[Sample],
    generators: Sequence[torch.Generator],
    cfg_scale: float = 1.0,
    progress: Callable[[int], None] | None = None,
    code_context: str = "exact",
    **sampling: Any,
) -> torch.Tensor:
    """Sequences that end with the begin-of-image id -> codes_NLK of the images that follow, one each."""
    check_sampling(cfg_scale, code_context=code_context, **sampling)
    if code_context == "published" and not isinstance(model.code_embed, CodebookEmbedding):
        raise ValueError("code_context 'published' is for converted UniTok models: leave it at 'exact'")
    rows = list(samples)
    if cfg_scale != 1.0:
        rows += [processor.encode_drawing(None)] * len(samples)
    pick = picker(cfg_scale, generators, model.config.image_tokenizer["num_codebooks"], **sampling)
    stream, codes = Stream(model, rows, processor, room=processor.num_positions), []
    for codes_BK in code_steps(stream, processor.num_positions, pick, code_context):
        codes.append(codes_BK)
        if progress:
            progress(len(codes))
    return torch.stack(codes, 1)[: len(samples)]


def generate_images(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    prompts: Sequence[str],
    seeds: Sequence[int] | int = 0,
    cfg_scale: float = CFG_SCALE,
    progress: Callable[[int], None] | None = None,
    code_context: str = "exact",
    **sampling: Any,
) -> list[Image.Image]:
    """One image a prompt, as one batch. An image depends on its prompt and seed, not on the batch around it.

    `seeds` is one for each prompt, or the first of a row. `sampling`: temperature, top_k, top_p. `progress` is called
    with the number of positions done, of `processor.num_positions`. `code_context` as in `code_steps`.
    """
    starts = [start_drawing(model, processor, prompt) for prompt in prompts]
    seeds = list(range(seeds, seeds + len(prompts))) if isinstance(seeds, int) else list(seeds)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds")
    if not prompts:
        return []
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    samples = plan_drawings(model, processor, starts, generators, **sampling)
    codes_NLK = sample_codes(model, processor, samples, generators, cfg_scale, progress, code_context, **sampling)
    # One by one: a batch of another size would round some pixels differently.
    return [model.decode_image_tokens(codes_LK[None])[0] for codes_LK in codes_NLK]


@torch.no_grad()
def plan_drawings(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    starts: Sequence[Sample],
    generators: Sequence[torch.Generator],
    temperature: float = 1.0,
    top_p: float = 1.0,
    **_: Any,
) -> list[Sample]:
    """What `start_drawing` gave, up to the begin of the image: with the plan, where the model writes one."""
    limit = model.config.plan_length
    if not limit:
        return list(starts)
    pick = picker(1.0, generators, temperature=temperature, top_p=top_p)
    plans = write(Stream(model, starts, processor, room=limit), {processor.boi_id}, limit, pick)
    return [
        Sample([*start.ids, *plan, processor.boi_id], [IGNORED] * (len(start.ids) + len(plan) + 1))
        for start, plan in zip(starts, plans, strict=True)
    ]


def start_drawing(model: MllmForConditionalGeneration, processor: MllmProcessor, prompt: str) -> Sample:
    """What is read of a prompt before the model plans or draws. Raises ValueError for an empty prompt, and for one that
    is too long."""
    prompt, plans = check_prompt(model, prompt), model.config.plan_length
    sample = processor.encode_planning(prompt) if plans else processor.encode_drawing(prompt)
    check_length(model, processor, sample, plans + processor.num_positions)
    return sample


def check_prompt(model: MllmForConditionalGeneration, prompt: str) -> str:
    """The prompt without spaces around it. Raises ValueError for an empty one."""
    if not prompt.strip():
        raise ValueError("empty prompt: say what to draw")
    return prompt.strip()


def check_length(model: MllmForConditionalGeneration, processor: MllmProcessor, sample: Sample, room: int = 1) -> None:
    """Raises ValueError when a sequence and `room` more positions exceed the backbone's context."""
    limit = model.config.text_config.max_position_embeddings
    if len(sample.ids) + room > limit:
        raise ValueError(
            f"{len(sample.ids)} positions of text and images and {room} to generate, but the model reads {limit}: "
            "shorten the text, the chat or what is to be generated"
        )


def text_steps(stream: Stream, stop_ids: set[int], limit: int, pick: Pick) -> Iterator[list[int | None]]:
    """At most `limit` steps of text for the rows of a stream: the new id of each, None once it has stopped.

    A row stops with an id of `stop_ids`, which is still reported.
    """
    alive = [True] * len(stream.h_BD)
    for step in range(limit):
        ids_B = pick(stream.model.text_logits(stream.h_BD), 0)
        yield [id if lives else None for id, lives in zip(ids_B.tolist(), alive, strict=True)]
        alive = [lives and id not in stop_ids for id, lives in zip(ids_B.tolist(), alive, strict=True)]
        if not any(alive):
            return
        if step + 1 < limit:
            stream.feed(stream.model.get_input_embeddings()(ids_B))


def write(stream: Stream, stop_ids: set[int], limit: int, pick: Pick) -> list[list[int]]:
    """The ids of each row's text, at most `limit`, up to one of `stop_ids`."""
    texts: list[list[int]] = [[] for _ in stream.h_BD]
    for ids in text_steps(stream, stop_ids, limit, pick):
        for text, id in zip(texts, ids, strict=True):
            if id is not None and id not in stop_ids:
                text.append(id)
    return texts


class Spelled:
    """Ids that become text one by one."""

    def __init__(self, processor: MllmProcessor):
        self.processor, self.ids, self.text = processor, [], ""

    def add(self, id: int) -> str:
        """The text that this id completes; a character of several bytes comes once it is whole."""
        self.ids.append(id)
        before, text = self.text, self.processor.decode(self.ids)
        if text.endswith("\ufffd"):
            return ""
        self.text = text
        return text[len(before) :]


@torch.no_grad()
def generate_texts(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    conversations: Sequence[Messages],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """The answers to several chats as one batch, text only: an answer ends where the model would begin to draw."""
    check_sampling(temperature=temperature, top_p=top_p)
    if not conversations:
        return []
    samples = [processor.encode(messages) for messages in conversations]
    for one in samples:
        check_length(model, processor, one, max_new_tokens)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(samples))]
    pick = picker(1.0, generators, temperature=temperature, top_p=top_p)
    stream = Stream(model, samples, processor, room=max_new_tokens)
    stop_ids = {processor.eos_id, processor.boi_id}
    return [processor.decode(ids) for ids in write(stream, stop_ids, max_new_tokens, pick)]


@torch.no_grad()
def generate_text(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    messages: Messages,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    drawing: dict[str, Any] | None = None,
) -> Iterator[str | Image.Image]:
    """The answer to a chat, piece by piece as it comes: text, and PIL images where the model decides to draw.

    `drawing` are the options of `sample_codes` for such images (cfg_scale, temperature, top_k, top_p, code_context).
    """
    check_sampling(temperature=temperature, top_p=top_p)
    sample = processor.encode(messages)
    if sample.images:
        sample.images = list(as_codes(sample.images, model.image_tokenizer))
    pick = picker(1.0, [torch.Generator().manual_seed(seed)], temperature=temperature, top_p=top_p)
    draw_generator = torch.Generator().manual_seed(seed)
    while max_new_tokens > 0:
        check_length(model, processor, sample, max_new_tokens)
        stream, spelled = Stream(model, [sample], processor, room=max_new_tokens), Spelled(processor)
        for [id] in text_steps(stream, {processor.eos_id, processor.boi_id}, max_new_tokens, pick):
            yield from filter(None, [spelled.add(id)])
        sample.add(spelled.ids)
        max_new_tokens -= len(spelled.ids)
        if spelled.ids[-1] != processor.boi_id:
            return
        check_length(model, processor, sample, processor.num_positions)
        options = {"cfg_scale": CFG_SCALE, **(drawing or {})}
        codes_NLK = sample_codes(model, processor, [sample], [draw_generator], **options)
        yield model.decode_image_tokens(codes_NLK)[0]
        sample.add([processor.image_id] * processor.num_positions + [processor.eoi_id])
        sample.images.append(codes_NLK[0])
