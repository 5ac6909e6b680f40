"""The whole picture first, then the grid (Hita, arXiv 2507.02358).

Shapes: N images, L = rows x columns places of a grid, P positions of codes, C channels.
"""

import math
from typing import Any

import torch

from ..blocks import transformer_blocks
from .base import Layout
from .queries import Asking


class HolisticLayout(Layout):
    """`queries` learned queries read all places and come first; the places follow, row by row, so that what a language
    model draws first is of the whole picture. `depth` transformer blocks bring both together before the decoder. Raises
    ValueError for numbers below 1."""

    on_grid = False

    def __init__(self, width: int, heads: int, grid: int, queries: int, depth: int = 1):
        super().__init__(width, heads, grid)
        self.queries = queries
        self.reading = Asking(queries, width, depth, heads)
        self.writing = transformer_blocks(width, depth, heads, 0.0)

    @classmethod
    def count(cls, grid: int, args: dict[str, Any]) -> int:
        return super().count(grid, args) + cls.whole(args, "queries")

    def gather(self, x_NLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return torch.cat([self.reading(x_NLC, self.reading.asking_AC), x_NLC], 1)

    def spread(self, x_NPC: torch.Tensor, grid: tuple[int, int] | None) -> tuple[torch.Tensor, tuple[int, int]]:
        places = x_NPC.shape[1] - self.queries
        if places < 1 or math.prod(grid or (places, 1)) != places:
            raise ValueError(f"{x_NPC.shape[1]} positions, {self.queries} of which lie nowhere, are no whole picture")
        return super().spread(self.writing(x_NPC)[:, self.queries :], grid)

    def stops(self, positions: int, count: int) -> list[int]:
        return []
