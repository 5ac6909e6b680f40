"""Weight-only quantization of the backbone's linear layers to a half or a quarter of the bytes of bfloat16.

Prompts run through torch's kernels; in decode steps, step.cpp reads the same weights. A model in int8 can then go to a
GPU, where torch's kernel runs everything; int4 has another layout there. Embeddings and heads are in bfloat16, and the
image tokenizer stays as it is.
Shapes: R rows of inputs, I inputs, O outputs, G groups of 32 inputs.
"""

import ctypes
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from ..model import MllmForConditionalGeneration

GROUP = 32  # inputs that share a scale and a zero, of int4
PADDED = 64  # outputs of int4 layers are padded to a multiple of it, as torch has another layout for other numbers


class Int8Linear(nn.Module):
    """A linear layer in int8, with a scale for each output."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight_OI = linear.weight.detach().float()
        scales_O = weight_OI.abs().amax(1).clamp_min(1e-8) / 127
        self.register_buffer("weight_OI", (weight_OI / scales_O[:, None]).round().to(torch.int8))
        self.register_buffer("scales_O", scales_O.bfloat16())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _finish(self, x, torch._weight_int8pack_mm(x.flatten(0, -2), self.weight_OI, self.scales_O))


class Int4Linear(nn.Module):
    """A linear layer in int4, with a scale and a zero for each output and group of inputs. Outputs are padded to a
    multiple of `PADDED`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.outputs, self.inputs = linear.weight.shape
        weight_OI = F.pad(linear.weight.detach().float(), (0, 0, 0, -self.outputs % PADDED))
        weight_OGi = weight_OI.unflatten(1, (-1, GROUP))
        low_OG, high_OG = weight_OGi.aminmax(dim=-1)
        scales_OG = (high_OG - low_OG).clamp_min(1e-8) / 15
        ids_OI = ((weight_OGi - low_OG[..., None]) / scales_OG[..., None]).round().int().flatten(1)
        # The kernel's numbers are (id - 8) * scale + zero.
        scales_zeros_GO2 = torch.stack([scales_OG, low_OG + 8 * scales_OG], -1).transpose(0, 1)
        self.register_buffer("packed", torch._convert_weight_to_int4pack_for_cpu(ids_OI, 1))
        self.register_buffer("scales_zeros_GO2", scales_zeros_GO2.bfloat16().contiguous())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y_RO = torch._weight_int4pack_mm_for_cpu(x.flatten(0, -2), self.packed, GROUP, self.scales_zeros_GO2)
        return _finish(self, x, y_RO[:, : self.outputs])


@cache
def int4_block() -> int | None:
    """How many outputs torch lays out together, 64 or 32: for each input, the first half of them is in the low 4 bits
    of bytes, the second half in the high 4 bits. None if torch has another layout, as on processors without AVX2."""
    for block in (64, 32):
        places_O = torch.arange(PADDED) % block
        ids_OI = (places_O // 8)[:, None].expand(-1, GROUP).int()
        low, high = ids_OI[:, 0].view(-1, block).chunk(2, 1)
        expected = (low + 16 * high)[:, None].expand(-1, GROUP, -1)
        if torch.equal(torch._convert_weight_to_int4pack_for_cpu(ids_OI, 1).flatten(), expected.flatten().byte()):
            return block
    return None


def _finish(layer: nn.Module, x: torch.Tensor, y_RO: torch.Tensor) -> torch.Tensor:
    y_RO = y_RO if layer.bias is None else y_RO + layer.bias
    return y_RO.unflatten(0, x.shape[:-1])


KINDS = {"int8": Int8Linear, "int4": Int4Linear}


@torch.no_grad()
def quantize(model: MllmForConditionalGeneration, kind: str) -> MllmForConditionalGeneration:
    """Quantize a model in place, layer by layer, so that old and new weights are never all in memory at once. Raises
    ValueError for an unknown `kind`, a device other than a CPU, and sizes that the kernels do not take."""
    if kind not in KINDS:
        raise ValueError(f"unknown quantization {kind!r}; known: {', '.join(KINDS)}")
    if model.device.type != "cpu":
        raise ValueError(f"quantization {kind} runs on a CPU, the model is on {model.device}")
    for part in filter(None, (model.backbone, model.lm_head, model.image_layers, model.code_embed, model.code_head)):
        for weight in part.parameters():  # buffers stay: in bfloat16, angles of rotary embeddings drift
            weight.data = weight.data.bfloat16()
    names = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.Linear)]
    for name in names:  # not the modules, which the list would keep
        linear = model.backbone.get_submodule(name)
        check_size(linear, kind)
        model.backbone.set_submodule(name, KINDS[kind](linear))
        return_memory()
    return model


def return_memory() -> None:
    """Give freed memory back to the system, which glibc would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def check_size(linear: nn.Linear, kind: str) -> None:
    out, inputs = linear.weight.shape
    if out % 16 or inputs % GROUP:
        raise ValueError(f"quantization {kind} takes layers of 32n inputs and 16n outputs, not {inputs} and {out}")
