"""The layers of ViTamin (arXiv 2404.02132) under the names that they have in timm, whose weights they thus take.

Shapes: N images, L positions, C channels. timm is not imported: that takes seconds, most of them for other models.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

EXPANSION = 4  # of the MBConv blocks, relative to their output width


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of [N, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return super().forward(x_NCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """In training, a residual branch is left out for a part `rate` of the images (stochastic depth, arXiv 1603.09382),
    and the others' made up for it."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class Stem(nn.Module):
    """pixels_N3HW -> [N, C, H/2, W/2]"""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.norm1 = LayerNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            nn.init.zeros_(conv.bias)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(x_NCHW))))


class Halved(nn.Module):
    """The shortcut of a block that halves the sides."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.expand = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.expand(self.pool(x_NCHW))


class MbConv(nn.Module):
    """Norm, expand, depthwise 3x3, shrink, plus shortcut."""

    def __init__(self, in_channels: int, out_channels: int, halve: bool):
        super().__init__()
        hidden = EXPANSION * out_channels
        self.shortcut = Halved(in_channels, out_channels) if halve else nn.Identity()
        self.pre_norm = LayerNorm2d(in_channels)
        self.conv1_1x1 = nn.Conv2d(in_channels, hidden, 1)
        self.conv2_kxk = nn.Conv2d(hidden, hidden, 3, stride=2 if halve else 1, padding=1, groups=hidden)
        self.conv3_1x1 = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.conv1_1x1(self.pre_norm(x_NCHW)))
        return self.conv3_1x1(F.gelu(self.conv2_kxk(y))) + self.shortcut(x_NCHW)


class Shrink(nn.Module):
    """Halves the sides, to the width of the transformer."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = LayerNorm2d(in_channels)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.proj(self.norm(x_NCHW))


class MbConvStages(nn.Module):
    """pixels_N3HW -> [N, C, H/16, W/16]: stem, two MBConv stages, and the way to the transformer's width."""

    def __init__(self, conv_widths: tuple[int, int], conv_depths: tuple[int, int], width: int):
        super().__init__()
        self.stem = Stem(conv_widths[0])
        stages, before = [], conv_widths[0]
        for channels, depth in zip(conv_widths, conv_depths, strict=True):
            blocks = (MbConv(before if i == 0 else channels, channels, halve=i == 0) for i in range(depth))
            stages.append(nn.Sequential(*blocks))
            before = channels
        self.stages = nn.Sequential(*stages)
        self.pool = Shrink(before, width)

    def forward(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        return self.pool(self.stages(self.stem(pixels_N3HW)))


class GeGlu(nn.Module):
    """Norm, gelu(w0 x) * w1 x, and back. Its GELU is the tanh form, that of the convolutions the exact one: mixing them
    up costs 1e-3 at the encoder's output."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.w0 = nn.Linear(width, hidden)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.w2(F.gelu(self.w0(x), approximate="tanh") * self.w1(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_NLC: torch.Tensor, mask_LL: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.qkv(x_NLC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask_LL).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm ViT block with GeGLU. With a mask, position i sees j where `mask_LL[i, j]`."""

    def __init__(self, width: int, heads: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = GeGlu(width, 2 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_NLC: torch.Tensor, mask_LL: torch.Tensor | None = None) -> torch.Tensor:
        x_NLC = x_NLC + self.drop_path(self.attn(self.norm1(x_NLC), mask_LL))
        return x_NLC + self.drop_path(self.mlp(self.norm2(x_NLC)))


def transformer_blocks(width: int, depth: int, heads: int, drop_path: float) -> nn.Sequential:
    """Drop-path grows linearly with depth."""
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
    return nn.Sequential(*(Block(width, heads, rate) for rate in rates))


def run_blocks(blocks: nn.Sequential, x_NLC: torch.Tensor, checkpointing: bool) -> torch.Tensor:
    """`checkpointing`: activations inside a block are computed again in the backward instead of kept."""
    if not checkpointing or not torch.is_grad_enabled():
        return blocks(x_NLC)
    for block in blocks:
        x_NLC = checkpoint(block, x_NLC, use_reentrant=False)
    return x_NLC


class VitEncoder(nn.Module, ABC):
    """pixels_N3HW -> features [N, L, C]: convolutions to stride 16, a ViT without position table. A kind makes
    `blocks`, `norm`, and what `embed` needs."""

    blocks: nn.Sequential
    norm: nn.LayerNorm
    checkpointing = False

    @abstractmethod
    def embed(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """The convolutions: -> what the first block reads, [N, L, C]."""

    def forward(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        return self.norm(run_blocks(self.blocks, self.embed(pixels_N3HW), self.checkpointing))

    def layers(self, pixels_N3HW: torch.Tensor) -> list[torch.Tensor]:
        """-> what each block gives, of the last one with norm."""
        last_NLC, [_, *before] = self.tapped(pixels_N3HW, range(len(self.blocks)))
        return [*before, last_NLC]

    def tapped(self, pixels_N3HW: torch.Tensor, depths: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """-> what `forward` gives, and what blocks give after so many of them, for each of `depths`, which rise."""
        x_NLC, taps = self.embed(pixels_N3HW), []
        for start, end in pairwise([0, *depths, len(self.blocks)]):
            x_NLC = run_blocks(self.blocks[start:end], x_NLC, self.checkpointing)
            taps.append(x_NLC)
        return self.norm(taps.pop()), taps
