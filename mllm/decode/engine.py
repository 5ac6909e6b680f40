"""The driver of a server: continuous batching in a thread. Chats and drawings share one running batch; they enter and
leave it between steps.

    with Engine(model, processor) as engine:
        answer = engine.submit(Chat([{"role": "user", "content": "hello"}]))
        drawing = engine.submit(Drawing("a red car", seed=3))
        print(*answer.stream(), drawing.result())

A request gets what `generate_text` or `generate_images` would give, whatever else is in the batch.
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

FOR_CHATS = 8  # one row of so many is reserved for chats, which must not wait until long drawings end
PATIENCE = 10  # seconds that `close` waits for a stuck request


class Handle:
    """The answer to a request. `program` counts the positions that were read and made.

    If `receive` is given, a thread of the engine calls it with each piece, and with None at the end, and `stream` has
    nothing to give."""

    def __init__(self, changed: Condition, receive: Callable[[Piece | None], Any] | None = None):
        self.cancelled, self.error = False, None
        self.program: Program
        self._changed, self._pieces = changed, SimpleQueue()
        self._receive = receive or self._pieces.put

    def stream(self, timeout: float | None = None) -> Iterator[Piece]:
        """Pieces of text, and drawn images, as they come; each is given once. Raises TimeoutError when a piece takes
        longer than `timeout` seconds, and the error of this request."""
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
        """All pieces that `stream` has not given yet, neighbouring texts joined. Raises as `stream`, and CancelledError
        after `cancel`."""
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
        """Take the request out of the queue, or out of the batch before its next step."""
        with self._changed:
            self.cancelled = True
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether the request was cancelled or has failed."""
        return self.cancelled or self.error is not None

    def put(self, piece: Piece | None) -> None:
        """Called by the engine with each piece; None ends the answer."""
        if piece != "":
            self._receive(piece)


class Engine:
    """A batch of at most `max_rows` rows in a thread of its own; a drawing with guidance takes two rows, an edit three.

    Chats are served in the order in which they come, and so are drawings (`_next`). At most `max_waiting` tracks wait
    (None: any number). `submit` may be called from any thread. Leaving the `with` block waits for all requests.

    When a step fails, its tracks begin again in two halves, one after the other, until the track that fails alone is
    found. Its request gets the error; the others get their answers later. Raises ValueError for limits that are too
    small."""

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
        self._again: deque[list[Track]] = deque()  # halves of a batch whose step failed; they come before what waits
        self._alone = False  # whether the batch is such a half, which no other track may join
        self._batch = Batch(model, processor)
        self._resting = 0  # requests whose tracks have all ended, and which may begin more
        self._changed, self._closed = Condition(), False
        self._begun: dict[str, float] = {}  # name of what is being done -> its start
        self._ended: SimpleQueue[Handle | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        # A second thread chooses among candidates and decodes images, so that the batch need not wait.
        self._finisher = Thread(target=self._finish, name="engine-images", daemon=True)
        self._thread.start()
        self._finisher.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """The number of tracks that wait for a place in the batch."""
        return len(self._waiting) + sum(map(len, self._again))

    @property
    def running(self) -> int:
        """The number of tracks in the batch."""
        return len(self._batch.tracks)

    @property
    def alive(self) -> bool:
        """Whether both threads run."""
        return self._thread.is_alive() and self._finisher.is_alive()

    @property
    def busy_for(self) -> float:
        """Seconds since the current step or image began: large when the engine is stuck, 0 when it is idle."""
        return max((time.monotonic() - since for since in [*self._begun.values()]), default=0.0)

    @torch.no_grad()
    def submit(self, request: Request, receive: Callable[[Piece | None], Any] | None = None) -> Handle:
        """Queue a request; `receive` is explained at `Handle`. Raises ValueError for a request that cannot be served,
        queue.Full when too many wait, and RuntimeError when the engine is closed or has stopped."""
        self._check_open()  # before the tokenizing and encoding in `Program`
        handle = Handle(self._changed, receive)
        handle.program = Program(self.model, self.processor, request, handle.put)
        rows, room = handle.program.tracks[0].rows, self.max_rows - self.max_rows // FOR_CHATS
        if rows > room:
            raise ValueError(f"this request takes {rows} rows of {room}: ask for less guidance, or give it more rows")
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
        """Take no more requests, and wait for those under way. After `timeout` seconds they are cancelled; one that is
        stuck is abandoned after `PATIENCE` more."""
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
        """Wait for work. Returns False when the engine is closed and no more can come."""
        with self._changed:
            self._changed.wait_for(lambda: self._handles or (self._closed and not self._resting))
            return bool(self._handles)

    def _admit(self) -> None:
        """Drop the tracks of requests that are over. Then take in waiting tracks while there is room, or one half of a
        failed batch alone."""
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
        """The next track to enter: the first waiting text or the first waiting drawing, whichever kind has fewer rows
        in the batch. None if there is no room for it."""
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
        """These tracks have left the batch. A request whose tracks have all left goes to `_finish`. When one track has
        failed, the request is over and `_admit` drops its others."""
        with self._changed:
            handles = [self._handles.pop(track) for track in tracks]
            for track, handle in zip(tracks, handles, strict=True):
                handle.error = handle.error or track.error
            over = [handle for handle in dict.fromkeys(handles) if handle not in self._handles.values()]
            self._resting += len(over)
        for handle in over:
            self._ended.put(handle)

    def _finish(self) -> None:
        """The second thread: continue each request whose tracks have ended."""
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
        """After an error in a step: all tracks begin again, in two halves. A track that was alone caused the error."""
        tracks, self._batch = self._batch.tracks, Batch(self.model, self.processor)
        if len(tracks) == 1:
            tracks[0].fail(error)
            return self._end(tracks)
        for track in tracks:
            track.begin()
        half = len(tracks) // 2
        with self._changed:
            self._again.extendleft(batch for batch in (tracks[half:], tracks[:half]) if batch)
