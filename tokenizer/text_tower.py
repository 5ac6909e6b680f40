"""CLIP's text encoder (arXiv 2103.00020), with open_clip's parameter names.

Shapes: N texts, T token ids each (zero-padded), E channels of the shared embedding.
"""

from collections import OrderedDict

import torch
from torch import nn


class TextBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask, is_causal=True)[0]
        return x + self.mlp(self.ln_2(x))


class TextTower(nn.Module):
    """ids_NT -> features [N, E], read at the highest id of each row (the end-of-text id, by CLIP's convention)."""

    def __init__(self, vocab_size: int, context: int, width: int, layers: int, heads: int, embed_dim: int):
        super().__init__()
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(TextBlock(width, heads) for _ in range(layers))})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.text_projection.shape[0] ** -0.5)

    def forward(self, ids_NT: torch.Tensor) -> torch.Tensor:
        T = ids_NT.shape[1]
        if self.context < T:
            raise ValueError(f"text of {T} ids, the text tower takes {self.context}")
        x = self.token_embedding(ids_NT) + self.positional_embedding[:T]
        mask = torch.full((T, T), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        x = self.ln_final(x)
        end = x[torch.arange(len(x), device=x.device), ids_NT.argmax(-1)]
        return end @ self.text_projection
