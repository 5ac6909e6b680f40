"""Generation: prefill, one step at a time, pick. Text and images come from the same stream and the same loop shape.

Shapes: B sequences, T positions, D width, S text vocabulary, V code entries, K sub-codebooks, L positions an image.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from .codes import CodebookEmbedding
from .model import MllmForConditionalGeneration
from .processor import MllmProcessor, as_codes
from .sampling import Pick, Picker, check_chosen, check_sampling, may_ask
from .stream import Stream, check_length
from .templates import IGNORED, Sample
from .verify import best, check_readable

Messages = Sequence[dict[str, Any]] | str  # a string is one question

# Guidance and temperature of drawings, where a caller does not choose: the best of a search with `scenes`.
CFG_SCALE = 2.0
DRAWING_TEMPERATURE = 0.5


def code_steps(
    stream: Stream, positions: int, pick: Pick, code_context: str = "exact", images: int | None = None
) -> Iterator[torch.Tensor]:
    """The codes_BK of each position, fed back to the stream before the next.

    "exact" embeds a position in the context of the earlier ones, as in training. "published" embeds it alone, as
    UniTok's released generation does: a difference where the embedding attends (`CodebookEmbedding`). Of the rows, the
    first `images` (None: all) are embedded; the rest, which may come and go, are their other halves under guidance.
    """
    cache = {} if code_context == "exact" else None
    for position in range(positions):
        codes_BK = stream.draw(pick)
        if may_ask(codes_BK.device):
            check_chosen(int(codes_BK.min()))
        yield codes_BK
        if position + 1 < positions:
            codes_N1K = codes_BK[:images, None].clamp(min=0)  # where nobody may ask, `sample_codes` does at the end
            x_ND = stream.model.code_embed(codes_N1K, cache, compile=stream.compile)[:, 0]
            stream.feed(x_ND.repeat(len(stream.h_BD) // len(x_ND), 1))


def guide(
    stream: Stream, pick: Picker, codes: Sequence[torch.Tensor], cfg_scale: float, part: tuple[float, float]
) -> None:
    """Let the stream have its unconditional halves where the next position lies in this part of an image (0 to 1),
    and only there. `codes`: those so far, each [N, K], of which the last is not yet fed."""
    N, processor = len(codes[0]), stream.processor
    first, end = (round(processor.num_positions * x) for x in part)
    wanted, guided = cfg_scale != 1.0 and first <= len(codes) < end, len(stream.h_BD) > N
    if wanted and not guided:
        halves = [processor.encode_drawing(None) for _ in range(N)]
        for half, codes_lK in zip(halves, torch.stack(codes, 1)[:, :-1], strict=True):
            if len(codes_lK):
                half.add([processor.image_id] * len(codes_lK))
                half.images.append(codes_lK)
        stream.add(halves)
    elif guided and not wanted:
        for row in reversed(range(N, 2 * N)):
            stream.remove(row)
    pick.cfg_scale = cfg_scale if wanted else 1.0


@torch.no_grad()
def sample_codes(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    samples: Sequence[Sample],
    generators: Sequence[torch.Generator],
    cfg_scale: float = 1.0,
    progress: Callable[[int], None] | None = None,
    code_context: str = "exact",
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    compile: bool = True,
    **sampling: Any,
) -> torch.Tensor:
    """Sequences that end with the begin-of-image id -> codes_NLK of the images that follow, one each. Raises ValueError
    for options that cannot be, and for logits that are not finite.

    Guidance is for the positions in `cfg_interval`, a part of the image (arXiv 2404.07724); outside, it costs nothing.
    """
    check_sampling(cfg_scale, code_context=code_context, cfg_interval=cfg_interval, **sampling)
    if code_context == "published" and not isinstance(model.code_embed, CodebookEmbedding):
        raise ValueError("code_context 'published' is for converted UniTok models: leave it at 'exact'")
    if code_context == "published" and cfg_interval[0] > 0:
        raise ValueError("code_context 'published' needs guidance from the first position: let cfg_interval begin at 0")
    rows = list(samples)
    guided = cfg_scale != 1.0 and round(processor.num_positions * cfg_interval[0]) == 0
    if guided:
        rows += [processor.encode_drawing(None)] * len(samples)
    K = model.config.image_tokenizer["num_codebooks"]
    pick = Picker(cfg_scale if guided else 1.0, generators, K, **sampling)
    stream, codes = Stream(model, rows, processor, room=processor.num_positions, compile=compile), []
    for codes_BK in code_steps(stream, processor.num_positions, pick, code_context, len(samples)):
        codes.append(codes_BK[: len(samples)])
        guide(stream, pick, codes, cfg_scale, cfg_interval)
        if progress:
            progress(len(codes))
    codes_NLK = torch.stack(codes, 1)
    check_chosen(int(codes_NLK.min()))
    return codes_NLK


def generate_images(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    prompts: Sequence[str] | str,
    seeds: Sequence[int] | int = 0,
    cfg_scale: float = CFG_SCALE,
    progress: Callable[[int], None] | None = None,
    candidates: int = 1,
    temperature: float = DRAWING_TEMPERATURE,
    **options: Any,
) -> list[Image.Image]:
    """One image a prompt, as one batch; a string is one prompt. An image depends on its prompt and seed, not on the
    batch around it.

    `seeds` is one for each prompt, or the first of a row. Of so many `candidates`, the first of which is the image
    without any others, the model keeps the one that, read by itself, fits the prompt best (`verify.fit`). `progress` is
    called with the number of positions done, of `processor.num_positions`. `options` of `sample_codes`: top_k,
    top_p, cfg_interval, code_context, and compile (False: operation by operation, to the same codes).
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    options["temperature"] = temperature
    check_sampling(cfg_scale, candidates=candidates, **options)
    begun = [start_drawing(model, processor, prompt, candidates) for prompt in prompts]
    starts = [start for start in begun for _ in range(candidates)]
    seeds = list(range(seeds, seeds + len(prompts))) if isinstance(seeds, int) else list(seeds)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds")
    if not prompts:
        return []
    generators = [generator for seed in seeds for generator in candidate_generators(seed, candidates)]
    samples = plan_drawings(model, processor, starts, generators, **options)
    codes_NLK = sample_codes(model, processor, samples, generators, cfg_scale, progress, **options)
    if candidates > 1:
        codes_NLK = best(model, processor, prompts, codes_NLK)
    # One by one: a batch of another size would round some pixels differently.
    return [model.decode_image_tokens(codes_LK[None])[0] for codes_LK in codes_NLK]


def candidate_generators(seed: int, count: int) -> list[torch.Generator]:
    """Of a seed: its own, and more, which are the first ones of any larger count, too."""
    more = torch.randint(2**63 - 1, (count - 1,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [torch.Generator().manual_seed(one) for one in (seed, *more)]


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
    """What `start_drawing` gave, up to the begin of the image: with the plan, where the model writes one. Raises
    ValueError as `check_sampling`."""
    check_sampling(temperature=temperature, top_p=top_p)
    limit = model.config.plan_length
    if not limit:
        return list(starts)
    pick = Picker(1.0, generators, temperature=temperature, top_p=top_p)
    plans = write(Stream(model, starts, processor, room=limit), {processor.boi_id}, limit, pick)
    return [
        Sample([*start.ids, *plan, processor.boi_id], [IGNORED] * (len(start.ids) + len(plan) + 1))
        for start, plan in zip(starts, plans, strict=True)
    ]


def start_drawing(
    model: MllmForConditionalGeneration, processor: MllmProcessor, prompt: str, candidates: int = 1
) -> Sample:
    """What is read of a prompt before the model plans or draws. Raises ValueError for an empty prompt, and for one that
    is too long to be drawn, or to choose among `candidates`."""
    prompt, plans = check_prompt(model, prompt), model.config.plan_length
    sample = processor.encode_planning(prompt) if plans else processor.encode_drawing(prompt)
    check_length(model, processor, sample, plans + processor.num_positions)
    if candidates > 1:
        check_readable(model, processor, prompt)
    return sample


def check_prompt(model: MllmForConditionalGeneration, prompt: str) -> str:
    """The prompt without spaces around it. Raises ValueError for an empty one."""
    if not prompt.strip():
        raise ValueError("empty prompt: say what to draw")
    return prompt.strip()


def text_steps(stream: Stream, stop_ids: set[int], limit: int, pick: Pick) -> Iterator[list[int | None]]:
    """At most `limit` steps of text for the rows of a stream: the new id of each, None once it has stopped.

    A row stops with an id of `stop_ids`, which is still reported.
    """
    alive = [True] * len(stream.h_BD)
    for step in range(limit):
        ids_B = pick(stream.model.text_logits(stream.h_BD), 0)
        check_chosen(int(ids_B.min()))
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
    conversations: Sequence[Messages] | Messages,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """The answers to several chats (one alone is a batch of one) as one batch, text only: an answer ends where the
    model would begin to draw."""
    check_sampling(temperature=temperature, top_p=top_p)
    if isinstance(conversations, str) or conversations and isinstance(conversations[0], dict):
        conversations = [conversations]
    if not conversations:
        return []
    samples = [processor.encode(messages) for messages in conversations]
    for one in samples:
        check_length(model, processor, one, max_new_tokens)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(samples))]
    pick = Picker(1.0, generators, temperature=temperature, top_p=top_p)
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

    `drawing` are options of `generate_images` for such images (cfg_scale, candidates, temperature, top_k, top_p,
    cfg_interval, code_context); candidates are held against the words of the last message.
    """
    check_sampling(temperature=temperature, top_p=top_p)
    options = {"cfg_scale": CFG_SCALE, "temperature": DRAWING_TEMPERATURE, "candidates": 1, **(drawing or {})}
    check_sampling(**options)
    candidates = options.pop("candidates")
    sample = processor.encode(messages)
    if sample.images:
        sample.images = list(as_codes(sample.images, model.image_tokenizer))
    pick = Picker(1.0, [torch.Generator().manual_seed(seed)], temperature=temperature, top_p=top_p)
    draw_generators = candidate_generators(seed, candidates)
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
        codes_NLK = sample_codes(model, processor, [sample] * candidates, draw_generators, **options)
        if candidates > 1:
            asked = messages if isinstance(messages, str) else words(messages[-1])
            codes_NLK = best(model, processor, [asked], codes_NLK)
        yield model.decode_image_tokens(codes_NLK)[0]
        sample.add([processor.image_id] * processor.num_positions + [processor.eoi_id])
        sample.images.append(codes_NLK[0])


def words(message: dict[str, Any]) -> str:
    """The text of a message."""
    content = message["content"]
    parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return " ".join(parts)
