"""Discriminators, and what each side of the adversarial training minimises.

Shapes: N images, L positions, D channels; logits [N, M] are large for what looks real, each about a part of the image.
"""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn
from torch.func import functional_call

from tokenizer.weights import load_frozen, read_weights

from ..run.distributed import sum_over_ranks, world_size
from .diffaug import diff_augment

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH = 14  # pixels, of DINOv2
LEAK = 0.2  # of the leaky ReLU
# What the discriminator loses by a logit that should be large.
CRITERIA = {
    "hinge": lambda logits: F.relu(1 - logits),
    "softplus": lambda logits: F.softplus(-logits),
    "linear": lambda logits: -logits,
}


class DinoV2(nn.Module):
    """ViT-S/14 (arXiv 2304.07193) under the names of facebookresearch/dinov2, without its last norm."""

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6, grid: int = 37):
        super().__init__()
        self.grid = grid
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, init_values=1.0, norm_layer=norm) for _ in range(depth)
        )

    def forward(self, pixels_N3HW: torch.Tensor) -> list[torch.Tensor]:
        """The output of each block, [N, 1 + L, D], the class token first. Sides are multiples of 14."""
        x_NDHW = self.patch_embed["proj"](pixels_N3HW)
        x = torch.cat([self.cls_token.expand(len(x_NDHW), -1, -1), x_NDHW.flatten(2).mT], 1)
        x = x + self._positions(*x_NDHW.shape[-2:])
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        if rows == columns == self.grid:
            return self.pos_embed
        table_1DHW = self.pos_embed[:, 1:].mT.unflatten(-1, (self.grid, self.grid))
        # DINOv2 was trained with scales from sides 0.1 too long, and not with the sides.
        scales = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        table_1DHW = F.interpolate(table_1DHW, scale_factor=scales, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], table_1DHW.flatten(2).mT], 1)


class DinoDiscriminator(nn.Module):
    """A small head on each of five depths of a frozen DINOv2 (UniTok after StyleGAN-T, arXiv 2301.09515).

    `file` is dinov2_vits14_pretrain.pth. Images that do not fit its patches are resized; with a `generator` (of the
    CPU), half of the batches that are too large are cropped instead. Its state is part of a run's.
    """

    DEPTHS = (0, 2, 5, 8, 11)

    def __init__(self, file: str | Path, generator: torch.Generator | None = None):
        super().__init__()
        self.generator = generator
        tensors = read_weights(file, "weights of DINOv2 (dinov2_vits14_pretrain.pth)")
        for unused in ("mask_token", "norm.weight", "norm.bias"):
            tensors.pop(unused, None)
        self.dino = load_frozen(DinoV2(), tensors, file)
        self.heads = nn.ModuleList(_head(self.dino.cls_token.shape[-1]) for _ in self.DEPTHS)
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", 2 * mean - 1, persistent=False)  # of pixels in [-1, 1]
        self.register_buffer("std", 2 * std, persistent=False)
        _initialize(self.heads)

    def forward(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        outputs = self.dino((self._fit(pixels_N3HW) - self.mean) / self.std)
        features_NDL = ((outputs[depth][:, 1:] + outputs[depth][:, :1]).mT for depth in self.DEPTHS)
        return torch.cat([head(x).flatten(1) for head, x in zip(self.heads, features_NDL, strict=True)], 1)

    def _fit(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """Sides as multiples of a patch."""
        H, W = pixels_N3HW.shape[-2:]
        height, width = H - H % PATCH, W - W % PATCH
        if (height, width) == (H, W):
            return pixels_N3HW
        if height == H or width == W:
            return F.interpolate(pixels_N3HW, (height, width), mode="bicubic")
        if self.generator is None or torch.rand((), generator=self.generator) < 0.5:
            return F.interpolate(pixels_N3HW, (height, width), mode="area")
        top = int(torch.randint(0, H - height + 1, (), generator=self.generator))
        left = int(torch.randint(0, W - width + 1, (), generator=self.generator))
        return pixels_N3HW[..., top : top + height, left : left + width]


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.fn(x) + x) / math.sqrt(2)


def _head(width: int) -> nn.Sequential:
    """[N, D, L] -> [N, 1, L]; a window of 9 positions, in raster order."""

    def block(kernel: int) -> nn.Sequential:
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
        return nn.Sequential(conv, nn.GroupNorm(32, width, eps=1e-6), nn.LeakyReLU(LEAK))

    return nn.Sequential(block(1), _Residual(block(9)), nn.Conv1d(width, 1, 1))


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (pix2pix, arXiv 1611.07004), trained from nothing: each logit sees 70 x 70 pixels. Sides of 32 pixels
    and more. Not with the paper's batch norms, with which an image's logits depend on the others."""

    def __init__(self, width: int = 64):
        def block(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(in_channels, out_channels, 4, stride, padding=1, bias=False)
            return [conv, nn.GroupNorm(8, out_channels), nn.LeakyReLU(LEAK)]

        super().__init__(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(LEAK),
            *block(width, 2 * width, stride=2),
            *block(2 * width, 4 * width, stride=2),
            *block(4 * width, 8 * width, stride=1),
            nn.Conv2d(8 * width, 1, 4, padding=1),
            nn.Flatten(),
        )
        _initialize(self)


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.xavier_normal_(module.weight, gain=0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DiscriminatorTerms(NamedTuple):
    """`adversarial` and `consistency` are to be minimised; the logits are means, to look at."""

    adversarial: torch.Tensor
    consistency: torch.Tensor
    real_logit: torch.Tensor
    fake_logit: torch.Tensor


def discriminator_terms(
    discriminator: nn.Module,
    real_N3HW: torch.Tensor,
    fake_N3HW: torch.Tensor,
    generator: torch.Generator,
    criterion: str = "hinge",
    blur: float = 0.0,
    consistency: bool = True,
) -> DiscriminatorTerms:
    """The discriminator's losses on augmented images; no gradient reaches the images.

    `consistency` (bCR, arXiv 2002.04724) asks that other augmentations, without blur, have the same logits: a second
    pass, and 0 without it.
    """
    images = torch.cat([real_N3HW, fake_N3HW]).detach()
    logits = discriminator(diff_augment(images, generator, blur)).float()
    real, fake = logits.chunk(2)
    adversarial = _criterion(criterion)(real).mean() + _criterion(criterion)(-fake).mean()
    change = logits.new_zeros(())
    if consistency:
        again = discriminator(diff_augment(images, generator)).float()
        change = 2 * F.mse_loss(again, logits)  # the mean of real images plus that of fake ones
    return DiscriminatorTerms(adversarial, change, real.detach().mean(), fake.detach().mean())


def generator_loss(
    discriminator: nn.Module,
    fake_N3HW: torch.Tensor,
    generator: torch.Generator,
    criterion: str = "hinge",
    blur: float = 0.0,
) -> torch.Tensor:
    """What the image tokenizer minimises: fakes that look real, after augmentation. No gradient reaches the
    discriminator's parameters."""
    constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    logits = functional_call(discriminator, constants, diff_augment(fake_N3HW, generator, blur)).float()
    # A hinge would give no gradient to the fakes that are taken for real.
    return _criterion("linear" if criterion == "hinge" else criterion)(logits).mean()


def ramp(step: int, start: int, length: int) -> float:
    """From 0, until `start`, to 1 at `start + length`: the weight of the adversarial term, and 1 - it that of the blur
    before the discriminator."""
    return min(1.0, max(0.0, (step - start) / length)) if length else float(step >= start)


def adaptive_weight(
    reconstruction: torch.Tensor,
    adversarial: torch.Tensor,
    last_layer: torch.Tensor,
    bounds: tuple[float, float] = (0.015, 1e4),
) -> torch.Tensor:
    """The factor with which the adversarial loss pulls at the decoder's last weight as hard as the reconstruction does
    (VQGAN, arXiv 2012.09841). Both losses keep their graphs. Equal on all ranks: of gradients averaged over them."""

    def pull(loss: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        return (sum_over_ranks(gradient.contiguous()) / world_size()).norm()

    return (pull(reconstruction) / (pull(adversarial) + 1e-6)).clamp(*bounds)


def _criterion(name: str):
    if name not in CRITERIA:
        raise ValueError(f"unknown adversarial criterion {name!r}; known: {', '.join(CRITERIA)}")
    return CRITERIA[name]
