"""The picture at several scales, coarse to fine (HieraTok, arXiv 2509.23736).

Shapes: N images, L = rows x columns places of a grid, P positions of codes of all maps, C channels.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..blocks import transformer_blocks
from .base import Layout

Sides = tuple[int, int]  # rows and columns of a map


class ScaleLayout(Layout):
    """Square maps whose sides are `scales`, coarsest first: averages of the grid, and the grid itself, which is the
    last one. In `depth` transformer blocks before codes, and as many after them, a map sees itself and coarser ones
    (`scale_mask`), so that no code depends on a finer one. An image of another size has another last map.

    The decoder reads the finest map alone: the blocks have brought the coarser ones to it. With `tail_drop`, it reads
    in training any of the maps, equally often; then the first maps alone make a picture, a coarser one. Raises
    ValueError for values that make no sense.
    """

    on_grid = False

    def __init__(
        self, width: int, heads: int, grid: int, scales: Sequence[int], depth: int = 1, tail_drop: bool = False
    ):
        super().__init__(width, heads, grid)
        self.scales, self.tail_drop = scales, tail_drop
        self.reading, self.writing = (ScaleBlocks(scales, width, depth, heads) for _ in range(2))

    @classmethod
    def count(cls, grid: int, args: dict[str, Any]) -> int:
        super().count(grid, args)
        scales, tail_drop = args.get("scales"), args.get("tail_drop", False)
        whole = isinstance(scales, list | tuple) and all(type(side) is int and side > 0 for side in scales)
        if not whole or list(scales) != sorted({*scales, grid}):
            raise ValueError(f"layout_args: scales {scales} must be whole numbers that rise to {grid}, the grid's side")
        if type(tail_drop) is not bool:
            raise ValueError(f"layout_args: tail_drop {tail_drop!r} is neither true nor false")
        return sum(side**2 for side in scales)

    @classmethod
    def one_way(cls, args: dict[str, Any]) -> bool:
        return True

    def gather(self, x_NLC: torch.Tensor, grid: Sides) -> torch.Tensor:
        x_NCHW, maps = x_NLC.mT.unflatten(2, grid), self._maps(grid)
        x_NCP = torch.cat([F.adaptive_avg_pool2d(x_NCHW, sides).flatten(2) for sides in maps], 2)
        return self.reading(x_NCP.mT, maps)

    def spread(self, x_NPC: torch.Tensor, grid: Sides | None) -> tuple[torch.Tensor, Sides]:
        given, grid = x_NPC.shape[1], grid or (self.scales[-1],) * 2
        maps = self._maps(grid)
        lengths = self.lengths(sum(map(prod, maps)))
        if given not in lengths:
            known = ", ".join(map(str, lengths))
            raise ValueError(f"{given} positions, but {grid[0]} x {grid[1]} places have pictures of {known}")
        maps = maps[: 1 + lengths.index(given)] if self.tail_drop else maps
        read = self.writing(x_NPC, maps).split([prod(sides) for sides in maps], 1)
        if not (self.training and self.tail_drop):
            return _resized(read[-1], maps[-1], grid), grid
        images = torch.arange(len(x_NPC), device=x_NPC.device)
        chosen_N = torch.randint(len(maps), (len(images),), device=images.device)
        read_SNLC = torch.stack([_resized(*pair, grid) for pair in zip(read, maps, strict=True)])
        return read_SNLC[chosen_N, images], grid

    def lengths(self, positions: int) -> Sequence[int]:
        coarser = accumulate(side**2 for side in self.scales[:-1]) if self.tail_drop else ()
        return [*coarser, positions]

    def stops(self, positions: int, count: int) -> list[int]:
        fewer = self.lengths(positions)[:-1]
        return fewer[max(0, len(fewer) - count) :]

    def _maps(self, grid: Sides) -> list[Sides]:
        return [*((side, side) for side in self.scales[:-1]), grid]


class ScaleBlocks(nn.Module):
    """Transformer blocks over maps, coarsest first, and a learned vector for each of their positions."""

    def __init__(self, scales: Sequence[int], width: int, depth: int, heads: int):
        super().__init__()
        self.scales = scales
        self.order_PC = nn.Parameter(0.02 * torch.randn(sum(side**2 for side in scales), width))
        self.blocks = transformer_blocks(width, depth, heads, 0.0)

    def forward(self, x_NPC: torch.Tensor, maps: Sequence[Sides]) -> torch.Tensor:
        """Of all maps, or the first ones."""
        vectors = self.order_PC[None].split([side**2 for side in self.scales], 1)
        of_maps = zip(vectors, self.scales, maps, strict=False)
        x_NPC = x_NPC + torch.cat([_resized(x_1LC, (side, side), sides) for x_1LC, side, sides in of_maps], 1)
        mask_PP = scale_mask([prod(sides) for sides in maps], x_NPC.device)
        for block in self.blocks:
            x_NPC = block(x_NPC, mask_PP)
        return x_NPC


def scale_mask(sizes: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """Which positions each sees, [P, P], of maps of so many: all of its own map and of earlier ones."""
    map_P = torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)], device=device)
    return map_P[:, None] >= map_P


def _resized(x_NLC: torch.Tensor, sides: Sides, wanted: Sides) -> torch.Tensor:
    if sides == wanted:
        return x_NLC
    return F.interpolate(x_NLC.mT.unflatten(2, sides), wanted, mode="bilinear").flatten(2).mT
