"""A decode step operation by operation, on any device. Tests compare the faster ways with it.

Shapes: B rows, n new columns of each, E = B * n, row after row, S rows there is room for, T columns, D width, N query
heads, H key-value heads of width d, G query heads for each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..config import CACHE


def step_any(backbone: nn.Module, x_ED: torch.Tensor, cache: Any) -> torch.Tensor:
    """The new positions of every row through any decoder of transformers, x_ED -> h_ED."""
    output = backbone(
        inputs_embeds=x_ED.unflatten(0, (-1, cache.width)),
        attention_mask=cache.mask().expand(-1, -1, cache.width, -1),
        position_ids=cache.places_E.unflatten(0, (-1, cache.width)),
        use_cache=True,
        **{CACHE: cache},
    )
    return output.last_hidden_state.flatten(0, 1)


def put(
    memory: Sequence[torch.Tensor],
    flat_E: torch.Tensor,
    rows: int,
    columns: int,
    k_EHd: torch.Tensor,
    v_EHd: torch.Tensor,
) -> list[torch.Tensor]:
    """Store keys and values of new columns in the `memory` of a layer, two of [S, T, H, d], at `flat_E`, places in all
    of it. Returns those of the first `columns` of the rows, each [B, H, columns, d]."""
    for mine, new_EHd in zip(memory, (k_EHd, v_EHd), strict=True):
        mine.flatten(0, 1).index_copy_(0, flat_E, new_EHd)
    return [mine[:rows, :columns].transpose(1, 2) for mine in memory]


def llama_layer(
    layer: nn.Module,
    x_ED: torch.Tensor,
    cos_E1d: torch.Tensor,
    sin_E1d: torch.Tensor,
    mask: torch.Tensor | None,
    memory: Sequence[torch.Tensor],
    flat_E: torch.Tensor,
    rows: int,
    columns: int,
) -> torch.Tensor:
    """One layer of `step_llama`; the last four are as `put` takes them. The first half of `sin_E1d` is negative."""
    attention = layer.self_attn
    y_ED, d = layer.input_layernorm(x_ED), attention.head_dim
    q_ENd, k_EHd = (proj(y_ED).unflatten(-1, (-1, d)) for proj in (attention.q_proj, attention.k_proj))
    qk = torch.cat([q_ENd, k_EHd], 1)
    qk = torch.addcmul(qk * cos_E1d, qk.roll(d // 2, -1), sin_E1d)
    q_ENd, k_EHd = qk.split([q_ENd.shape[1], k_EHd.shape[1]], 1)
    v_EHd = attention.v_proj(y_ED).unflatten(-1, (-1, d))
    k_BHTd, v_BHTd = put(memory, flat_E, rows, columns, k_EHd, v_EHd)
    # New positions of a row, and query heads that share keys, take one dimension.
    q_BHXd = q_ENd.unflatten(1, (k_EHd.shape[1], -1)).unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)
    if mask is not None and mask.shape[2] > 1:  # new positions of a row that see different columns
        mask = mask.repeat_interleave(q_BHXd.shape[2] // mask.shape[2], 2)
    o_BHXd = F.scaled_dot_product_attention(q_BHXd, k_BHTd, v_BHTd, mask, scale=attention.scaling)
    o_BHnGd = o_BHXd.unflatten(2, (len(x_ED) // rows, -1))
    x_ED = x_ED + attention.o_proj(o_BHnGd.transpose(1, 2).flatten(2).flatten(0, 1))
    return x_ED + layer.mlp(layer.post_attention_layernorm(x_ED))


def step_llama(
    backbone: nn.Module, x_ED: torch.Tensor, cache: Any, run_layer: Callable[..., torch.Tensor] = llama_layer
) -> torch.Tensor:
    """`step_any` with fewer operations. Norms, matrices and MLPs are the modules of transformers, so adapters and
    quantized weights work; attention around them is written for few new positions. `run_layer` may be a compiled
    `llama_layer`."""
    cos_E1d, sin_E1d = (x.transpose(0, 1) for x in backbone.rotary_emb(x_ED, cache.places_E[None]))
    half = cos_E1d.shape[-1] // 2
    sin_E1d = torch.cat([-sin_E1d[..., :half], sin_E1d[..., half:]], -1)
    # Without padding no mask is needed, and attention without one has a faster kernel.
    mask, rows = None if cache.full() else cache.mask(), len(cache.lengths)
    for layer, memory in zip(backbone.layers, cache.memory, strict=True):
        x_ED = run_layer(layer, x_ED, cos_E1d, sin_E1d, mask, memory, cache.flat_E, rows, cache.columns)
    return backbone.norm(x_ED)
