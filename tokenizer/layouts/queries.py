"""Positions without a place: learned queries ask the whole picture (TiTok, arXiv 2406.07550).

Shapes: N images, L = rows x columns places of a grid, P positions of codes, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..blocks import transformer_blocks
from .base import Layout

TAIL_DROPS = ("none", "uniform", "powers")


class QueryLayout(Layout):
    """`positions` queries read the features of all places, whatever the image's size, through `depth` transformer
    blocks; as many blocks bring their answers back to places.

    With `tail_drop`, training keeps only the first positions of each image: any number of them, equally often
    ("uniform", One-D-Piece, arXiv 2501.10064), or a power of two or all ("powers", FlexTok, arXiv 2502.13967). Then the
    first positions alone make a picture, a coarser one. With `causal`, a query does not see the ones after it, so that
    a code depends on no later one, as text does (SEED, arXiv 2307.08041). Raises ValueError for values that make no
    sense.
    """

    on_grid = False

    def __init__(
        self,
        width: int,
        heads: int,
        grid: int,
        positions: int,
        depth: int = 2,
        tail_drop: str = "none",
        causal: bool = False,
    ):
        super().__init__(width, heads, grid)
        self.positions, self.grid, self.tail_drop, self.causal = positions, grid, tail_drop, causal
        self.reading = Asking(positions, width, depth, heads)
        self.writing = Asking(grid**2, width, depth, heads)
        self.order_PC = nn.Parameter(0.02 * torch.randn(positions, width))
        self.absent_C = nn.Parameter(0.02 * torch.randn(width))  # in place of a position that is not there

    @classmethod
    def count(cls, grid: int, args: dict[str, Any]) -> int:
        super().count(grid, args)
        if args.get("tail_drop", "none") not in TAIL_DROPS:
            raise ValueError(f"layout_args: unknown tail_drop {args['tail_drop']!r}; known: {', '.join(TAIL_DROPS)}")
        if type(args.get("causal", False)) is not bool:
            raise ValueError(f"layout_args: causal {args['causal']!r} is neither true nor false")
        return cls.whole(args, "positions")

    @classmethod
    def one_way(cls, args: dict[str, Any]) -> bool:
        return args.get("causal", False)

    def gather(self, x_NLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.reading(x_NLC, self.reading.asking_AC, self.causal)

    def spread(self, x_NPC: torch.Tensor, grid: tuple[int, int] | None) -> tuple[torch.Tensor, tuple[int, int]]:
        given, grid = x_NPC.shape[1], grid or (self.grid, self.grid)
        if not 1 <= given <= self.positions:
            raise ValueError(f"{given} positions, but this image tokenizer's pictures have 1 to {self.positions}")
        if given not in self.lengths(self.positions):
            raise ValueError(
                f"{given} positions of {self.positions}: only image tokenizers trained with layout_args.tail_drop "
                "make a picture of the first ones"
            )
        present_NP1 = self._kept(x_NPC)[..., None]
        x_NPC = torch.where(present_NP1, F.pad(x_NPC, (0, 0, 0, self.positions - given)), self.absent_C)
        places_CHW = self.writing.asking_AC.T.unflatten(1, (self.grid, self.grid))
        if grid != (self.grid, self.grid):
            places_CHW = F.interpolate(places_CHW[None], grid, mode="bilinear")[0]
        return self.writing(x_NPC + self.order_PC, places_CHW.flatten(1).T), grid

    def _kept(self, x_NPC: torch.Tensor) -> torch.Tensor:
        """Which positions are there, [N, P]: those that are given, and in training some of the first."""
        N, given, _ = x_NPC.shape
        lengths_N = torch.full((N,), given, device=x_NPC.device)
        if self.training and self.tail_drop == "uniform":
            lengths_N = torch.randint(1, given + 1, (N,), device=x_NPC.device)
        elif self.training and self.tail_drop == "powers":
            powers_N = 2 ** torch.randint((given - 1).bit_length() + 1, (N,), device=x_NPC.device)
            lengths_N = powers_N.clamp(max=given)
        return torch.arange(self.positions, device=x_NPC.device) < lengths_N[:, None]

    def lengths(self, positions: int) -> Sequence[int]:
        return [positions] if self.tail_drop == "none" else range(1, positions + 1)

    def stops(self, positions: int, count: int) -> list[int]:
        if self.tail_drop == "none":
            return []
        return [positions * place // (count + 1) for place in range(1, count + 1) if positions * place > count]


class Asking(nn.Module):
    """A learned vectors, [A, C], and the transformer blocks in which they ask others."""

    def __init__(self, count: int, width: int, depth: int, heads: int):
        super().__init__()
        self.asking_AC = nn.Parameter(0.02 * torch.randn(count, width))
        self.blocks = transformer_blocks(width, depth, heads, 0.0)

    def forward(self, x_NLC: torch.Tensor, asking_AC: torch.Tensor, causal: bool = False) -> torch.Tensor:
        """-> what `asking_AC` become, [N, A, C]. `causal`: none sees later ones, nor hears of them from the others."""
        L, T = x_NLC.shape[1], x_NLC.shape[1] + len(asking_AC)
        places_T = torch.arange(T, device=x_NLC.device)
        mask_TT = (places_T < L) | (places_T <= places_T[:, None]) if causal else None
        x_NTC = torch.cat([x_NLC, asking_AC.to(x_NLC.dtype).expand(len(x_NLC), -1, -1)], 1)
        for block in self.blocks:
            x_NTC = block(x_NTC, mask_TT)
        return x_NTC[:, L:]
