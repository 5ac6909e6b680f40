"""UniTok's attention projection between encoder width and code width (arXiv 2502.20321, section 3.3).

Shapes: N sequences, L positions, I input channels, O output channels, h heads.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import GeGlu


class ProjectionAttention(nn.Module):
    """Attention at the larger of the two widths; narrowing averages the heads, widening joins them."""

    def __init__(self, in_channels: int, out_channels: int, heads: int):
        super().__init__()
        inner = max(in_channels, out_channels)
        self.heads, self.narrowing = heads, in_channels > out_channels
        if self.narrowing and inner // heads != out_channels:
            raise ValueError(
                f"projection {in_channels} -> {out_channels} needs {inner // out_channels} heads, not {heads}"
            )
        if inner % heads:
            raise ValueError(
                f"projection attn, {in_channels} -> {out_channels}: {inner} channels do not make {heads} heads; "
                "choose projection linear or another code_width"
            )
        self.qkv = nn.Linear(in_channels, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(out_channels, out_channels)

    def forward(self, x_NLI: torch.Tensor, causal: bool, cache: dict | None = None) -> torch.Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_NLI, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, h, L, inner / h]
        if cache is not None:
            k, v = _append(cache, k, v)
        # One new position may look at all cached ones: only a whole sequence needs the mask.
        o = F.scaled_dot_product_attention(q, k, v, is_causal=causal and q.shape[2] > 1)
        o = o.mean(1) if self.narrowing else o.transpose(1, 2).flatten(2)
        return self.proj(o)


def _append(cache: dict, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if cache:
        if k.shape[2] != 1:
            raise ValueError(f"a filled cache takes one position at a time, not {k.shape[2]}")
        k, v = torch.cat([cache["k"], k], 2), torch.cat([cache["v"], v], 2)
    cache.update(k=k, v=v)
    return k, v


class AttnProjection(nn.Module):
    """[N, L, I] -> [N, L, O]: a linear path plus attention, then a GeGLU residual.

    With `causal`, position l sees positions <= l, and `cache` (a dict, empty at first) takes positions one by one.
    """

    def __init__(self, in_channels: int, out_channels: int, heads: int, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.norm1 = nn.LayerNorm(in_channels)
        self.attn = ProjectionAttention(in_channels, out_channels, heads)
        self.proj = nn.Linear(in_channels, out_channels)
        self.norm3 = nn.LayerNorm(in_channels)
        self.norm2 = nn.LayerNorm(out_channels)
        self.mlp = GeGlu(out_channels, 2 * out_channels)

    def forward(self, x_NLI: torch.Tensor, cache: dict | None = None) -> torch.Tensor:
        if cache is not None and not self.causal:
            raise ValueError("a cache needs a causal projection")
        y = self.proj(self.norm3(x_NLI)) + self.attn(self.norm1(x_NLI), self.causal, cache)
        return y + self.mlp(self.norm2(y))


class LinearProjection(nn.Linear):
    """The plain alternative, with the same call."""

    def __init__(self, in_channels: int, out_channels: int, heads: int, causal: bool = False):
        super().__init__(in_channels, out_channels)


PROJECTIONS = {"attn": AttnProjection, "linear": LinearProjection}
