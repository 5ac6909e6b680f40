"""What happens for a request, as a program: it says which id or codes it wants next, and a driver sends them.

A program has tracks. A track is one row of a batch: a sequence, and a generator of the steps that extend it. When all
tracks of a program have ended, the program continues with their results. For instance, it chooses among candidates, or
begins other tracks.
Shapes: N images, L positions an image, n of them drawn in a step, K sub-codebooks.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from PIL import Image

from ..codes import CodebookEmbedding
from ..model import MllmForConditionalGeneration
from ..orders import Order
from ..text.processor import MllmProcessor, as_codes
from ..text.templates import Sample
from .options import DrawingOptions, EditingOptions, Sampling
from .region import read_region
from .rerank import best, best_edit, check_readable
from .sampling import check_chosen
from .stream import check_length, read_images

LONGEST_REFUSAL = 64  # ids of an answer in words to a request for an edit

Messages = Sequence[dict[str, Any]] | str  # a string is one question


@dataclass(frozen=True)
class Drawing(DrawingOptions):
    """A request for an image of a prompt. `previews` unfinished images come before it, at equal distances; they show
    the first candidate."""

    prompt: str
    seed: int = 0
    previews: int = 0


@dataclass(frozen=True)
class Chat(Sampling):
    """A request for an answer of at most `max_new_tokens` ids, which ends before the first of the strings in `stop`.

    `drawing` says how the model draws when it decides to, with `previews` unfinished images before each one; candidates
    are compared with the words of the last message, as edits of the last image before them, if there is one. With None,
    the answer ends where an image would begin. Raises ValueError for impossible values.
    """

    messages: Messages
    max_new_tokens: int = 64
    seed: int = 0
    drawing: DrawingOptions | None = DrawingOptions()
    stop: tuple[str, ...] = ()
    previews: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {self.max_new_tokens} is below 1")
        if "" in self.stop:
            raise ValueError("an empty string in stop: leave it out")


@dataclass(frozen=True)
class Edit(EditingOptions):
    """A request for a picture as the prompt changes it. Of several `images`, the first is the one that is changed.

    The `mask`, as large as that one, is fully transparent where it may change; elsewhere its pixels stay as they are,
    and the result has its size. Without a mask, the result has the model's size. If the model answers in words, as
    there is nothing to change or no such thing in the picture, the result is the picture itself, with the words in its
    `info["answer"]`. `previews` are as in `Drawing`.
    """

    images: Sequence[Image.Image]
    prompt: str
    mask: Image.Image | None = None
    seed: int = 0
    previews: int = 0


Request: TypeAlias = Chat | Drawing | Edit


@dataclass(frozen=True)
class Preview:
    """An unfinished image: the codes of the positions drawn first, [P, K], in the order of drawing."""

    codes_PK: torch.Tensor
    positions: int  # of the whole image

    @property
    def done(self) -> float:
        """The share of the image that is drawn, 0 to 1."""
        return len(self.codes_PK) / self.positions

    @torch.no_grad()
    def image(self, model: MllmForConditionalGeneration) -> Image.Image:
        """An RGBA image of the full size, transparent where nothing is drawn yet."""
        if not model.image_tokenizer.layout.on_grid:
            return model.image_tokenizer.decode(self.codes_PK[None])[0].convert("RGBA")
        side, places = math.isqrt(self.positions), model.order.places[: len(self.codes_PK)]
        rows = max(places) // side + 1
        codes_PK, missing = self.codes_PK, sorted(set(range(rows * side)) - set(places))
        if missing:  # where nothing is drawn, the nearest codes
            where = [nearest(place, places, side) for place in range(rows * side)]
            codes_PK = codes_PK[torch.tensor(where, device=codes_PK.device)]
        [part] = model.image_tokenizer.decode(codes_PK[None], (rows, side))
        image = Image.new("RGBA", (part.width, part.height * side // rows))
        image.paste(part, (0, 0))
        size = part.width // side
        for place in missing:
            row, column = divmod(place, side)
            image.paste((0, 0, 0, 0), (column * size, row * size, (column + 1) * size, (row + 1) * size))
        return image


def nearest(place: int, places: Sequence[int], side: int) -> int:
    """Which of the `places` is nearest to another one, as an index."""
    row, column = divmod(place, side)
    return min(range(len(places)), key=lambda at: (places[at] // side - row) ** 2 + (places[at] % side - column) ** 2)


Piece: TypeAlias = str | Image.Image | Preview


@dataclass(frozen=True)
class Write:
    """A track wants the next id of a text, one of `among` (None: any)."""

    sampling: Sampling
    among: frozenset[int] | None = None


@dataclass(frozen=True)
class Draw:
    """A track wants codes_nK of the next positions of an image, each from one of its newest hidden states (`sources`).
    `slots` are given where these states must be told what they predict (`Order.aims`)."""

    sampling: Sampling
    cfg_scales: tuple[float, ...]  # one for each unconditional row
    sources: tuple[int, ...] = (0,)
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Feed:
    """A track wants this id, whatever the model would write."""

    id: int


@dataclass(frozen=True, eq=False)
class Keep:
    """A track wants these codes_nK at the next positions of an image, whatever the model would draw."""

    codes_nK: torch.Tensor
    cfg_scales: tuple[float, ...]  # of these positions: the unconditional rows read on


Want: TypeAlias = Write | Draw | Feed | Keep
Steps: TypeAlias = Generator[Want, Any, Any]


class Track:
    """A row of a batch. The model reads `sample`; then the steps say what they want, position by position.

    `steps(track)` makes the generator of the steps. `generator` makes the noise for sampling. `room` is the expected
    number of new positions. `options` are given for a track that draws; `codes` are its codes so far, each [K], in the
    order of drawing, the last step's `newest`. `unconditional` are the prompts of its further rows under guidance.
    `result` is what the steps return, `error` the exception that ended them. `put` is called with each piece given to
    `tell`. With `scored`, `logps` has the log-probabilities of each id chosen, [], and of each position drawn, [K], as
    `Picker` defines them.
    """

    def __init__(
        self,
        sample: Sample,
        steps: Callable[["Track"], Steps],
        generator: torch.Generator,
        room: int,
        options: DrawingOptions | None = None,
        put: Callable[[Piece], Any] = lambda piece: None,
        unconditional: Sequence[Sample] = (),
        scored: bool = False,
    ):
        self.sample, self.generator, self.room, self.options = sample, generator, room, options
        self.unconditional, self.scored = unconditional, scored
        self._make, self._put, self._noise, self._told = steps, put, generator.get_state(), 0
        self.begin()

    def begin(self) -> None:
        """Begin with the first step. A second call begins again: it gives the same ids and codes, and no piece is told
        twice."""
        self.generator.set_state(self._noise)
        self.tokens, self.newest, self._pieces, self.result, self.error = 0, 1, 0, None, None
        self.codes: list[torch.Tensor] = []
        self.logps: list[torch.Tensor] = []
        self._steps = self._make(self)
        self.want: Want | None = next(self._steps)

    @property
    def draws(self) -> bool:
        """Whether this track makes an image, with or without a plan."""
        return self.options is not None

    @property
    def rows(self) -> int:
        """How many rows of the batch this track takes at most."""
        return 1 + len(self.unconditional)

    @property
    def guided(self) -> bool:
        """Whether this position needs unconditional rows."""
        return isinstance(self.want, Draw | Keep) and bool(self.want.cfg_scales)

    def take(self, value: int | torch.Tensor) -> bool:
        """Give the track the id or codes_nK that it wanted. Returns whether it continues."""
        self.newest = len(value) if isinstance(self.want, Draw | Keep) else 1
        self.tokens += 0 if isinstance(self.want, Feed | Keep) else self.newest
        try:
            self.want = self._steps.send(value)
            return True
        except StopIteration as end:
            self.result, self.want = end.value, None
        except Exception as error:  # ends this request alone
            self.fail(error)
        return False

    def fail(self, error: Exception) -> None:
        self.error, self.want = error, None

    def tell(self, piece: Piece) -> None:
        self._pieces += 1
        if self._pieces > self._told:
            self._told = self._pieces
            self._put(piece)


def draw_steps(
    track: Track,
    order: Order,
    positions: int,
    told: Callable[[], Any] = lambda: None,
    kept: Mapping[int, torch.Tensor] | None = None,
) -> Steps:
    """Steps of an image, whose codes become those of the track; they return them by place, [L, K]. `told` is called
    after each. `kept` has the codes_K of places that are not drawn."""
    codes, kept, options = track.codes, kept or {}, track.options
    for step in order.steps_in(options.steps):
        first = step.first
        if first >= positions:
            break
        scales = options.cfg_scales_at(first, positions)
        fixed = {at: kept[place] for at, place in enumerate(step.places) if place in kept}
        if len(fixed) == len(step.places):
            codes += yield Keep(torch.stack(list(fixed.values())), scales)
        else:
            slots = tuple(range(first, first + len(step.places))) if order.parallel else ()
            new = (yield Draw(options.sampling, scales, step.sources, slots)).unbind()
            codes += [fixed.get(at, codes_K) for at, codes_K in enumerate(new)]
        told()
    codes_LK = torch.stack(codes)
    check_chosen(int(codes_LK.min()))  # on a GPU the batch does not check, as reading a value waits for the device
    return order.of_places(codes_LK, 0)


def plan_steps(
    model: MllmForConditionalGeneration, processor: MllmProcessor, options: Sampling, begun: Sequence[int] = ()
) -> Steps:
    """Steps of a plan, which may have `begun`; they return its ids, without the begin-of-image id. Where plans have ids
    of their own, nothing else is written."""
    ids = list(begun)
    sampling = Sampling(temperature=options.temperature, top_p=options.top_p)
    among = processor.drawing_ids if processor.plan_ids else None
    while len(ids) < model.config.plan_length:
        id = yield Write(sampling, among)
        if id == processor.boi_id:
            return ids
        ids.append(id)
    if ids:
        yield Feed(processor.boi_id)
    return ids


def answer_steps(processor: MllmProcessor, limit: int) -> Steps:
    """Steps up to where the model draws, or of at most `limit` ids of an answer in words. They return the ids, and the
    one that a drawing begins with (None: there is none)."""
    ids: list[int] = []
    while len(ids) < limit:
        id = yield Write(Sampling())
        if id == processor.eos_id:
            break
        if id in processor.drawing_ids:
            return ids, id
        ids.append(id)
    return ids, None


class Program:
    """A request under way. The driver runs all `tracks` to their ends; then `resume` returns the tracks that follow.

    `put`, where there is one, is called with each piece of the answer as it comes; `text` is the whole text so far.
    `ended_by` is "stop", or "length" if the answer reached `max_new_tokens`. Raises ValueError for a request that
    cannot be served.
    """

    def __init__(
        self,
        model: MllmForConditionalGeneration,
        processor: MllmProcessor,
        request: Request,
        put: Callable[[Piece], Any] | None,
    ):
        self.model, self.processor, self.request = model, processor, request
        self.put, self._heard = put or (lambda piece: None), put is not None
        self.text, self.ended_by, self._earlier = "", "stop", 0
        kinds = {Drawing: self._drawing, Edit: self._editing, Chat: self._chat}
        self._stages = kinds[type(request)](request)
        self.tracks: list[Track] = next(self._stages)
        start = self.tracks[0].sample
        self.prompt_tokens, self.prompt_image_tokens = len(start.ids), start.ids.count(processor.image_id)

    @property
    def tokens(self) -> int:
        """How many ids and positions of images were made so far."""
        return self._earlier + sum(track.tokens for track in self.tracks)

    @property
    def positions(self) -> int:
        """Positions drawn of the current image: those of the candidate with the fewest."""
        return min(len(track.codes) for track in self.tracks)

    @torch.no_grad()
    def resume(self) -> list[Track]:
        """To be called when all tracks have ended. Returns the tracks that follow, [] at the end. Raises the error of a
        track."""
        for track in self.tracks:
            if track.error:
                raise track.error
        try:
            following = self._stages.send([track.result for track in self.tracks])
        except StopIteration:
            return []
        self._earlier, self.tracks = self.tokens, following
        return following

    def _drawing(self, request: Drawing) -> Generator[list[Track], list, None]:
        model, processor = self.model, self.processor
        check_drawing(model, request)
        start, L = start_drawing(model, processor, request.prompt, request.candidates), processor.num_positions
        generators = candidate_generators(request.seed, request.candidates)
        steps, room = partial(self._plan_and_draw, options=request), model.config.plan_length + L
        codes = yield self._candidates(start, steps, generators, room, request)
        self._show(codes, request.prompt)

    def _editing(self, request: Edit) -> Generator[list[Track], list, None]:
        model, processor, L = self.model, self.processor, self.processor.num_positions
        check_drawing(model, request)
        sources = read_images(model, request.images)
        start = start_editing(model, processor, request.prompt, sources)
        region = kept = None
        if request.mask:
            if not model.image_tokenizer.layout.on_grid:
                raise ValueError("this image tokenizer's codes have no place in the picture: edit without a mask")
            region = read_region(request.mask, request.images[0], processor.view(request.images[0]))
            free = region.free_positions(math.isqrt(L))
            codes_LK = as_codes(sources[:1], model.image_tokenizer)[0]
            kept = {place: codes_LK[place] for place in range(L) if not free[place]}

        def steps(track: Track) -> Steps:
            ids, first = yield from answer_steps(processor, LONGEST_REFUSAL + model.config.plan_length)
            if first is None:
                return processor.decode(ids)
            if first != processor.boi_id:
                yield from plan_steps(model, processor, request, [first])
            return (yield from self._draw(track, request, kept))

        generators = candidate_generators(request.seed, request.candidates)
        results = yield self._candidates(start, steps, generators, L, request, sources)
        drawn = [one for one in results if not isinstance(one, str)]
        if not drawn:
            picture = request.images[0].copy()
            picture.info["answer"] = results[0]
            return self.put(picture)
        finish = (lambda image: region.put(image, request.images[0])) if region else None
        self._show(drawn, request.prompt, sources, finish)

    def _chat(self, request: Chat) -> Generator[list[Track], list, None]:
        model, processor, L = self.model, self.processor, self.processor.num_positions
        sample, left = processor.encode(request.messages), request.max_new_tokens
        sample.images = read_images(model, sample.images, sample.is_target)
        generator, drawing = torch.Generator().manual_seed(request.seed), request.drawing
        if drawing:
            check_drawing(model, drawing)
            generators = candidate_generators(request.seed, drawing.candidates)
        while left:
            check_length(model, processor, sample, left)
            steps = partial(self._write, request=request, limit=left)
            [(ids, stopped)] = yield [Track(sample, steps, generator, left, put=self.put)]
            left -= len(ids)
            told = UpTo(request.stop)
            self.text += told.add(processor.decode(ids)) + told.rest()
            draws = ids[-1] in processor.drawing_ids
            if stopped or ids[-1] == processor.eos_id or (draws and not drawing):
                return
            if not draws:
                break
            *words, last = ids
            plans = last != processor.boi_id and model.config.plan_length > 0
            sample.add(words if plans else [*words, processor.boi_id])  # each candidate writes a plan of its own
            room = model.config.plan_length + L if plans else L
            check_length(model, processor, sample, room)
            steps = partial(self._plan_and_draw if plans else self._draw, options=drawing)
            codes = yield self._candidates(sample, steps, generators, room, drawing)
            codes_LK = self._show(codes, last_words(request.messages), sample.images[-1:])
            # Without its plan, as the pictures in a chat's earlier messages have none.
            sample.add([processor.boi_id] * plans + [processor.image_id] * L + [processor.eoi_id])
            sample.images.append(codes_LK)
            sample.is_target.append(True)
        self.ended_by = "length"

    def _write(self, track: Track, request: Chat, limit: int) -> Steps:
        """Steps of a text of at most `limit` ids. It ends with the answer, before an image, or at a stop string. They
        return the ids, and whether a stop string was found."""
        spelled, text, sampling = Spelled(self.processor), UpTo(request.stop), request.sampling
        while len(spelled.ids) < limit:
            id = yield Write(sampling)
            if self._heard or request.stop:
                track.tell(text.add(spelled.add(id)))
            else:  # to spell each id as it comes costs more than a step of a small model
                spelled.ids.append(id)
            if text.ended or id == self.processor.eos_id or id in self.processor.drawing_ids:
                break
        track.tell(text.rest())
        return spelled.ids, text.ended

    def _candidates(
        self,
        sample: Sample,
        steps: Callable[[Track], Steps],
        generators: Sequence[torch.Generator],
        room: int,
        options: DrawingOptions,
        sources: Sequence[torch.Tensor] = (),
    ) -> list[Track]:
        """A track for each generator. Only the first one's previews are told."""
        puts = [self.put] + [lambda piece: None] * (len(generators) - 1)
        rest = unconditional(self.processor, options, sources)
        return [
            Track(sample, steps, generator, room, options, put, rest)
            for generator, put in zip(generators, puts, strict=True)
        ]

    def _plan_and_draw(self, track: Track, options: DrawingOptions) -> Steps:
        yield from plan_steps(self.model, self.processor, options)
        return (yield from self._draw(track, options))

    def _draw(self, track: Track, options: DrawingOptions, kept: Mapping[int, torch.Tensor] | None = None) -> Steps:
        L, previews, order = self.processor.num_positions, self.request.previews, self.model.order
        left = [stop for stop in self.model.image_tokenizer.layout.stops(L, previews) if stop]

        def told() -> None:
            if left and left[0] <= len(track.codes) < L:
                track.tell(Preview(torch.stack(track.codes), L))
                left[:] = [count for count in left if count > len(track.codes)]

        return (yield from draw_steps(track, order, L, told, kept))

    def _show(
        self,
        candidates: list[torch.Tensor],
        prompt: str,
        sources: Sequence[torch.Tensor] = (),
        finish: Callable[[Image.Image], Image.Image] | None = None,
    ) -> torch.Tensor:
        """Put the image of the best candidate, as an edit of the `sources` if there are any, after `finish`. Returns
        its codes, [L, K], like those of each candidate."""
        codes_NLK = torch.stack(candidates)
        if len(candidates) > 1 and sources:
            codes_NLK = best_edit(self.model, self.processor, prompt, sources, codes_NLK)
        elif len(candidates) > 1:
            codes_NLK = best(self.model, self.processor, [prompt], codes_NLK)
        # Image by image: a batch of another size would round some pixels differently.
        [drawn] = self.model.decode_image_tokens(codes_NLK)
        self.put(finish(drawn) if finish else drawn)
        return codes_NLK[0]


def check_drawing(model: MllmForConditionalGeneration, options: DrawingOptions) -> None:
    """Raises ValueError for "published" if the model's code embedding has no context to leave out, and for `steps` in
    which its order does not draw."""
    model.order.steps_in(options.steps)
    if options.code_context == "published" and not isinstance(model.code_embed, CodebookEmbedding):
        raise ValueError("code_context 'published' is for converted UniTok models: leave it at 'exact'")


def start_drawing(
    model: MllmForConditionalGeneration, processor: MllmProcessor, prompt: str, candidates: int = 1
) -> Sample:
    """The sequence that the model reads before it plans or draws. Raises ValueError for an empty prompt, and for one
    that is too long to draw, or to choose among `candidates`."""
    prompt, plans = prompt.strip(), model.config.plan_length
    if not prompt:
        raise ValueError("empty prompt: say what to draw")
    sample = processor.encode_planning(prompt) if plans else processor.encode_drawing(prompt)
    check_length(model, processor, sample, plans + processor.num_positions)
    if candidates > 1:
        check_readable(model, processor, prompt)
    return sample


def start_editing(
    model: MllmForConditionalGeneration, processor: MllmProcessor, prompt: str, sources: Sequence[Any]
) -> Sample:
    """The sequence that the model reads before it draws or answers; `sources` are the images. Raises ValueError for no
    image, an empty prompt, and more than the model reads."""
    if not sources:
        raise ValueError("no image: give the picture that is to be changed")
    if not prompt.strip():
        raise ValueError("empty prompt: say what to change")
    sample = processor.encode_planning(prompt.strip(), sources)
    check_length(model, processor, sample, LONGEST_REFUSAL + model.config.plan_length + processor.num_positions)
    return sample


def unconditional(
    processor: MllmProcessor, options: DrawingOptions, sources: Sequence[torch.Tensor] = ()
) -> list[Sample]:
    """The prompts of the rows that guidance takes, one for each of `cfg_scales`: that of the `sources` without words,
    that of neither, or both."""
    prompts = [processor.encode_drawing(None, sources=sources), processor.encode_drawing(None)]
    over_words = isinstance(options, EditingOptions) and options.image_cfg_scale == 1.0
    return {0: [], 1: prompts[:1] if over_words else prompts[1:], 2: prompts}[len(options.cfg_scales)]


def candidate_generators(seed: int, count: int) -> list[torch.Generator]:
    """`count` generators from a seed; the first has the seed itself. A larger count begins with the same ones."""
    more = torch.randint(2**63 - 1, (count - 1,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [torch.Generator().manual_seed(one) for one in (seed, *more)]


def last_words(messages: Messages) -> str:
    """The text of the last message."""
    content = messages if isinstance(messages, str) else messages[-1]["content"]
    parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return " ".join(parts)


class Spelled:
    """Turns ids into text one by one."""

    def __init__(self, processor: MllmProcessor):
        self.processor, self.ids, self.text = processor, [], ""

    def add(self, id: int) -> str:
        """The text that this id completes. A character of several bytes comes when its last byte does."""
        self.ids.append(id)
        before, text = self.text, self.processor.decode(self.ids)
        if text.endswith("\ufffd"):
            return ""
        self.text = text
        return text[len(before) :]


class UpTo:
    """Passes text on in parts, up to the first stop string. What may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]):
        self.stops, self.held, self.ended = stops, "", False

    def add(self, text: str) -> str:
        """Add text; returns what can be passed on now."""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        self.ended = bool(places)
        if self.ended:
            text, self.held = self.held[: min(places)], ""
            return text
        begun = (size for stop in self.stops for size in range(1, len(stop)) if self.held.endswith(stop[:size]))
        end = len(self.held) - max(begun, default=0)
        text, self.held = self.held[:end], self.held[end:]
        return text

    def rest(self) -> str:
        """The text that was held back, for when no more comes."""
        text, self.held = self.held, ""
        return text
