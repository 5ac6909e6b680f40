"""The running batch. Tracks enter and leave it between steps, and no track changes what another one gets.

Shapes: B rows, n new positions of each, E = B * n of them, N images under way, K sub-codebooks, D width.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from ..device import send, sync_is_free
from ..fast import Kernels, pick_kernels
from ..model import MllmForConditionalGeneration
from ..text.processor import MllmProcessor
from ..text.templates import Sample
from .program import Draw, Feed, Keep, Track, Want, Write
from .sampling import NONE, NotFinite, Picker, only
from .stream import ONE, New, Stream

Row = tuple[Track, int]  # a track, and 0, or which of its unconditional rows this is


class Cohort(NamedTuple):
    """Tracks whose images began in the same step, and take equally many. Their codes are embedded together, with one
    cache."""

    tracks: Sequence[Track]
    cache: dict | None  # None: each position is embedded alone


class Batch:
    """One row for each track, and unconditional rows for each track that draws with guidance.

    `kernels` is a backend of `fast.pick_kernels`. After a step that raised, make a new batch; the `tracks` may begin
    again there.
    """

    def __init__(self, model: MllmForConditionalGeneration, processor: MllmProcessor, kernels: str = "auto"):
        self.model, self.processor = model, processor
        self.kernels: Kernels = pick_kernels(model, kernels)
        self.num_codebooks = model.config.image_tokenizer["num_codebooks"]
        self.tracks: list[Track] = []  # in the batch, or to enter it with the next step
        self._rows: list[Row] = []
        self._entering: list[Row] = []
        self._cohorts: list[Cohort] = []
        self._stream: Stream | None = None

    def enter(self, tracks: Iterable[Track]) -> None:
        """The prompts of these tracks are read together, before the next step."""
        tracks = list(tracks)
        self.tracks += tracks
        self._entering += [(track, 0) for track in tracks]
        self._entering += [row for track in tracks if track.guided for row in _unconditional_rows(track)]

    def leave(self, tracks: Iterable[Track]) -> None:
        gone = set(tracks)
        if gone:
            self.tracks = [track for track in self.tracks if track not in gone]
            self._drop(lambda track, _: track in gone)
            self._entering = [row for row in self._entering if row[0] not in gone]

    @torch.no_grad()
    def step(self) -> list[Track]:
        """Read the prompts of new rows, then do one step of every row. Returns the tracks that have ended."""
        self._read()
        values = self._choose()
        ended = [track for track, value in values.items() if track.error or not track.take(value)]
        self.leave(ended)
        self._drop(lambda track, number: number and not track.guided)
        have = {track for track, number in self._rows if number}
        begin = [track for track, _ in self._rows if track.guided and track not in have]
        # Guidance that begins later in an image has read all but the newest codes when these are fed to all rows.
        self._entering = [row for track in begin if track.codes for row in _unconditional_rows(track)]
        self._read()
        if self._rows:
            self._feed(values)
        self._entering += [row for track in begin if not track.codes for row in _unconditional_rows(track)]
        return ended

    def _read(self) -> None:
        """Prefill the rows that enter, those with equally long partial images together."""
        by_length: dict[int, list[Row]] = {}
        for track, number in self._entering:
            by_length.setdefault(len(track.codes[: -track.newest]) if number else 0, []).append((track, number))
        self._entering = []
        for rows in by_length.values():
            samples = [self._unconditional(*row) if row[1] else row[0].sample for row in rows]
            room = max(track.room for track, _ in rows)
            if self._stream is None:
                self._stream = Stream(self.model, samples, self.processor, self.kernels, room)
            else:
                self._stream.add(samples, room)
            self._rows += rows

    def _unconditional(self, track: Track, number: int) -> Sample:
        """The prompt of an unconditional row, and the codes that the track has been fed so far."""
        prompt, codes = track.unconditional[number - 1], track.codes[: -track.newest]
        if not codes:
            return prompt
        row = Sample(list(prompt.ids), list(prompt.labels))
        row.add([self.processor.image_id] * len(codes))
        row.images.append(torch.stack(codes))
        row.is_target.append(True)
        return row

    def _choose(self) -> dict[Track, int | torch.Tensor]:
        """The id or codes_nK that each track wanted. Tracks that want the same are sampled together."""
        place = {row: index for index, row in enumerate(self._rows)}
        groups: dict[Want, list[Track]] = {}
        for track, number in self._rows:
            if number == 0:
                groups.setdefault(track.want, []).append(track)
        values: dict[Track, int | torch.Tensor] = {}
        for want, tracks in groups.items():
            generators, rows = [track.generator for track in tracks], [place[track, 0] for track in tracks]
            scored, logps = any(track.scored for track in tracks), ()
            if isinstance(want, Feed):
                values |= dict.fromkeys(tracks, want.id)
            elif isinstance(want, Keep):
                values |= dict.fromkeys(tracks, send(want.codes_nK, self.model.device))
            elif isinstance(want, Write):
                pick = Picker((), generators, sampling=want.sampling, scored=scored)
                ids = pick(only(self.model.text_logits(self._hidden(rows)), want.among), 0).cpu().tolist()
                logps = pick.logps[0][:, None] if scored else ()
                for track, id in zip(tracks, ids, strict=True):
                    if id == NONE:
                        track.fail(NotFinite())
                values |= zip(tracks, ids, strict=True)
            else:
                n, count = len(want.sources), len(tracks)
                rows += [place[track, number] for number in range(1, 1 + len(want.cfg_scales)) for track in tracks]
                of_positions = [generator for generator in generators for _ in range(n)]
                pick = Picker(want.cfg_scales, of_positions, self.num_codebooks, want.sampling, scored)
                codes_CnK = self.kernels.draw(self._aimed(rows, want), pick)[: count * n].unflatten(0, (count, n))
                logps = torch.stack(pick.logps, 1).unflatten(0, (count, n)) if scored else ()
                if sync_is_free(codes_CnK.device) and int(codes_CnK.min()) == NONE:
                    for track, codes_nK in zip(tracks, codes_CnK, strict=True):
                        if int(codes_nK.min()) == NONE:
                            track.fail(NotFinite())
                values |= zip(tracks, codes_CnK, strict=True)
            if isinstance(want, Draw | Keep) and (begun := [one for one in tracks if not one.codes and not one.error]):
                self._begin(begun)
            for track, chosen in zip(tracks, logps, strict=False):  # nothing is scored where nobody wants it
                if track.scored:
                    track.logps += chosen
        return values

    def _hidden(self, rows: list[int], sources: Sequence[int] = (0,)) -> torch.Tensor:
        """The newest hidden states of rows, those of each that `sources` names."""
        return _in_order(self._stream.h_ED, [self._stream.spans[row][source] for row in rows for source in sources])

    def _aimed(self, rows: list[int], want: Draw) -> torch.Tensor:
        """What the code head draws the positions of rows from, [rows * n, D]."""
        h_ED = self._hidden(rows, want.sources)
        if not want.slots:
            return h_ED
        slots_E = send(torch.tensor(want.slots * len(rows)), h_ED.device)
        return self.model.order.aim(h_ED, slots_E)

    def _begin(self, tracks: Sequence[Track]) -> None:
        alike: dict[tuple[str, int], list[Track]] = {}
        for track in tracks:
            alike.setdefault((track.options.code_context, track.options.steps), []).append(track)
        for (context, _), same in alike.items():
            self._cohorts.append(Cohort(same, {} if context == "exact" else None))

    def _feed(self, values: dict[Track, int | torch.Tensor]) -> None:
        """Feed the chosen ids and codes as the next positions of every row."""
        parts, source = [], {}  # embeddings [., D], and the indices of each track's own
        total = 0

        def add(x_PD: torch.Tensor, tracks: Sequence[Track]) -> None:
            nonlocal total
            each = len(x_PD) // len(tracks)
            parts.append(x_PD)
            source.update({track: range(total + at * each, total + (at + 1) * each) for at, track in enumerate(tracks)})
            total += len(x_PD)

        texts = [track for track, value in values.items() if isinstance(value, int) and track.want]
        if texts:
            ids = torch.tensor([values[track] for track in texts])
            add(self.model.get_input_embeddings()(send(ids, self.model.device)), texts)
        in_batch = {track for track, _ in self._rows}
        self._cohorts = [cohort for cohort in self._cohorts if in_batch & set(cohort.tracks)]
        for cohort in self._cohorts:
            # A track that has left keeps its place in the cache, and is fed the codes of another.
            one = next(track for track in cohort.tracks if track in in_batch)
            fed = [track if track in in_batch else one for track in cohort.tracks]
            at = [torch.stack([track.codes[back] for track in fed]) for back in range(-one.newest, 0)]
            embeds = [self.kernels.embed(codes_NK.clamp(min=0), cohort.cache) for codes_NK in at]  # below: `NONE`
            add(torch.stack(embeds, 1).flatten(0, 1) if len(at) > 1 else embeds[0], cohort.tracks)
        slots = {track: track.want.slots for track in source if self._asks(track)}  # with queries
        if slots:
            each = [slot for of_track in slots.values() for slot in of_track]
            parts.append(self.model.order.aims(send(torch.tensor(each), self.model.device)))
            for track, of_track in slots.items():
                source[track] = [*source[track], *range(total, total := total + len(of_track))]
        rows = [source[track] for track, _ in self._rows]
        n = max(len(row) for row in rows)
        new = [self._new(track, len(slots.get(track, ()))) for track, _ in self._rows] if n > 1 else None
        order = [index for row in rows for index in (*row, *[row[-1]] * (n - len(row)))]
        x_ED = torch.cat([part.to(parts[0].dtype) for part in parts]) if len(parts) > 1 else parts[0]
        is_image_E = None
        if self.model.image_layers:
            is_image = [track not in texts or values[track] == self.processor.boi_id for track, _ in self._rows]
            is_image_E = send(torch.tensor(is_image).repeat_interleave(n), x_ED.device)
        self._stream.feed(_in_order(x_ED, order), is_image_E, new)

    def _asks(self, track: Track) -> bool:
        """Whether queries of the next positions are fed with the newest codes of a track."""
        return self.model.order.asks and isinstance(track.want, Draw) and bool(track.codes)

    def _new(self, track: Track, queries: int) -> New:
        if not track.codes:
            return ONE
        kept = track.newest
        return New(self.model.order.sees(len(track.codes) - kept, kept, queries), kept)

    def _drop(self, gone: Callable[[Track, int], bool]) -> None:
        for row in reversed(range(len(self._rows))):
            if gone(*self._rows[row]):
                self._stream.remove(row)
                self._rows[row] = self._rows[-1]
                self._rows.pop()


def _unconditional_rows(track: Track) -> list[Row]:
    return [(track, number) for number in range(1, track.rows)]


def _in_order(x_BD: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return x_BD if rows == list(range(len(x_BD))) else x_BD[send(torch.tensor(rows), x_BD.device)]
