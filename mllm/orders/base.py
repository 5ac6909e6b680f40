"""What an order is: which positions of an image are drawn in one step of the backbone, and what each is predicted from.
The mask and the loss of training and the steps of generation follow from that.

A place is a position in the image, row by row. A slot is a position in the sequence: slots follow one another as they
are drawn, and embeddings of codes and hidden states stand in this order.
Shapes: L positions an image, [...] positions to predict, D backbone width.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from tokenizer import ImageTokenizerConfig

from ..device import send


class Step(NamedTuple):
    """Positions that are drawn at once, beginning with the slot `first`: their `places`, and which of the newest hidden
    states each is predicted from (`sources`): those of the step before, then those of queries. Before the first step,
    there is one: of the begin of the image."""

    first: int
    places: tuple[int, ...]
    sources: tuple[int, ...]


class Order(nn.Module, ABC):
    """An order over the positions of an image, for a backbone of width `dim`. Where a step may draw several, there is
    a learned vector for each slot (`aims`), which is added before the code head to what the slot is predicted from.
    Raises ValueError where the order does not fit the image."""

    parallel: ClassVar[bool] = True  # whether a step may draw several positions
    layout: ClassVar[str | None] = "grid"  # of the image's positions, the one that it is for; None: any
    asks: ClassVar[bool] = False  # whether slots are predicted from queries (`locality.py`), not from the step before

    def __init__(self, sizes: ImageTokenizerConfig, dim: int):
        super().__init__()
        self.steps, self.places, self.sources, self.ends = [], [], [], []
        before: list[int | None] = [None]
        for step in self.plan(sizes):
            first, places = len(self.places), tuple(step)
            sources = tuple(before.index(step[place]) for place in places)
            self.steps.append(Step(first, places, sources))
            start = first - len(before)  # the slot of the first hidden state of the step before
            self.sources += [start + source for source in sources]
            self.places += places
            self.ends += [first + len(places)] * len(places)
            before = list(places)
        self.aims = nn.Embedding(len(self.places), dim) if self.parallel else None

    @staticmethod
    @abstractmethod
    def plan(sizes: ImageTokenizerConfig) -> list[dict[int, int | None]]:
        """Each step as {place: the place of the step before that it is predicted from}; None is the begin of the
        image."""

    def steps_in(self, count: int) -> list[Step]:
        """The steps of an image in so many (0: the order's own choice). Raises ValueError for a number that is not
        possible."""
        if count not in (0, len(self.steps)):
            raise ValueError(f"steps {count}: this model draws an image in {len(self.steps)}; leave steps out")
        return self.steps

    def some_count(self) -> int:
        """A number of steps to train with."""
        return 0

    def sees(self, first: int, count: int, queries: int) -> list[int]:
        """Of so many slots from `first` on, and so many queries, which are fed together, how many each sees."""
        return [min(end - first, count) for end in self.ends[first : first + count]] + [count + queries] * queries

    def predicted_at(self, rows: torch.Tensor, columns: torch.Tensor, T: int) -> torch.Tensor:
        """The columns that each slot is predicted from, [n, L], for images that begin at `rows` and `columns`, each
        [n], of sequences of T positions."""
        return columns[:, None] + send(torch.tensor(self.sources), columns.device)

    def of_slots(self, by_place: torch.Tensor, dim: int) -> torch.Tensor:
        """Values of places, along `dim`, in the order of slots."""
        return self._reordered(by_place, self.places, dim)

    def of_places(self, by_slot: torch.Tensor, dim: int) -> torch.Tensor:
        """Values of slots, along `dim`, in the order of places."""
        return self._reordered(by_slot, sorted(range(len(self.places)), key=self.places.__getitem__), dim)

    def aim(self, h: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., D] that predict the `slots` [...] -> what the code head is given."""
        return h if self.aims is None else h + self.aims(slots).to(h.dtype)

    def ahead(self, is_slot_BT: torch.Tensor) -> torch.Tensor:
        """Which later columns of its own step each slot of a sequence sees, [B, T, T]. Each run of slots holds whole
        images; the last may be unfinished after a step, or all of them shorter (`image_inputs.py`)."""
        columns = torch.arange(is_slot_BT.shape[1], device=is_slot_BT.device)
        before_BT = columns.masked_fill(is_slot_BT, -1).cummax(1).values  # the last column that is no slot
        slots_BT = (columns - before_BT - 1) % len(self.places)
        ends = send(torch.tensor(self.ends), is_slot_BT.device)
        ends_BT = torch.where(is_slot_BT, columns - slots_BT + ends[slots_BT], 0)
        same_run_BTT = before_BT[:, None] == before_BT[..., None]  # a step may be longer than a shortened image
        return (columns > columns[:, None]) & (columns < ends_BT[..., None]) & same_run_BTT

    def _reordered(self, x: torch.Tensor, order: list[int], dim: int) -> torch.Tensor:
        return x.index_select(dim, send(torch.tensor(order), x.device)) if self.parallel else x
