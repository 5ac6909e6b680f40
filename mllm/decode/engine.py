"""Continuous batching: chats and drawings share one running batch, which they enter and leave between steps.

    with Engine(model, processor) as engine:
        answer = engine.submit(Chat([{"role": "user", "content": "hello"}]))
        drawing = engine.submit(Drawing("a red car", seed=3))
        print(*answer.stream(), drawing.result())

What a request gives is what `generate_text` and `generate_images` give, whatever else is in the batch.
Shapes: B rows of the batch, D width, K sub-codebooks, V entries of each.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, Full, SimpleQueue
from threading import Condition, Thread
from typing import Any, TypeAlias

import torch
from PIL import Image

from .generate import CFG_SCALE, DRAWING_TEMPERATURE, Messages, Spelled, candidate_generators, start_drawing
from .model import MllmForConditionalGeneration
from .processor import MllmProcessor, as_codes
from .sampling import Picker, check_sampling
from .stream import Stream, check_length
from .templates import Sample
from .verify import best

Owner: TypeAlias = "tuple[Task, bool]"  # of a row: its task, and whether it is the unconditional half
FOR_CHATS = 8  # one row of so many is not for drawings: they are long, and somebody waits for the words of a chat
DRAWING_OPTIONS = {"cfg_scale": CFG_SCALE, "temperature": DRAWING_TEMPERATURE, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class Preview:
    """An image under way: the codes of its first rows."""

    codes_PK: torch.Tensor
    positions: int  # of the whole image

    @property
    def done(self) -> float:
        """The share of the image."""
        return len(self.codes_PK) / self.positions

    @torch.no_grad()
    def image(self, model: MllmForConditionalGeneration) -> Image.Image:
        """Of the full size, transparent where it is still to be drawn."""
        side = math.isqrt(self.positions)
        rows = len(self.codes_PK) // side
        [part] = model.image_tokenizer.decode(self.codes_PK[None], (rows, side))
        image = Image.new("RGBA", (part.width, part.height * side // rows))
        image.paste(part, (0, 0))
        return image


Piece: TypeAlias = str | Image.Image | Preview


@dataclass(frozen=True)
class Drawing:
    """An image of a prompt, as by `generate_images`; before it, at equal distances, so many `previews`, of the first
    where there are `candidates`."""

    prompt: str
    seed: int = 0
    cfg_scale: float = CFG_SCALE
    temperature: float = DRAWING_TEMPERATURE
    top_k: int = 0
    top_p: float = 1.0
    candidates: int = 1
    previews: int = 0


@dataclass(frozen=True)
class Chat:
    """An answer, as by `generate_text`, that ends before the first of the strings in `stop`. `drawing` are options of
    images that the model decides to draw; None ends the answer there. Before each come so many `previews`."""

    messages: Messages
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    drawing: dict[str, Any] | None = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    previews: int = 0


class Handle:
    """What comes of a request. `positions` counts the codes of its image so far (of the last of candidates), `tokens`
    all ids and codes, and `prompt_tokens` what was read. `ended_by` is "stop", or "length" where an answer had no more
    room.

    `receive` is called, by the engine's thread, with each piece and None at the end, in place of `stream`."""

    def __init__(self, changed: Condition, prompt_tokens: int, receive: Callable[[Piece | None], Any] | None = None):
        self.positions, self.cancelled, self.error = 0, False, None
        self.tokens, self.prompt_tokens, self.ended_by = 0, prompt_tokens, "stop"
        self._changed, self._pieces = changed, SimpleQueue()
        self._receive = receive or self._pieces.put

    def stream(self, timeout: float | None = None) -> Iterator[Piece]:
        """Pieces as they come, once: text, and images where some are drawn. Raises TimeoutError when one takes longer
        than `timeout` seconds, and what the engine failed of."""
        while True:
            try:
                piece = self._pieces.get(timeout=timeout)
            except Empty:
                raise TimeoutError(f"nothing came for {timeout} seconds") from None
            if piece is None:
                break
            yield piece
        if self.error:
            raise self.error

    def result(self, timeout: float | None = None) -> list[Piece]:
        """All pieces that `stream` has not given, texts joined. Raises as `stream`, and CancelledError."""
        pieces: list[Piece] = []
        for piece in self.stream(timeout):
            if pieces and isinstance(piece, str) and isinstance(pieces[-1], str):
                pieces[-1] += piece
            else:
                pieces.append(piece)
        if self.cancelled:
            raise CancelledError
        return pieces

    def cancel(self) -> None:
        """Leave the queue, or the batch before its next step."""
        with self._changed:
            self.cancelled = True
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted of it."""
        return self.cancelled or self.error is not None

    def put(self, piece: Piece | None) -> None:
        """None ends it. For the engine."""
        if piece != "":
            self._receive(piece)


class UpTo:
    """Text that comes in parts, up to the first of some strings; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]):
        self.stops, self.held, self.ended = stops, "", False

    def add(self, text: str) -> str:
        """What can be told by now."""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        self.ended = bool(places)
        if self.ended:
            return self.held[: min(places)]
        begun = (size for stop in self.stops for size in range(1, len(stop)) if self.held.endswith(stop[:size]))
        end = len(self.held) - max(begun, default=0)
        text, self.held = self.held[:end], self.held[end:]
        return text

    def rest(self) -> str:
        """What was held back, once no more comes."""
        text, self.held = self.held, ""
        return text


class Task:
    """A request under way, or one of its candidates, which are all in `rivals`. `want` is what it needs the next hidden
    state for: "text", "codes", or an id that is to be fed whatever the state predicts. Raises ValueError for a request
    that cannot be served."""

    def __init__(
        self, model: MllmForConditionalGeneration, processor: MllmProcessor, request: Chat | Drawing, number: int = 0
    ):
        self.model, self.processor, self.request = model, processor, request
        self.rivals, self.ended = [self], False
        self.generator = torch.Generator().manual_seed(request.seed)
        self.draw_generator = candidate_generators(request.seed, number + 1)[number]
        self.may_draw = isinstance(request, Drawing) or request.drawing is not None
        self.drawing, self.writing, self.embedded, self.codes = {**DRAWING_OPTIONS}, {}, {}, []
        if isinstance(request, Drawing):
            self.generator = self.draw_generator
            self.drawing = {name: getattr(request, name) for name in DRAWING_OPTIONS}
            self.sample = start_drawing(model, processor, request.prompt, request.candidates)
        else:
            if request.max_new_tokens < 1:
                raise ValueError(f"max_new_tokens {request.max_new_tokens} is below 1")
            if "" in request.stop:
                raise ValueError("an empty string in stop: leave it out")
            unknown = sorted(set(request.drawing or {}) - set(DRAWING_OPTIONS))
            if unknown:
                raise ValueError(f"unknown option {unknown[0]!r} of a drawing; known: {', '.join(DRAWING_OPTIONS)}")
            self.drawing |= request.drawing or {}
            self.writing = {"temperature": request.temperature, "top_p": request.top_p}
            self.sample = processor.encode(request.messages)
            check_length(model, processor, self.sample, request.max_new_tokens)
        check_sampling(**self.drawing)
        check_sampling(**self.writing)
        if self.sample.images:
            self.sample.images = list(as_codes(self.sample.images, model.image_tokenizer))
        self._steps = self._plan() if isinstance(request, Drawing) else self._write()
        self.want = next(self._steps)

    @property
    def guided(self) -> bool:
        return self.drawing["cfg_scale"] != 1.0

    @property
    def rows(self) -> int:
        """The most that it takes in the batch."""
        return 2 if self.may_draw and self.guided else 1

    def take(self, value: int | torch.Tensor) -> bool:
        """The id or the codes_K that it wanted; -> whether it goes on."""
        try:
            self.want = self._steps.send(value)
            return True
        except StopIteration:
            pass
        except Exception as error:  # of this request alone
            self.handle.error = error
        return False

    def _write(self) -> Generator[str | int, Any, None]:
        left, length = self.request.max_new_tokens, len(self.sample.ids)
        spelled, text = Spelled(self.processor), UpTo(self.request.stop)
        while left > 0:
            id, left, length = (yield "text"), left - 1, length + 1
            self.handle.tokens += 1
            self.handle.put(text.add(spelled.add(id)))
            if text.ended:
                return
            if id == self.processor.boi_id and self.may_draw:
                self.handle.put(text.rest())
                check_length(self.model, self.processor, Sample([id] * length), self.processor.num_positions)
                yield from self._draw()
                self.handle.put(self.model.decode_image_tokens(torch.stack(self.codes)[None])[0])
                if left:
                    yield self.processor.eoi_id
                length, spelled = length + self.processor.num_positions + 1, Spelled(self.processor)
            elif id in (self.processor.eos_id, self.processor.boi_id):
                break
        else:
            self.handle.ended_by = "length"
        self.handle.put(text.rest())

    def _plan(self) -> Generator[str | int, Any, None]:
        """As `plan_drawings`, and on to the image."""
        for _ in range(self.model.config.plan_length):
            id = yield "text"
            self.handle.tokens += 1
            if id == self.processor.boi_id:
                break
        else:
            if self.model.config.plan_length:
                yield self.processor.boi_id
        yield from self._draw()

    def _draw(self) -> Generator[str, torch.Tensor, None]:
        self.embedded, self.codes, L = {}, [], self.processor.num_positions
        side, previews = math.isqrt(L), self.request.previews
        shown = {side * (side * number // (previews + 1)) for number in range(1, previews + 1)}  # full rows
        while len(self.codes) < L:
            self.codes.append((yield "codes"))
            self.handle.positions = min(len(rival.codes) for rival in self.rivals)
            self.handle.tokens += 1
            if len(self.codes) in shown and self is self.rivals[0]:
                self.handle.put(Preview(torch.stack(self.codes), L))

    @torch.no_grad()
    def end(self) -> None:
        """It has left the batch; the request ends with the last of its candidates."""
        self.ended = True
        if not all(rival.ended for rival in self.rivals):
            return
        try:
            if isinstance(self.request, Drawing) and not self.handle.over:
                codes_NLK = torch.stack([torch.stack(rival.codes) for rival in self.rivals])
                if len(codes_NLK) > 1:
                    codes_NLK = best(self.model, self.processor, [self.request.prompt], codes_NLK)
                self.handle.put(self.model.decode_image_tokens(codes_NLK)[0])
        except Exception as error:
            self.handle.error = error
        self.handle.put(None)


class Engine:
    """A batch of at most `max_rows` in a thread of its own; a drawing with guidance takes two rows. First come, first
    served, among chats and among drawings (`_next`); at most `max_waiting` wait (None: any number). `submit` may be
    called from any thread. Leaving the `with` block waits for what was submitted."""

    def __init__(
        self,
        model: MllmForConditionalGeneration,
        processor: MllmProcessor,
        max_rows: int = 16,
        max_waiting: int | None = None,
    ):
        if max_rows < 2:
            raise ValueError(f"max_rows {max_rows} is below 2, the rows of a drawing with guidance")
        if max_waiting is not None and max_waiting < 1:
            raise ValueError(f"max_waiting {max_waiting} is below 1: a request waits before it runs")
        self.model, self.processor, self.max_rows, self.max_waiting = model, processor, max_rows, max_waiting
        self._waiting: deque[Task] = deque()
        self._owners: list[Owner] = []  # of the rows of the stream
        self._entering: list[Owner] = []
        self._stream: Stream | None = None
        self._changed, self._closed = Condition(), False
        self._ending = ThreadPoolExecutor(1, "engine")  # beside the batch, as choosing and decoding take a while
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Requests that are not yet in the batch."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len({task for task, _ in self._owners + self._entering})

    @property
    def alive(self) -> bool:
        """Whether it can do anything."""
        return self._thread.is_alive()

    @torch.no_grad()
    def submit(self, request: Chat | Drawing, receive: Callable[[Piece | None], Any] | None = None) -> Handle:
        """`receive`: see `Handle`. Raises ValueError for what cannot be served, queue.Full, and RuntimeError after
        `close`."""
        self._check_open()  # before the work that a task begins with
        count = 1
        if isinstance(request, Drawing):
            check_sampling(temperature=request.temperature, candidates=request.candidates)
            count = request.candidates
        rivals = [Task(self.model, self.processor, request, number) for number in range(count)]
        handle = Handle(self._changed, len(rivals[0].sample.ids), receive)
        for task in rivals:
            task.handle, task.rivals = handle, rivals
        with self._changed:
            self._check_open()
            self._waiting += rivals
            self._changed.notify_all()
        return handle

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self.max_waiting is not None and self.waiting >= self.max_waiting:
            raise Full(f"{self.waiting} requests are waiting")

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, and return when those that there are have ended; those that have not within `timeout`
        seconds are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        while self._thread.is_alive():
            with self._changed:
                tasks = {*self._waiting, *(task for task, _ in self._owners + self._entering)}
            for task in tasks:
                task.handle.cancel()
            self._thread.join(0.1)
        self._ending.shutdown()

    @torch.no_grad()
    def _work(self) -> None:
        while self._wait():
            try:
                self._end({task for task, _ in self._owners + self._entering if task.handle.over})
                self._admit()
                self._enter()
                if self._owners:
                    self._step()
            except Exception as error:  # the batch is lost, the engine is not
                self._fail(error)

    def _wait(self) -> bool:
        """Until there is something to do; -> False when there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._owners or self._entering or self._closed)
            return bool(self._waiting or self._owners or self._entering)

    def _admit(self) -> None:
        """From the queue, as many as there is room for."""
        with self._changed:
            for task in [task for task in self._waiting if task.handle.over]:
                self._waiting.remove(task)
                self._ending.submit(task.end)
            while task := self._next():
                self._waiting.remove(task)
                self._entering.append((task, False))
                self._entering += missing_halves([task])

    def _next(self) -> Task | None:
        """The first of the chats or of the drawings that wait, whichever have fewer rows, so that neither wait for all
        of the others; None where there is no room."""
        firsts: dict[type, Task] = {}
        for task in self._waiting:
            firsts.setdefault(type(task.request), task)
        taken = {Chat: 0, Drawing: 0}
        for task in {task for task, _ in self._owners + self._entering}:
            taken[type(task.request)] += task.rows
        free = {Chat: self.max_rows - sum(taken.values())}
        free[Drawing] = min(free[Chat], self.max_rows - self.max_rows // FOR_CHATS - taken[Drawing])
        kind = min(firsts, key=taken.get, default=None)
        return firsts[kind] if kind and firsts[kind].rows <= free[kind] else None

    def _enter(self) -> None:
        """Prefill new rows, all at once."""
        if not self._entering:
            return
        unconditional = self.processor.encode_drawing(None)
        samples = [unconditional if is_half else task.sample for task, is_half in self._entering]
        if self._stream is None:
            self._stream = Stream(self.model, samples, self.processor)
        else:
            self._stream.add(samples)
        self._owners += self._entering
        self._entering = []

    def _step(self) -> None:
        """One position of every row."""
        tasks = [task for task, is_half in self._owners if not is_half]
        rows = {owner: row for row, owner in enumerate(self._owners)}
        ids = {task: task.want for task in tasks if isinstance(task.want, int)}
        ids |= self._write([task for task in tasks if task.want == "text"], rows)
        codes = self._draw([task for task in tasks if task.want == "codes"], rows)
        self._end({task for task, value in (ids | codes).items() if not task.take(value)})
        self._drop(lambda task, is_half: is_half and task.want != "codes")
        if not self._owners:
            return
        ids_B = torch.tensor([ids.get(task, 0) for task, _ in self._owners], device=self.model.device)
        x_BD = self.model.get_input_embeddings()(ids_B)
        drawn = {
            task: self.model.code_embed(codes_K[None, None], task.embedded, compile=True)[0, 0]
            for task, codes_K in codes.items()
        }
        for row, (task, _) in enumerate(self._owners):
            if task in drawn:
                x_BD[row] = drawn[task]
        self._stream.feed(x_BD)
        begun = {task for task in ids if task.want == "codes"}
        self._entering += missing_halves([task for task, _ in self._owners if task in begun])

    def _write(self, tasks: Sequence[Task], rows: dict[Owner, int]) -> dict[Task, int]:
        """The next ids of texts. Equal options are sampled together."""
        ids = {}
        for (temperature, top_p), group in in_groups(
            tasks, lambda task: (task.request.temperature, task.request.top_p)
        ):
            pick = Picker(1.0, [task.generator for task in group], temperature=temperature, top_p=top_p)
            logits_BV = self.model.text_logits(self._stream.h_BD[[rows[task, False] for task in group]])
            ids |= zip(group, pick(logits_BV, 0).tolist(), strict=True)
        return ids

    def _draw(self, tasks: Sequence[Task], rows: dict[Owner, int]) -> dict[Task, torch.Tensor]:
        """The next codes_K of images."""
        codes, K = {}, self.model.config.image_tokenizer["num_codebooks"]
        for options, group in in_groups(tasks, lambda task: task.drawing):
            halves = [(task, is_half) for is_half in (False, True) for task in group if task.guided or not is_half]
            pick = Picker(generators=[task.draw_generator for task in group], num_codebooks=K, **options)
            codes_BK = self._stream.draw(pick, [rows[owner] for owner in halves])
            codes |= zip(group, codes_BK[: len(group)], strict=True)
        return codes

    def _drop(self, gone: Callable[[Task, bool], bool]) -> None:
        for row in reversed(range(len(self._owners))):
            if gone(*self._owners[row]):
                self._stream.remove(row)
                self._owners[row] = self._owners[-1]
                self._owners.pop()

    def _end(self, tasks: set[Task]) -> None:
        if tasks:
            self._drop(lambda task, _: task in tasks)
            self._entering = [owner for owner in self._entering if owner[0] not in tasks]
        for task in tasks:
            self._ending.submit(task.end)

    def _fail(self, error: Exception) -> None:
        tasks = {task for task, _ in self._owners + self._entering}
        self._stream, self._owners, self._entering = None, [], []
        for task in tasks:
            task.handle.error = error
            self._ending.submit(task.end)


def missing_halves(tasks: Sequence[Task]) -> list[Owner]:
    """The unconditional rows of those that begin to draw with guidance."""
    return [(task, True) for task in tasks if task.want == "codes" and task.guided]


def in_groups(tasks: Sequence[Task], options: Callable[[Task], dict]) -> list[tuple[dict, list[Task]]]:
    """Tasks with equal options together, in order of appearance."""
    groups: list[tuple[dict, list[Task]]] = []
    for task in tasks:
        same = [group for known, group in groups if known == options(task)]
        if same:
            same[0].append(task)
        else:
            groups.append((options(task), [task]))
    return groups
