"""Encoder and decoder of dense 3x3 convolutions around a small ViT.

Dense convolutions keep matrix units busy; depthwise ones, ViTamin's, leave them idle. Shapes: N images, H x W rows and
columns at some stride, I, O, C channels, L = rows x columns at stride 16. Maps are [N, H, W, C], channels last in
memory, which is what convolutions and norms over channels read fastest.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import VitEncoder, run_blocks, transformer_blocks

STAGES = 4  # halvings of an image
REFINED = 16  # channels of the last convolutions of a decoder, between pixels and pixels


class Conv(nn.Module):
    """[N, H, W, I] -> [N, H, W, O] with a kernel of `side` x `side`, zeros around. The kernel is stored as a matrix
    [O, side * side * I], as Muon takes it."""

    def __init__(self, in_channels: int, out_channels: int, side: int = 3):
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.empty(out_channels, side**2 * in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=(side**2 * in_channels) ** -0.5)

    def forward(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        kernel = self.weight.unflatten(1, (self.side, self.side, -1)).permute(0, 3, 1, 2)
        return F.conv2d(x_NHWC.permute(0, 3, 1, 2), kernel, self.bias, padding=self.side // 2).permute(0, 2, 3, 1)


class ConvBlock(nn.Module):
    """Norm, 3x3, ReLU, 3x3, plus shortcut. It begins as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.conv1 = Conv(channels, channels)
        self.conv2 = Conv(channels, channels)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        return x_NHWC + self.conv2(F.relu(self.conv1(self.norm(x_NHWC))))


class Down(nn.Module):
    """Halves the sides: each square of 2x2 positions becomes one."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = Conv(4 * in_channels, out_channels, side=1)

    def forward(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        squares = x_NHWC.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
        return self.proj(squares.flatten(3))


class Up(nn.Module):
    """Doubles the sides: each position becomes a square of 2x2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = Conv(in_channels, 4 * out_channels, side=1)

    def forward(self, x_NHWC: torch.Tensor) -> torch.Tensor:
        squares = self.proj(x_NHWC).unflatten(3, (2, 2, -1)).transpose(2, 3)
        return squares.flatten(3, 4).flatten(1, 2)


def conv_blocks(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ConvBlock(channels) for _ in range(depth)))


def first_side(conv_widths) -> int:
    """Of the squares of pixels that are the positions of the first stage."""
    if not 1 <= len(conv_widths) <= STAGES:
        raise ValueError(f"conv_widths {conv_widths}: 1 to {STAGES} stages lie before stride 16")
    return 2 ** (STAGES - len(conv_widths))


class ConvEncoder(VitEncoder):
    """Its convolutions are stages of dense ones, each then halved."""

    def __init__(self, conv_widths, conv_depths, width: int, depth: int, heads: int, drop_path: float):
        super().__init__()
        self.side = first_side(conv_widths)
        self.stem = Conv(3 * self.side**2, conv_widths[0])
        after = (*conv_widths[1:], width)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(conv_blocks(channels, blocks), Down(channels, below))
                for channels, blocks, below in zip(conv_widths, conv_depths, after, strict=True)
            )
        )
        self.blocks = transformer_blocks(width, depth, heads, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def embed(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        x_NHWC = F.pixel_unshuffle(pixels_N3HW, self.side).permute(0, 2, 3, 1).contiguous()
        return self.stages(self.stem(x_NHWC)).flatten(1, 2)


class ConvDecoder(nn.Module):
    """features [N, L, C] -> pixels_N3HW, not clamped: the encoder mirrored, then two convolutions between
    pixels, which see across the squares that positions of the first stage become."""

    def __init__(self, conv_widths, conv_depths, width: int, depth: int, heads: int, drop_path: float):
        super().__init__()
        self.checkpointing, self.side = False, first_side(conv_widths)
        self.blocks = transformer_blocks(width, depth, heads, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        before = (*conv_widths[1:], width)
        stages = [
            nn.Sequential(Up(above, channels), conv_blocks(channels, blocks))
            for above, channels, blocks in zip(before, conv_widths, conv_depths, strict=True)
        ]
        self.stages = nn.Sequential(*reversed(stages))
        self.last_norm = nn.LayerNorm(conv_widths[0], eps=1e-6)
        self.last = Conv(conv_widths[0], 3 * self.side**2)
        self.refine = nn.Sequential(Conv(3, REFINED), nn.ReLU(), Conv(REFINED, 3))
        nn.init.zeros_(self.refine[-1].weight)

    @property
    def last_weight(self) -> nn.Parameter:
        """Of the layer that first gives pixels."""
        return self.last.weight

    def forward(self, x_NLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`grid` is (rows, columns) with rows * columns == L."""
        x_NLC = self.norm(run_blocks(self.blocks, x_NLC, self.checkpointing))
        x_NHWC = self.last(self.last_norm(self.stages(x_NLC.unflatten(1, grid))))
        pixels_NHW3 = F.pixel_shuffle(x_NHWC.permute(0, 3, 1, 2), self.side).permute(0, 2, 3, 1)
        return (pixels_NHW3 + self.refine(pixels_NHW3)).permute(0, 3, 1, 2)
