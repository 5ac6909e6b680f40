"""What a layout is: the way from the grid of the encoder's features to positions of codes, and back to the decoder's.

Shapes: N images, L = rows x columns places of a grid, P positions of codes, C channels.
"""

import math
from collections.abc import Sequence
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import nn


class Layout(nn.Module):
    """The plainest: each place of the grid has a position, row by row. It has no weights.

    Parts of a layout that images pass on their way to codes are in a module `reading`: codes are named by a hash of it.
    """

    on_grid: ClassVar[bool] = True  # whether position l shows what lies at place l

    def __init__(self, width: int, heads: int, grid: int):
        super().__init__()

    @classmethod
    def count(cls, grid: int, args: dict[str, Any]) -> int:
        """Positions of an image of grid x grid places. Raises ValueError for `layout_args` that it has not."""
        known = [*signature(cls).parameters][3:]
        if unknown := sorted(args.keys() - known):
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise ValueError(f"layout_args: this layout {takes}, not {', '.join(unknown)}")
        cls.whole(args, "depth", 1)
        return grid**2

    @staticmethod
    def whole(args: dict[str, Any], name: str, default: int | None = None) -> int:
        """An argument. Raises ValueError for one that is no whole number above 0."""
        number = args.get(name, default)
        if type(number) is not int or number < 1:
            raise ValueError(f"layout_args: {name} {number} must be a whole number above 0")
        return number

    @classmethod
    def one_way(cls, args: dict[str, Any]) -> bool:
        """Whether earlier codes depend on no later ones."""
        return False

    def gather(self, x_NLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Features of places of a grid of (rows, columns) -> of positions, [N, P, C]."""
        return x_NLC

    def spread(self, x_NPC: torch.Tensor, grid: tuple[int, int] | None) -> tuple[torch.Tensor, tuple[int, int]]:
        """Features of the first positions -> of places, and (rows, columns); those of an image as in training if not
        given. Raises ValueError where so many positions make no picture."""
        side = math.isqrt(x_NPC.shape[1])
        if grid is None and side * side != x_NPC.shape[1]:
            raise ValueError(f"{x_NPC.shape[1]} positions are no square grid: pass grid=(rows, columns)")
        return x_NPC, grid or (side, side)

    def lengths(self, positions: int) -> Sequence[int]:
        """How many of the first of all positions make a picture, fewest first."""
        return [positions]

    def stops(self, positions: int, count: int) -> list[int]:
        """After how many of all positions the picture so far can be shown, `count` times at most: after full rows."""
        side = math.isqrt(positions)
        return [side * (side * place // (count + 1)) for place in range(1, count + 1)]
