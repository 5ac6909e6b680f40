"""Weights of their own for image positions, beside a backbone that text keeps (mixture of transformers, arXiv
2411.04996; LMFusion, arXiv 2412.15188).

Image positions have their own norms, matrices and feed-forward networks, as narrow as one likes. Their queries, keys
and values have the sizes of the backbone's, so all positions attend to each other. Text that no image precedes is read
by the backbone alone.
Shapes: B rows, T new positions, R of them from the first image on, S keys, P positions in any arrangement, D backbone
width, W image width, N query heads, H key-value heads of width d, G query heads for each.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from .config import CACHE, LLAMA_LIKE
from .masks import added, visible

Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, rows of queries, keys and values [., (N + 2 H) d], text first) -> what heads give at all positions, o_PX."""


class ImageLayer(nn.Module):
    """What a layer is for image positions: RMSNorm, attention projections, SwiGLU."""

    def __init__(self, width: int, hidden: int, heads: int, kv_heads: int, head_width: int, eps: float):
        super().__init__()
        qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_width, bias=False)
        self.project = nn.Sequential(nn.RMSNorm(width, eps=eps), qkv)  # x_PW -> queries, keys and values
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=eps)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_PW: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer after attention, whose heads gave `attended` [P, N d]."""
        x_PW = x_PW + self.out(attended)
        gate, up = self.gate_up(self.norm(x_PW)).chunk(2, -1)
        return x_PW + self.down(F.silu(gate) * up)


def project_text(layer: nn.Module, x_PD: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values of text in a layer of transformers, as `ImageLayer.project` gives those of images."""
    y_PD, theirs = layer.input_layernorm(x_PD), layer.self_attn
    return torch.cat([theirs.q_proj(y_PD), theirs.k_proj(y_PD), theirs.v_proj(y_PD)], -1)


def finish_text(layer: nn.Module, x_PD: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """The layer after attention, as `ImageLayer.forward`."""
    x_PD = x_PD + layer.self_attn.o_proj(attended)
    return x_PD + layer.mlp(layer.post_attention_layernorm(x_PD))


class Attention(nn.Module):
    """What lies between the matrices of a layer, without weights: one graph of the compiler serves all layers."""

    def __init__(self, heads: int, kv_heads: int, head_width: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width

    def forward(
        self,
        rows: torch.Tensor,
        order: torch.Tensor,
        cos_P1d: torch.Tensor,
        sin_P1d: torch.Tensor,
        earlier: tuple[torch.Tensor, torch.Tensor],
        mask_B1RS: torch.Tensor,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The last R of S columns of `earlier` keys and values [B, H, S, d] get those of `rows` added. Returns what
        heads give, [B R, N d], and the keys and values."""
        (B, _, R, S), places = mask_B1RS.shape, (0, 2, 1, 3)
        q, *new = (x.unflatten(0, (B, R)).permute(places) for x in self.turned(rows, order, cos_P1d, sin_P1d))
        known = [x.to(q.dtype).split([S - R, R], 2) for x in earlier]
        k, v = (torch.cat([before, beside + x], 2) for (before, beside), x in zip(known, new, strict=True))
        return attention(q, k, v, mask_B1RS, scale).permute(places).flatten(0, 1).flatten(1), k, v

    def turned(
        self, rows: torch.Tensor, order: torch.Tensor, cos_P1d: torch.Tensor, sin_P1d: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, at the positions `order` -> q_PNd, k_PHd, v_PHd, turned by angle; zeros at other positions."""
        qkv = rows.new_zeros(len(cos_P1d), rows.shape[-1]).index_copy(0, order, rows)
        qk, v_PHd = qkv.unflatten(-1, (-1, self.head_width)).split([self.heads + self.kv_heads, self.kv_heads], 1)
        qk = torch.addcmul(qk * cos_P1d, qk.roll(self.head_width // 2, -1), sin_P1d).to(rows.dtype)
        q_PNd, k_PHd = qk.split([self.heads, self.kv_heads], 1)
        return q_PNd, k_PHd, v_PHd


class ImageLayers(nn.Module):
    """An `ImageLayer` of `width` and `hidden` units beside each layer of a backbone, and matrices between the two
    widths, so that image positions enter and leave as wide as text. Raises ValueError for a backbone that is not like
    Llama."""

    def __init__(self, config: PretrainedConfig, width: int, hidden: int):
        super().__init__()
        if config.model_type not in LLAMA_LIKE:
            raise ValueError(f"image_layers: the backbone is a {config.model_type}, not one of {', '.join(LLAMA_LIKE)}")
        heads, D, eps = config.num_attention_heads, config.hidden_size, config.rms_norm_eps
        of_heads = heads, config.num_key_value_heads, getattr(config, "head_dim", None) or D // heads
        self.enter = nn.Linear(D, width, bias=False)
        self.layers = nn.ModuleList(ImageLayer(width, hidden, *of_heads, eps) for _ in range(config.num_hidden_layers))
        self.attention = Attention(*of_heads)
        self.project_text, self.finish_text = project_text, finish_text  # a compiler replaces them
        self.norm = nn.RMSNorm(width, eps=eps)
        self.leave = nn.Linear(width, D, bias=False)

    def forward(
        self,
        backbone: nn.Module,
        inputs_embeds: torch.Tensor,
        is_image_BT: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As a backbone of transformers; `is_image_BT` says which positions have an image's weights. `attention_mask`
        is [B, S] or [B, 1, T, T] (see `text.processor.Batch`). A row holds one sample."""
        # In training, all modules run in all passes, so that ranks with other samples need not wait (ZeRO).
        if not bool(is_image_BT.any()) and not (self.training and torch.is_grad_enabled()):
            return backbone(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=use_cache,
                **kwargs,
            )
        (B, T, _), cache = inputs_embeds.shape, kwargs.get(CACHE)
        if use_cache and cache is None:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=inputs_embeds.device).expand(B, T)
        visible_BTS = visible(attention_mask, is_image_BT, past)
        mask_B1TS = added(visible_BTS, inputs_embeds.dtype)
        if past:
            is_start_BT = torch.zeros_like(is_image_BT)
            h_BTD = torch.zeros_like(inputs_embeds)
            earlier = [[_padded(x, T) for x in (layer.keys, layer.values)] for layer in cache.layers]
        else:
            is_start_BT = is_image_BT.cumsum(1) == 0
            h_BTD, earlier = self._read_start(backbone, inputs_embeds, is_start_BT, mask_B1TS, position_ids)
        first = int(is_start_BT.sum(1).min())
        is_rest_BT = ~is_start_BT & visible_BTS[..., past:].diagonal(dim1=1, dim2=2)
        text, image = ((is_rest_BT & kind)[:, first:].flatten().nonzero()[:, 0] for kind in (~is_image_BT, is_image_BT))
        inputs, places = inputs_embeds[:, first:].flatten(0, 1), position_ids[:, first:].flatten()
        order, angles = torch.cat([text, image]), _angles(backbone, inputs, places)

        def attend(number: int, rows: torch.Tensor) -> torch.Tensor:
            scale = backbone.layers[number].self_attn.scaling
            o_PX, k, v = self.attention(rows, order, *angles, earlier[number], mask_B1TS[:, :, first:], scale)
            if cache is not None:
                cache.update(k[:, :, past:], v[:, :, past:], number)
            return o_PX

        h_PD = self.run(backbone, inputs, text, image, attend)
        h_BTD = torch.cat([h_BTD[:, :first], h_BTD[:, first:] + h_PD.unflatten(0, (B, T - first))], 1)
        return BaseModelOutputWithPast(last_hidden_state=h_BTD, **{CACHE: cache})

    def _read_start(
        self,
        backbone: nn.Module,
        x_BTD: torch.Tensor,
        is_start_BT: torch.Tensor,
        mask_B1TT: torch.Tensor,
        places_BT: torch.Tensor,
    ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """The text before the first image of each row: -> h_BTD, and keys and values of each layer [B, H, T, d], zeros
        at other positions."""
        T, longest = x_BTD.shape[1], max(1, int(is_start_BT.sum(1).max()))
        x_BTD, others_BT, places_BT = x_BTD[:, :longest], ~is_start_BT[:, :longest], places_BT[:, :longest]
        if not any(weight.requires_grad for weight in backbone.get_input_embeddings().parameters()):
            x_BTD = x_BTD.detach()  # the embeddings of codes, which train, are scattered among those of text
        angles, mask, kept = backbone.rotary_emb(x_BTD, places_BT), mask_B1TT[..., :longest, :longest], _Kept()
        others, pairs = others_BT[:, None, :, None], []
        for layer in backbone.layers:
            x_BTD = layer(x_BTD, attention_mask=mask, position_embeddings=angles, **{CACHE: kept})
            pairs.append([_padded(x.masked_fill(others, 0), T - longest) for x in kept.pair])
        return _padded(backbone.norm(x_BTD).masked_fill(others_BT[..., None], 0), T - longest), pairs

    def run(
        self, backbone: nn.Module, x_PD: torch.Tensor, text: torch.Tensor, image: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """All layers over positions in any arrangement, of which `text` and `image` are the indices: -> h_PD, zeros at
        others. `attend` knows who sees whom."""
        x_text, x_image = x_PD[text], self.enter(x_PD[image]).to(x_PD.dtype)
        for number, (layer, mine) in enumerate(zip(backbone.layers, self.layers, strict=True)):
            rows = mine.project(x_image)
            if len(text):
                rows = torch.cat([self.project_text(layer, x_text), rows])
            o_PX = attend(number, rows)
            if len(text):
                x_text = self.finish_text(layer, x_text, o_PX[text])
            x_image = mine(x_image, o_PX[image])
        h = torch.cat([backbone.norm(x_text), self.leave(self.norm(x_image)).to(x_text.dtype)])
        return h.new_zeros(len(x_PD), h.shape[-1]).index_copy(0, torch.cat([text, image]), h)

    def step(self, backbone: nn.Module, x_ED: torch.Tensor, cache: Any) -> torch.Tensor:
        """The new positions of every row, x_ED -> h_ED; `cache` is a `KeyValues`, and knows which of them are
        images'."""
        text, image = (flags.nonzero()[:, 0] for flags in (~cache.is_image_E, cache.is_image_E))
        order, angles = torch.cat([text, image]), _angles(backbone, x_ED, cache.places_E)
        mask = cache.mask()

        def attend(number: int, rows: torch.Tensor) -> torch.Tensor:
            of_rows = (x_EXd.unflatten(0, (-1, cache.width)) for x_EXd in self.attention.turned(rows, order, *angles))
            q_BNnd, k_BHnd, v_BHnd = (x_BnXd.transpose(1, 2) for x_BnXd in of_rows)
            k, v = cache.update(k_BHnd, v_BHnd, number)
            o_BNnd = attention(q_BNnd, k, v, mask, backbone.layers[number].self_attn.scaling)
            return o_BNnd.transpose(1, 2).flatten(2).flatten(0, 1)

        return self.run(backbone, x_ED, text, image, attend)


class _Kept:
    """A cache for one pass of one layer. It does not look at the layer's number, which would make the compiler write a
    graph for each."""

    def update(self, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.pair = k, v
        return k, v


def _angles(backbone: nn.Module, like: torch.Tensor, places_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [P, 1, d] by which `Attention.turned` turns; the signs are in the sines."""
    cos_P1d, sin_P1d = (angles[0, :, None] for angles in backbone.rotary_emb(like, places_P[None]))
    left, right = sin_P1d.chunk(2, -1)
    return cos_P1d, torch.cat([-left, right], -1)


def attention(
    q_BNTd: torch.Tensor, k_BHSd: torch.Tensor, v_BHSd: torch.Tensor, mask_B1TS: torch.Tensor, scale: float
) -> torch.Tensor:
    """Grouped-query attention in plain operations, which are faster than fused ones on a CPU over a few hundred
    positions: -> o_BNTd. `mask_B1TS` is added to the scores."""
    q_BHGTd = q_BNTd.unflatten(1, (k_BHSd.shape[1], -1))
    scores = (q_BHGTd.flatten(2, 3) * scale) @ k_BHSd.transpose(-1, -2)
    scores = scores.unflatten(2, q_BHGTd.shape[2:4]) + mask_B1TS[:, :, None]
    o_BHXd = scores.softmax(-1, dtype=torch.float32).to(v_BHSd.dtype).flatten(2, 3) @ v_BHSd
    return o_BHXd.unflatten(2, q_BHGTd.shape[2:4]).flatten(1, 2)


def _padded(x: torch.Tensor, columns: int) -> torch.Tensor:
    """`columns` zeros more in the dimension before the last."""
    return F.pad(x, (0, 0, 0, columns))
