"""Places spread over the image, few at first and many at the end, in as many steps as one likes, after locality-aware
parallel decoding (LPD, arXiv 2507.01957). The places of a step are far from each other, and near to those drawn before.
Unlike LPD's, they follow one order for any number of steps, so that a drawing is read as it was drawn.

Each position is predicted from a query of its own, a learned vector fed in its place. Queries see all codes of earlier
steps and each other, and nothing sees them later. Codes see one another in the order of drawing, whatever the steps.
Shapes: T positions of a sequence, n images to draw, L positions an image, Q columns for queries.
"""

import math

import torch
import torch.nn.functional as F

from tokenizer import ImageTokenizerConfig

from ..device import send
from .base import Order, Step


class Locality(Order):
    asks = True

    def __init__(self, sizes: ImageTokenizerConfig, dim: int):
        super().__init__(sizes, dim)
        self.fewest = sizes.grid  # in a step fewer, the first would draw more than one position
        self.steps = self.steps_in(_own_choice(sizes.num_positions))

    @staticmethod
    def plan(sizes: ImageTokenizerConfig) -> list[dict[int, int | None]]:
        places = _spread(sizes.num_positions)
        return [{place: before} for before, place in zip([None, *places], places, strict=False)]

    def steps_in(self, count: int) -> list[Step]:
        L, before = len(self.places), 1
        if count == 0:
            return self.steps
        if not self.fewest <= count <= L:
            raise ValueError(f"steps {count}: order 'locality' was trained to draw an image in {self.fewest} to {L}")
        steps = [Step(0, (self.places[0],), (0,))]
        for end in _ends(L, count)[1:]:
            first = steps[-1].first + before
            size = end - first
            steps.append(Step(first, tuple(self.places[first:end]), tuple(range(before, before + size))))
            before = size
        return steps

    def some_count(self) -> int:
        """Few steps as often as many, on a logarithmic scale."""
        return round(self.fewest * (len(self.places) / self.fewest) ** torch.rand(()).item())

    def ask(
        self,
        x_BTD: torch.Tensor,
        visible_BTT: torch.Tensor,
        places_BT: torch.Tensor,
        starts: tuple[torch.Tensor, torch.Tensor],
        count: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A sequence, what sees what in it, and where each position stands, with Q columns of queries after it. Images
        to draw in `count` steps begin at the rows and columns `starts`, each [n]."""
        (rows, columns), T, L = (start[:, None] for start in starts), places_BT.shape[1], len(self.places)
        slots, firsts = send(torch.tensor([list(range(L)), self._firsts(count)]), x_BTD.device)
        at_nL = self._asked_at(starts[0], T)
        Q = int(at_nL.max()) + 1 - T
        x_BTD, places_BT = F.pad(x_BTD, (0, 0, 0, Q)), F.pad(places_BT, (0, Q))
        flat = (rows * (T + Q) + at_nL).flatten()
        aims_nLD = self.aims(slots).to(x_BTD.dtype).expand(len(rows), -1, -1)
        x_BTD = x_BTD.flatten(0, 1).index_copy(0, flat, aims_nLD.flatten(0, 1)).view_as(x_BTD)
        places_BT[rows, at_nL] = places_BT[rows, columns] + slots
        seen = F.pad(visible_BTT, (0, Q, 0, Q))
        seen[rows, at_nL, :T] = visible_BTT[rows, columns - 1 + firsts]
        seen[rows[..., None], at_nL[..., None], at_nL[:, None]] = firsts[:, None] == firsts
        seen[:, T:, T:] |= torch.eye(Q, dtype=torch.bool, device=seen.device)  # attention to nothing is not finite
        return x_BTD, seen, places_BT

    def predicted_at(self, rows: torch.Tensor, columns: torch.Tensor, T: int) -> torch.Tensor:
        return torch.cat([columns[:, None] - 1, self._asked_at(rows, T)[:, 1:]], 1)  # the first, from the begin

    def _asked_at(self, rows: torch.Tensor, T: int) -> torch.Tensor:
        """The columns of the queries of each image, [n, L], after T others."""
        L, earlier = len(self.places), (rows[:, None] == rows).tril(-1).sum(1)  # images of the same row
        return T + earlier[:, None] * L + torch.arange(L, device=rows.device)

    def _firsts(self, count: int) -> list[int]:
        """The first slot of each slot's step."""
        return [step.first for step in self.steps_in(count) for _ in step.places]


def _own_choice(positions: int) -> int:
    """As LPD's 20 steps for 256 positions."""
    return min(positions, round(1.25 * math.isqrt(positions)))


def _ends(positions: int, steps: int) -> list[int]:
    """How many positions are drawn after each step: MaskGIT's cosine (arXiv 2202.04200), and at least one more."""
    ends = [1]
    for step in range(2, steps + 1):
        ends.append(max(ends[-1] + 1, round(positions * (1 - math.cos(math.pi / 2 * step / steps)))))
    return ends


def _spread(positions: int) -> list[int]:
    """All places, the middle first. Each next one is as far as possible from those of its own step, and as near as
    possible to those of earlier ones."""
    side, places, rest = math.isqrt(positions), [], list(range(positions))
    at = [divmod(place, side) for place in rest]
    earlier = [math.dist(one, (side // 2, side // 2)) for one in at]  # how far the nearest of earlier steps is
    for end in _ends(positions, _own_choice(positions)):
        together = [2.0 * side] * positions  # how far the nearest of this step is: none yet
        while len(places) < end:
            chosen = max(rest, key=[far - away for far, away in zip(together, earlier, strict=True)].__getitem__)
            rest.remove(chosen)
            places.append(chosen)
            together = [min(far, math.dist(one, at[chosen])) for far, one in zip(together, at, strict=True)]
        earlier = list(map(min, earlier, together))
    return places
