"""How near a rate comes to what this machine does in the same run: memory bandwidth and matrix throughput."""

from collections.abc import Sequence
from functools import cache
from statistics import median

import torch
from torch import nn

from mllm import Mllm
from mllm.codes import DepthHead
from mllm.fast.cpu import exact
from training.lm.lora import ADAPTER

from ..pieces import device
from .figures import Figure, seconds


def step_costs(model: Mllm, rows: int, columns: int, *heads: nn.Module) -> tuple[float, float]:
    """-> bytes and floating point operations of one position: weights of backbone and heads, keys and values in
    `columns` of all rows together. The weights of a depth head count once for each sub-code that they are read for."""
    blocks = [parameter for name, parameter in model.backbone.named_parameters() if "embed" not in name]
    for head in heads:
        if isinstance(head, DepthHead):
            blocks += [*head.enter.parameters()] + [*head.layers.parameters()] * head.num_codebooks
            blocks += [p for k in range(head.num_codebooks) for p in head.outputs[k % len(head.outputs)].parameters()]
        else:
            blocks += head.parameters()
    text = model.config.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * width * columns
    grouped = text.num_attention_heads // text.num_key_value_heads
    quantized = [buffer for name, buffer in model.backbone.named_buffers() if "layers" in name]
    return (
        sum(map(stored_bytes, blocks + quantized)) + cached * model.backbone.norm.weight.itemsize,
        2 * rows * sum(block.numel() for block in blocks) + 2 * grouped * cached,
    )


def stored_bytes(weight: torch.Tensor) -> int:
    """As a step reads it: the compiled one keeps as bfloat16 what is."""
    compiled = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return weight.nbytes // 2 if compiled and exact(weight) else weight.nbytes


def roofline(rate: Figure, per_step: float, bytes: float, operations: float) -> list[Figure]:
    """What a `rate` of which a step yields `per_step` reaches of the machine's own."""
    steps = rate.value / per_step
    return [
        Figure(
            f"{rate.name}, of {what}", amount * steps / 1e9, unit, best, amount * steps / 1e9 / best, rate.spread, 0.0
        )
        for what, amount, unit, best in [
            ("memory bandwidth", bytes, "GB/s", bandwidth(int(bytes))),
            ("matrix throughput", operations, "GFLOP/s", throughput()),
        ]
    ]


@cache
def bandwidth(bytes: int, where: torch.device | None = None) -> float:
    """GB/s of reading so many bytes again and again."""
    buffer = torch.ones(max(bytes // 4, 1), device=where or device())
    return bytes / 1e9 / median(seconds(buffer.sum) for _ in range(9))


def update_operations(model: Mllm, lengths: Sequence[int], words: int, codes: int) -> float:
    """Floating point operations of an update, as PaLM counts them (arXiv 2204.02311, appendix B): of samples of so many
    positions, with so many text targets, and as many positions to draw. A weight costs two forward, two for the
    gradient of its input, and two for its own, if it trains; adapters, embeddings and norms do not count."""

    def cost(module: nn.Module) -> int:
        weights = [p for name, p in module.named_parameters() if p.dim() == 2 and "embed" not in name]
        return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)

    text, head = model.config.text_config, model.code_head
    adapters = sum(6 * p.numel() for name, p in model.backbone.named_parameters() if ADAPTER in name)
    attended = 6 * text.num_hidden_layers * text.hidden_size * sum(length**2 for length in lengths)
    outputs = [head.outputs[k % len(head.outputs)] for k in range(head.num_codebooks)]
    per_code = [head.layers] * head.num_codebooks + [head.enter, *outputs]
    return (
        (cost(model.backbone) - adapters) * sum(lengths)
        + cost(model.lm_head) * words
        + sum(map(cost, per_code)) * codes
        + attended
    )


@cache
def throughput(size: int = 1024, dtype: torch.dtype = torch.float32, where: torch.device | None = None) -> float:
    """GFLOP/s of large matrices. Of random numbers, as a GPU multiplies equal ones with less power, and so faster."""
    matrix = torch.randn(size, size, device=where or device()).to(dtype)
    return 2 * size**3 / 1e9 / median(seconds(lambda: matrix @ matrix) for _ in range(9))
