"""A decode step operation by operation, on any device. Tests compare the faster ways with it.

Shapes: B rows, S rows there is room for, T columns, D width, N query heads, H key-value heads of width d, G query heads
for each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..config import CACHE


def step_any(backbone: nn.Module, x_BD: torch.Tensor, cache: Any) -> torch.Tensor:
    """One position of every row through any decoder of transformers, x_BD -> h_BD."""
    output = backbone(
        inputs_embeds=x_BD[:, None],
        attention_mask=cache.mask(),
        position_ids=cache.places_B[:, None],
        use_cache=True,
        **{CACHE: cache},
    )
    return output.last_hidden_state[:, 0]


def put(
    memory: Sequence[torch.Tensor], flat_B: torch.Tensor, columns: int, k_BHd: torch.Tensor, v_BHd: torch.Tensor
) -> list[torch.Tensor]:
    """Store keys and values of a new column in the `memory` of a layer, two of [S, T, H, d], at `flat_B`, the rows'
    next places in all of it. Returns those of the first `columns`, each [B, H, columns, d]."""
    for mine, new_BHd in zip(memory, (k_BHd, v_BHd), strict=True):
        mine.flatten(0, 1).index_copy_(0, flat_B, new_BHd)
    return [mine[: len(flat_B), :columns].transpose(1, 2) for mine in memory]


def llama_layer(
    layer: nn.Module,
    x_BD: torch.Tensor,
    cos_B1d: torch.Tensor,
    sin_B1d: torch.Tensor,
    mask: torch.Tensor | None,
    memory: Sequence[torch.Tensor],
    flat_B: torch.Tensor,
    columns: int,
) -> torch.Tensor:
    """One layer of `step_llama`; the last three are as `put` takes them. The first half of `sin_B1d` is negative."""
    attention = layer.self_attn
    y_BD, d = layer.input_layernorm(x_BD), attention.head_dim
    q_BNd, k_BHd = (proj(y_BD).unflatten(-1, (-1, d)) for proj in (attention.q_proj, attention.k_proj))
    qk = torch.cat([q_BNd, k_BHd], 1)
    qk = torch.addcmul(qk * cos_B1d, qk.roll(d // 2, -1), sin_B1d)
    q_BNd, k_BHd = qk.split([q_BNd.shape[1], k_BHd.shape[1]], 1)
    v_BHd = attention.v_proj(y_BD).unflatten(-1, (-1, d))
    k_BHTd, v_BHTd = put(memory, flat_B, columns, k_BHd, v_BHd)
    # Query heads that share keys take the dimension of positions: the one new position attends to all columns.
    q_BHGd = q_BNd.unflatten(1, (k_BHd.shape[1], -1))
    o_BHGd = F.scaled_dot_product_attention(q_BHGd, k_BHTd, v_BHTd, mask, scale=attention.scaling)
    x_BD = x_BD + attention.o_proj(o_BHGd.flatten(1))
    return x_BD + layer.mlp(layer.post_attention_layernorm(x_BD))


def step_llama(
    backbone: nn.Module, x_BD: torch.Tensor, cache: Any, run_layer: Callable[..., torch.Tensor] = llama_layer
) -> torch.Tensor:
    """`step_any` with fewer operations. Norms, matrices and MLPs are the modules of transformers, so adapters and
    quantized weights work; attention around them is written for one position. `run_layer` may be a compiled
    `llama_layer`."""
    cos_B1d, sin_B1d = (x.transpose(0, 1) for x in backbone.rotary_emb(x_BD, cache.places_B[None]))
    half = cos_B1d.shape[-1] // 2
    sin_B1d = torch.cat([-sin_B1d[..., :half], sin_B1d[..., half:]], -1)
    # Without padding no mask is needed, and attention without one has a faster kernel.
    mask = None if cache.full() else cache.mask()
    for layer, memory in zip(backbone.layers, cache.memory, strict=True):
        x_BD = run_layer(layer, x_BD, cos_B1d, sin_B1d, mask, memory, cache.flat_B, cache.columns)
    return backbone.norm(x_BD)
