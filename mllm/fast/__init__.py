"""The one place that chooses kernels: how the positions of a batch are stepped, drawn and embedded, for a model on its
device. C++ on a CPU, CUDA graphs on a GPU, operation by operation elsewhere; all ways give the same codes.

The modules of the model do not know of this package. Shapes: B rows, E new positions of all rows, N images under way, K
sub-codebooks, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import LLAMA_LIKE
from . import cpu, cuda
from .eager import step_any, step_llama

Step = Callable[[torch.Tensor, Any], torch.Tensor]
BACKENDS = ("auto", "eager", "transformers")


class Kernels(NamedTuple):
    """Three functions for one step.

    `step(x_ED, cache)` -> h_ED runs the backbone over the new positions of every row, `cache.width` of each, and puts
    their keys and values into `cache` (`KeyValues`).
    `draw(h_BD, picker)` -> codes_BK runs the code head. `embed(codes_NK, cache)` -> x_ND embeds a position of each
    image; `cache` is a dict, empty at first, or None to embed each position alone. With `fixed_shapes`, `step` needs
    the same memory at every call (`KeyValues.fixed_shapes`)."""

    step: Step
    draw: Callable[[torch.Tensor, Any], torch.Tensor]
    embed: Callable[[torch.Tensor, dict | None], torch.Tensor]
    fixed_shapes: bool = False


def pick_kernels(model: nn.Module, backend: str = "auto") -> Kernels:
    """Kernels for a model as it is now: its weights, device, hooks and adapters. "auto" is the fastest, "eager"
    runs operation by operation, and "transformers" does so with the backbone's own forward. Raises ValueError for
    others."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown kernels {backend!r}; known: {', '.join(BACKENDS)}")
    backbone, head, embedding = model.backbone, model.code_head, model.code_embed
    eager_step = step_llama if model.config.text_config.model_type in LLAMA_LIKE else step_any
    if backend == "transformers":
        eager_step = step_any
    step = partial(eager_step, backbone)
    step = _step_mixed(model, step) if model.image_layers else step
    eager = Kernels(step, head.sample, partial(_embed, embedding))
    if backend != "auto":
        return eager
    step = draw = embed = recorded = None
    if eager_step is step_llama:
        step = cpu.backbone(backbone)
        recorded = None if step or model.image_layers else cuda.backbone(backbone, eager.step)
        if step and model.image_layers:
            step = _step_mixed(model, step, cpu.image_layers(model.image_layers, backbone))
    draw = cpu.head(head) or cuda.head(head, model.config.image_tokenizer["codebook_size"])
    embed = cpu.embedding(embedding)
    return Kernels(step or recorded or eager.step, draw or eager.draw, embed or eager.embed, recorded is not None)


def _step_mixed(model: nn.Module, text: Step, image: Step | None = None) -> Step:
    """A step of a model whose image positions have weights of their own: by `text` or `image` where all rows are of one
    kind."""

    def step(x_ED: torch.Tensor, cache: Any) -> torch.Tensor:
        images = 0 if cache.is_image_E is None else int(cache.is_image_E.sum())
        if not images:
            return text(x_ED, cache)
        if image and images == len(x_ED):
            return image(x_ED, cache)
        return model.image_layers.step(model.backbone, x_ED, cache)

    return step


def _embed(embedding: nn.Module, codes_NK: torch.Tensor, cache: dict | None) -> torch.Tensor:
    return embedding(codes_NK[:, None], cache)[:, 0]
