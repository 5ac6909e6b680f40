"""The driver of a server: continuous batching in a thread. Chats and drawings share one running batch, which they enter
and leave between steps.

    with Engine(model, processor) as engine:
        answer = engine.submit(Chat([{"role": "user", "content": "hello"}]))
        drawing = engine.submit(Drawing("a red car", seed=3))
        print(*answer.stream(), drawing.result())

What a request gives is what `generate_text` and `generate_images` give, whatever else is in the batch.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from queue import Empty, Full, SimpleQueue
from threading import Condition, Thread
from typing import Any

import torch

from ..model import MllmForConditionalGeneration
from ..text.processor import MllmProcessor
from .batch import Batch
from .program import Piece, Program, Request, Track

FOR_CHATS = 8  # one row of so many is not for drawings: they are long, and somebody waits for the words of a chat
PATIENCE = 10  # seconds to wait for what is stuck, at the end


class Handle:
    """What comes of a request; `program` counts what was read and made.

    `receive` is called, by a thread of the engine, with each piece and None at the end, in place of `stream`."""

    def __init__(self, changed: Condition, receive: Callable[[Piece | None], Any] | None = None):
        self.cancelled, self.error = False, None
        self.program: Program
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


class Engine:
    """A batch of at most `max_rows` in a thread of its own; a drawing with guidance takes two rows. First come, first
    served, among chats and among drawings (`_next`); at most `max_waiting` tracks wait (None: any number). `submit` may
    be called from any thread. Leaving the `with` block waits for what was submitted.

    When a step fails, its tracks begin again in two batches, one after the other; so, half by half, the one that fails
    alone is found, and its request gets the error. The others give what they would have given, later."""

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
        self._handles: dict[Track, Handle] = {}  # of all tracks that wait or run
        self._waiting: deque[Track] = deque()
        self._again: deque[list[Track]] = deque()  # batches after a step that failed, before all that wait
        self._alone = False  # the batch is one of these: nobody joins
        self._batch = Batch(model, processor)
        self._resting = 0  # requests whose tracks have ended, and which may begin others
        self._changed, self._closed = Condition(), False
        self._begun: dict[str, float] = {}  # what is being done, since when
        self._ended: SimpleQueue[Handle | None] = SimpleQueue()
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
        """Tracks that are not in the batch."""
        return len(self._waiting) + sum(map(len, self._again))

    @property
    def running(self) -> int:
        """Tracks in the batch."""
        return len(self._batch.tracks)

    @property
    def alive(self) -> bool:
        """Whether it can do anything."""
        return self._thread.is_alive() and self._finisher.is_alive()

    @property
    def busy_for(self) -> float:
        """Seconds since it began with what it is doing now, a step or an image: many when it is stuck; 0 when idle."""
        return max((time.monotonic() - since for since in [*self._begun.values()]), default=0.0)

    @torch.no_grad()
    def submit(self, request: Request, receive: Callable[[Piece | None], Any] | None = None) -> Handle:
        """`receive`: see `Handle`. Raises ValueError for what cannot be served, queue.Full, and RuntimeError after
        `close`, or when its thread has ended."""
        self._check_open()  # before the work that a program begins with
        handle = Handle(self._changed, receive)
        handle.program = Program(self.model, self.processor, request, handle.put)
        with self._changed:
            self._check_open()
            self._wait_for_room(handle, handle.program.tracks)
        return handle

    def _check_open(self) -> None:
        if self._closed or not self.alive:
            raise RuntimeError("the engine is closed" if self._closed else "the engine has stopped")
        if self.max_waiting is not None and self.waiting >= self.max_waiting:
            raise Full(f"{self.waiting} requests are waiting")

    def _wait_for_room(self, handle: Handle, tracks: list[Track]) -> None:
        self._waiting += tracks
        self._handles |= dict.fromkeys(tracks, handle)
        self._changed.notify_all()

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
                handles = set(self._handles.values())
            for handle in handles:
                handle.cancel()
            self._thread.join(0.1)
        self._finisher.join(None if timeout is None else PATIENCE)

    @torch.no_grad()
    def _work(self) -> None:
        while self._wait():
            try:
                with self._doing("step"):
                    self._admit()
                    self._end(self._batch.step())
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

    def _wait(self) -> bool:
        """Until there is something to do; -> False when there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._handles or (self._closed and not self._resting))
            return bool(self._handles)

    def _admit(self) -> None:
        """Those that are no longer wanted leave. Of those that wait come as many as there is room for; of those that
        begin again, one batch alone."""
        with self._changed:
            gone = [track for track, handle in self._handles.items() if handle.over]
            for tracks in (self._waiting, *self._again):
                for track in [track for track in tracks if self._handles[track].over]:
                    tracks.remove(track)
        self._batch.leave(gone)
        self._end(gone)
        with self._changed:
            if self._alone and self._batch.tracks:
                return
            self._alone = bool(self._again)
            if self._again:
                return self._batch.enter(self._again.popleft())
            while track := self._next():
                self._waiting.remove(track)
                self._batch.enter([track])

    def _next(self) -> Track | None:
        """The first of the texts or of the drawings that wait, whichever have fewer rows, so that neither wait for all
        of the others; None where there is no room."""
        firsts: dict[bool, Track] = {}
        for track in self._waiting:
            firsts.setdefault(track.draws, track)
        taken = {False: 0, True: 0}
        for track in self._batch.tracks:
            taken[track.draws] += track.rows
        free = {False: self.max_rows - sum(taken.values())}
        free[True] = min(free[False], self.max_rows - self.max_rows // FOR_CHATS - taken[True])
        draws = min(firsts, key=taken.get, default=None)
        return firsts[draws] if draws is not None and firsts[draws].rows <= free[draws] else None

    def _end(self, tracks: list[Track]) -> None:
        """These have left the batch. A request goes on when all of its tracks have; if one has failed, the others need
        not go on."""
        with self._changed:
            handles = [self._handles.pop(track) for track in tracks]
            for track, handle in zip(tracks, handles, strict=True):
                handle.error = handle.error or track.error
            over = [handle for handle in dict.fromkeys(handles) if handle not in self._handles.values()]
            self._resting += len(over)
        for handle in over:
            self._ended.put(handle)

    def _finish(self) -> None:
        """What follows when the tracks of a request have ended, in a thread of its own."""
        while handle := self._ended.get():
            with self._doing("end"), suppress(Exception):  # of who receives: nobody else's business
                self._go_on(handle)

    @torch.no_grad()
    def _go_on(self, handle: Handle) -> None:
        following: list[Track] = []
        try:
            if not handle.over:
                following = handle.program.resume()
        except Exception as error:
            handle.error = error
        try:
            if not following:
                handle.put(None)
        finally:
            with self._changed:
                self._resting -= 1
                self._wait_for_room(handle, following)

    def _fail(self, error: Exception) -> None:
        """All begin again, in two batches; but of one, it is known who has caused the error."""
        tracks, self._batch = self._batch.tracks, Batch(self.model, self.processor)
        if len(tracks) == 1:
            tracks[0].fail(error)
            return self._end(tracks)
        for track in tracks:
            track.begin()
        half = len(tracks) // 2
        with self._changed:
            self._again.extendleft(batch for batch in (tracks[half:], tracks[:half]) if batch)
