"""DiffAugment (arXiv 2006.10738): what the discriminator sees is moved, recoloured and cut, so that it cannot learn the
training images by heart, and the gradient still reaches the pixels. Shapes: N images, each with its own draws."""

import math

import torch
import torch.nn.functional as F

from mllm.device import send

SHIFT = 1 / 8  # of the side
HOLE = 0.2  # of the side


def diff_augment(pixels_N3HW: torch.Tensor, generator: torch.Generator, blur: float = 0.0) -> torch.Tensor:
    """Blurred (see `gaussian_blur`), moved, recoloured and with a hole. All draws come from `generator` (of the CPU):
    its state is all that a resumed run needs."""
    x = gaussian_blur(pixels_N3HW, blur)
    return _cut_out(_recolour(_translate(x, generator), generator), generator)


def gaussian_blur(pixels_N3HW: torch.Tensor, fade: float) -> torch.Tensor:
    """Weights 2^-(x / sigma)^2 with sigma = fade * sqrt(H / 2) pixels, edges mirrored: `fade` 1 leaves coarse shapes,
    0 everything (StyleGAN-T, arXiv 2301.09515)."""
    sigma = fade * math.sqrt(pixels_N3HW.shape[-2] / 2)
    radius = int(3 * sigma)
    if radius == 0:
        return pixels_N3HW
    offsets = torch.arange(-radius, radius + 1, device=pixels_N3HW.device)
    kernel = torch.exp2(-(offsets / sigma).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = F.pad(pixels_N3HW.float(), [radius] * 4, mode="reflect")
    with torch.autocast(x.device.type, enabled=False):  # in bfloat16, torch's kernel for CPUs takes minutes
        x = F.conv2d(x, kernel[:, :, None, :], groups=3)
        return F.conv2d(x, kernel[:, :, :, None], groups=3)


def _translate(pixels_N3HW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Up to an eighth of the side each way; what comes in is grey (0)."""
    N, _, H, W = pixels_N3HW.shape
    down, right = round(H * SHIFT), round(W * SHIFT)
    tops = torch.randint(0, 2 * down + 1, (N,), generator=generator).tolist()
    lefts = torch.randint(0, 2 * right + 1, (N,), generator=generator).tolist()
    images = F.pad(pixels_N3HW, [right, right, down, down]).unbind()
    moved = (image[:, top : top + H, left : left + W] for image, top, left in zip(images, tops, lefts, strict=True))
    return torch.stack(list(moved))


def _recolour(pixels_N3HW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness -0.5..0.5, then saturation 0..2, then contrast 0.5..1.5."""
    draws_3N = send(torch.rand(3, len(pixels_N3HW), generator=generator), pixels_N3HW.device)
    brightness, saturation, contrast = draws_3N[:, :, None, None, None]
    x = pixels_N3HW + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _cut_out(pixels_N3HW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A grey hole of a fifth of the side; its centre is anywhere, so that it may reach over an edge."""
    N, _, H, W = pixels_N3HW.shape

    def inside(side: int) -> torch.Tensor:
        hole = round(HOLE * side)
        centre = torch.randint(0, side + 1, (N, 1), generator=generator)
        offset = torch.arange(side) - (centre - hole // 2)
        return send((offset >= 0) & (offset < hole), pixels_N3HW.device)

    hole_NHW = inside(H)[:, :, None] & inside(W)[:, None, :]
    return pixels_N3HW.masked_fill(hole_NHW[:, None], 0.0)
