"""The driver of a server: continuous batching in a thread. Chats and drawings share one running batch, which they enter
and leave between steps.

    with Engine(model, processor) as engine:
        answer = engine.submit(Chat([{"role": "user", "content": "hello"}]))
        drawing = engine.submit(Drawing("a red car", seed=3))
        print(*answer.stream(), drawing.result())

What a request gives is what `generate_text` and `generate_images` give, whatever else is in the batch.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from queue import Empty, Full, SimpleQueue
from threading import Condition, Thread
from typing import Any

import torch

from ..model import MllmForConditionalGeneration
from ..processor import MllmProcessor
from .batch import Batch
from .program import Piece, Program, Request, Track

FOR_CHATS = 8  # one row of so many is not for drawings: they are long, and somebody waits for the words of a chat


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
    be called from any thread. Leaving the `with` block waits for what was submitted."""

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
        self._waiting: deque[Track] = deque()
        self._handles: dict[Track, Handle] = {}  # of all tracks that wait or run
        self._resting = 0  # requests between two stages
        self._batch = Batch(model, processor)
        self._changed, self._closed = Condition(), False
        self._between = ThreadPoolExecutor(1, "engine")  # beside the batch, as choosing and decoding take a while
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Tracks that are not yet in the batch."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Tracks in the batch."""
        return len(self._batch.tracks)

    @property
    def alive(self) -> bool:
        """Whether it can do anything."""
        return self._thread.is_alive()

    @torch.no_grad()
    def submit(self, request: Request, receive: Callable[[Piece | None], Any] | None = None) -> Handle:
        """`receive`: see `Handle`. Raises ValueError for what cannot be served, queue.Full, and RuntimeError after
        `close`."""
        self._check_open()  # before the work that a program begins with
        handle = Handle(self._changed, receive)
        handle.program = Program(self.model, self.processor, request, handle.put)
        with self._changed:
            self._check_open()
            self._wait_for_room(handle, handle.program.tracks)
        return handle

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self.max_waiting is not None and self.waiting >= self.max_waiting:
            raise Full(f"{self.waiting} requests are waiting")

    def _wait_for_room(self, handle: Handle, tracks: list[Track]) -> None:
        self._waiting += tracks
        self._handles |= dict.fromkeys(tracks, handle)
        self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, and return when those that there are have ended; those that have not within `timeout`
        seconds are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        while self._thread.is_alive():
            with self._changed:
                handles = set(self._handles.values())
            for handle in handles:
                handle.cancel()
            self._thread.join(0.1)
        self._between.shutdown()

    @torch.no_grad()
    def _work(self) -> None:
        while self._wait():
            try:
                self._admit()
                self._end(self._batch.step())
            except Exception as error:  # the batch is lost, the engine is not
                self._fail(error)

    def _wait(self) -> bool:
        """Until there is something to do; -> False when there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._handles or (self._closed and not self._resting))
            return bool(self._handles)

    def _admit(self) -> None:
        """Those that are no longer wanted leave; from the queue come as many as there is room for."""
        with self._changed:
            gone = [track for track, handle in self._handles.items() if handle.over]
            self._waiting = deque(track for track in self._waiting if not self._handles[track].over)
        self._batch.leave(gone)
        self._end(gone)
        with self._changed:
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
        kind = min(firsts, key=taken.get, default=None)
        return firsts[kind] if kind is not None and firsts[kind].rows <= free[kind] else None

    def _end(self, tracks: list[Track]) -> None:
        """These have left the batch; a request goes on when all of its tracks have."""
        with self._changed:
            handles = set()
            for track in tracks:
                handles.add(handle := self._handles.pop(track))
                handle.error = handle.error or track.error  # its other tracks need not go on
            over = [handle for handle in handles if handle not in self._handles.values()]
            self._resting += len(over)
        for handle in over:
            self._between.submit(self._go_on, handle)

    @torch.no_grad()
    def _go_on(self, handle: Handle) -> None:
        tracks: list[Track] = []
        try:
            if not handle.over:
                tracks = handle.program.resume()
        except Exception as error:
            handle.error = error
        with self._changed:
            self._resting -= 1
            self._wait_for_room(handle, tracks)
        if not tracks:
            handle.put(None)

    def _fail(self, error: Exception) -> None:
        tracks = self._batch.tracks
        self._batch = Batch(self.model, self.processor)
        for track in tracks:
            track.fail(error)
        self._end(tracks)
