"""Squares of 2 x 2 neighbours, row by row of squares: a quarter of the steps (as UniAR's groups, arXiv 2606.18249). A
position is predicted from the one that stands at the same corner of the square before."""

from tokenizer import ImageTokenizerConfig

from .base import Order

SIDE = 2  # of a square


class Groups(Order):
    @staticmethod
    def plan(sizes: ImageTokenizerConfig) -> list[dict[int, int | None]]:
        side = sizes.grid
        if side % SIDE:
            raise ValueError(f"order 'groups': {side} x {side} positions are no whole squares of {SIDE} x {SIDE}")
        corners = [row * side + column for row in range(SIDE) for column in range(SIDE)]
        firsts = [row * side + column for row in range(0, side, SIDE) for column in range(0, side, SIDE)]
        before = [None, *firsts]
        return [
            {first + corner: None if start is None else start + corner for corner in corners}
            for start, first in zip(before, firsts, strict=False)
        ]
