"""Continuous batching: chats and drawings share one running batch, which they enter and leave between steps.

    with Engine(model, processor) as engine:
        answer = engine.submit(Chat([{"role": "user", "content": "hello"}]))
        drawing = engine.submit(Drawing("a red car", seed=3))
        print(*answer.stream(), drawing.result())

What a request gives is what `generate_text` and `generate_images` give, whatever else is in the batch.
Shapes: B rows of the batch, D width, K sub-codebooks, V entries of each.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, Full, SimpleQueue
from threading import Condition, Thread
from typing import Any, TypeAlias

import torch
from PIL import Image

from .generate import CFG_SCALE, DRAWING_TEMPERATURE, Messages, Spelled, candidate_generators, start_drawing
from .model import MllmForConditionalGeneration
from .processor import MllmProcessor, as_codes
from .sampling import Picker, check_chosen, check_sampling, may_ask
from .stream import Stream, check_length
from .templates import Sample
from .verify import best

Owner: TypeAlias = "tuple[Task, bool]"  # of a row: its task, and whether it is the unconditional half
FOR_CHATS = 8  # one row of so many is not for drawings: they are long, and somebody waits for the words of a chat
PATIENCE = 10  # seconds to wait for what is stuck, at the end
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

    handle: Handle

    def __init__(
        self, model: MllmForConditionalGeneration, processor: MllmProcessor, request: Chat | Drawing, number: int = 0
    ):
        self.model, self.processor, self.request, self.number = model, processor, request, number
        self.rivals, self.ended, self.told = [self], False, 0
        self.may_draw = isinstance(request, Drawing) or request.drawing is not None
        self.drawing, self.writing = {**DRAWING_OPTIONS}, {}
        if isinstance(request, Drawing):
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
        self.begin()

    def begin(self) -> None:
        """From the first step; or once more, to the same ids and codes, of which nothing is told twice."""
        self.tokens = self.pieces = 0
        self.embedded, self.codes = {}, []
        self.draw_generator = candidate_generators(self.request.seed, self.number + 1)[self.number]
        if isinstance(self.request, Drawing):
            self.generator, self._steps = self.draw_generator, self._plan()
        else:
            self.generator, self._steps = torch.Generator().manual_seed(self.request.seed), self._write()
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

    def _count(self) -> None:
        """One more id, or one more position of an image."""
        self.tokens += 1
        self.handle.tokens = sum(rival.tokens for rival in self.rivals)

    def _tell(self, piece: Piece) -> None:
        self.pieces += 1
        if self.pieces > self.told:
            self.told = self.pieces
            self.handle.put(piece)

    def _write(self) -> Generator[str | int, Any, None]:
        left, length = self.request.max_new_tokens, len(self.sample.ids)
        spelled, text = Spelled(self.processor), UpTo(self.request.stop)
        while left > 0:
            id, left, length = (yield "text"), left - 1, length + 1
            check_chosen(id)
            self._count()
            self._tell(text.add(spelled.add(id)))
            if text.ended:
                return
            if id == self.processor.boi_id and self.may_draw:
                self._tell(text.rest())
                check_length(self.model, self.processor, Sample([id] * length), self.processor.num_positions)
                yield from self._draw()
                self._tell(self.model.decode_image_tokens(torch.stack(self.codes)[None])[0])
                length, spelled = length + self.processor.num_positions + 1, Spelled(self.processor)
                if left:
                    check_length(self.model, self.processor, Sample([id] * length), left)
                    yield self.processor.eoi_id
            elif id in (self.processor.eos_id, self.processor.boi_id):
                break
        else:
            self.handle.ended_by = "length"
        self._tell(text.rest())

    def _plan(self) -> Generator[str | int, Any, None]:
        """As `plan_drawings`, and on to the image."""
        for _ in range(self.model.config.plan_length):
            id = yield "text"
            check_chosen(id)
            self._count()
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
            codes_K = yield "codes"
            if may_ask(codes_K.device):
                check_chosen(int(codes_K.min()))
            self.codes.append(codes_K)
            self.handle.positions = min(len(rival.codes) for rival in self.rivals)
            self._count()
            if len(self.codes) in shown and self is self.rivals[0]:
                self._tell(Preview(torch.stack(self.codes), L))
        check_chosen(int(torch.stack(self.codes).min()))

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
    called from any thread. Leaving the `with` block waits for what was submitted.

    When a step fails, its requests begin again in two batches, one after the other; so, half by half, the one that
    fails alone is found, and gets the error. The others give what they would have given, later."""

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
        self._again: deque[list[Task]] = deque()  # batches after a step that failed, before all that wait
        self._alone = False  # the batch is one of these: nobody joins
        self._owners: list[Owner] = []  # of the rows of the stream
        self._entering: list[Owner] = []
        self._stream: Stream | None = None
        self._changed, self._closed = Condition(), False
        self._begun: dict[str, float] = {}  # what is being done, since when
        self._ended: SimpleQueue[Task | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        # Beside the batch, as choosing and decoding images take a while.
        self._finisher = Thread(target=self._finish, name="engine-images", daemon=True)
        self._thread.start()
        self._finisher.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Requests that are not yet in the batch."""
        return len(self._waiting) + sum(map(len, self._again))

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._batch())

    @property
    def alive(self) -> bool:
        """Whether it can do anything."""
        return self._thread.is_alive() and self._finisher.is_alive()

    @property
    def busy_for(self) -> float:
        """Seconds since it began with what it is doing now, a step or an image: many when it is stuck; 0 when idle."""
        return max((time.monotonic() - since for since in [*self._begun.values()]), default=0.0)

    @torch.no_grad()
    def submit(self, request: Chat | Drawing, receive: Callable[[Piece | None], Any] | None = None) -> Handle:
        """`receive`: see `Handle`. Raises ValueError for what cannot be served, queue.Full, and RuntimeError after
        `close`, or when its thread has ended."""
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
        if self._closed or not self.alive:
            raise RuntimeError("the engine is closed" if self._closed else "the engine has stopped")
        if self.max_waiting is not None and self.waiting >= self.max_waiting:
            raise Full(f"{self.waiting} requests are waiting")

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, and return when those that there are have ended; those that have not within `timeout`
        seconds are cancelled. What is stuck is left behind."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        end = time.monotonic() + PATIENCE
        while self._thread.is_alive() and time.monotonic() < end:
            with self._changed:
                tasks = {*self._waiting, *self._batch(), *(task for batch in self._again for task in batch)}
            for task in tasks:
                task.handle.cancel()
            self._thread.join(0.1)
        self._finisher.join(None if timeout is None else PATIENCE)

    @torch.no_grad()
    def _work(self) -> None:
        while self._wait():
            try:
                with self._doing("step"):
                    self._end({task for task in self._batch() if task.handle.over})
                    self._admit()
                    self._enter()
                    if self._owners:
                        self._step()
            except Exception as error:
                self._fail(error)
        self._ended.put(None)

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        self._begun[what] = time.monotonic()
        try:
            yield
        finally:
            del self._begun[what]

    def _batch(self) -> list[Task]:
        """Those in it, each once, in order."""
        return list(dict.fromkeys(task for task, _ in self._owners + self._entering))

    def _wait(self) -> bool:
        """Until there is something to do; -> False when there never will be."""

        def work() -> bool:
            return bool(self._waiting or self._again or self._owners or self._entering)

        with self._changed:
            self._changed.wait_for(lambda: work() or self._closed)
            return work()

    def _admit(self) -> None:
        """From the queue, as many as there is room for; of those who begin again, one batch alone."""
        with self._changed:
            for tasks in (self._waiting, *self._again):
                for task in [task for task in tasks if task.handle.over]:
                    tasks.remove(task)
                    self._ended.put(task)
            if self._alone and self._batch():
                return
            self._alone = bool(self._again)
            if self._again:
                return self._take_in(self._again.popleft())
            while task := self._next():
                self._waiting.remove(task)
                self._take_in([task])

    def _take_in(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._entering.append((task, False))
            self._entering += missing_halves([task])

    def _next(self) -> Task | None:
        """The first of the chats or of the drawings that wait, whichever have fewer rows, so that neither wait for all
        of the others; None where there is no room."""
        firsts: dict[type, Task] = {}
        for task in self._waiting:
            firsts.setdefault(type(task.request), task)
        taken = {Chat: 0, Drawing: 0}
        for task in self._batch():
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
        drawn: dict[Task, torch.Tensor] = {}
        for row, (task, _) in enumerate(self._owners):
            if task in codes and task not in drawn:
                codes_11K = codes[task][None, None].clamp(min=0)  # below 0 there is none: the task will find out
                drawn[task] = self.model.code_embed(codes_11K, task.embedded, compile=True)[0, 0]
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
            self._ended.put(task)

    def _finish(self) -> None:
        """Of those that have left the batch, one after the other, in a thread of its own."""
        while task := self._ended.get():
            with self._doing("end"), suppress(Exception):  # of who receives: nobody else's business
                task.end()

    def _fail(self, error: Exception) -> None:
        """All begin again, in two batches; but of one, it is known who has caused the error."""
        tasks = self._batch()
        self._stream, self._owners, self._entering = None, [], []
        if len(tasks) == 1:
            tasks[0].handle.error = error
            self._ended.put(tasks[0])
            return
        for task in tasks:
            task.begin()
        half = len(tasks) // 2
        with self._changed:
            self._again.extendleft(batch for batch in (tasks[half:], tasks[:half]) if batch)


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
