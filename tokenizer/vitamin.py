"""ViTamin encoder (arXiv 2404.02132) and UniTok's mirrored decoder.

Shapes: N images, L = H/16 * W/16 positions in raster order, C channels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import EXPANSION, LayerNorm2d, MbConvStages, VitEncoder, run_blocks, transformer_blocks


class Encoder(VitEncoder):
    """Its convolutions are a stem and two MBConv stages."""

    def __init__(self, conv_widths, conv_depths, width: int, depth: int, heads: int, drop_path: float):
        super().__init__()
        if len(conv_widths) != 2:
            raise ValueError(f"conv_widths {conv_widths}: a vitamin has two convolutional stages, at strides 4 and 8")
        self.patch_embed = nn.ModuleDict({"backbone": MbConvStages(conv_widths, conv_depths, width)})
        self.blocks = transformer_blocks(width, depth, heads, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def embed(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        x_NCHW = self.patch_embed["backbone"](pixels_N3HW.contiguous(memory_format=torch.channels_last))
        return x_NCHW.flatten(2).transpose(1, 2)


class UpConv(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution, as one transposed convolution: of nine products with doubled
    pixels, equal ones are added up beforehand, which leaves four. Equal to rounding (1e-6)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight
        # Row i of the 4x4 kernel is the sum of the rows j of the 3x3 kernel that meet the same pixel before doubling:
        # i + j is 2 or 3. Written out as numbers, they would be copied to the device, which would be waited for.
        sums = torch.arange(4, device=weight.device)[:, None] + torch.arange(3, device=weight.device)
        rows = (sums // 2 == 1).to(weight.dtype)
        folded = (weight.flatten(2) @ torch.kron(rows, rows).T).unflatten(2, (4, 4)).transpose(0, 1)
        return F.conv_transpose2d(x, folded, self.conv.bias, stride=2, padding=1)


class UpBlock(nn.Module):
    """Inverse MBConv: norm, expand, (double), depthwise 3x3, shrink, plus shortcut."""

    def __init__(self, in_channels: int, out_channels: int, double: bool):
        super().__init__()
        hidden = EXPANSION * out_channels
        self.shortcut = UpConv(in_channels, out_channels) if double else nn.Identity()
        self.pre_norm = LayerNorm2d(in_channels)
        self.conv1_1x1 = nn.Conv2d(in_channels, hidden, 1)
        self.up = UpConv(hidden, hidden) if double else nn.Identity()
        self.conv2_kxk = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv3_1x1 = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(F.gelu(self.conv1_1x1(self.pre_norm(x))))
        return self.shortcut(x) + self.conv3_1x1(F.gelu(self.conv2_kxk(y)))


class UpOutput(nn.Module):
    """The last doubling, to pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = UpConv(channels, channels)
        self.norm1 = LayerNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(x))))


class Decoder(nn.Module):
    """features [N, L, C] -> pixels_N3HW, not clamped: the encoder mirrored."""

    def __init__(self, conv_widths, conv_depths, width: int, depth: int, heads: int, drop_path: float):
        super().__init__()
        self.checkpointing = False
        narrow, wide = conv_widths
        self.blocks = transformer_blocks(width, depth, heads, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up_conv1 = UpConv(width, wide)
        self.up_conv2 = nn.Sequential(*(UpBlock(wide, wide, double=i == 0) for i in range(conv_depths[1])))
        self.up_conv3 = nn.Sequential(
            *(UpBlock(wide if i == 0 else narrow, narrow, double=i == 0) for i in range(conv_depths[0]))
        )
        self.up_conv4 = UpOutput(narrow)

    @property
    def last_weight(self) -> nn.Parameter:
        """Of the layer that gives the pixels."""
        return self.up_conv4.conv2.weight

    def forward(self, x_NLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`grid` is (rows, columns) with rows * columns == L."""
        x_NLC = self.norm(run_blocks(self.blocks, x_NLC, self.checkpointing))
        x_NCHW = x_NLC.transpose(1, 2).unflatten(2, grid).contiguous(memory_format=torch.channels_last)
        return self.up_conv4(self.up_conv3(self.up_conv2(self.up_conv1(x_NCHW))))
