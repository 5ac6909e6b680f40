"""Code embeddings in, code heads out.

Shapes: N images, L positions, K sub-codebooks, V entries each, D backbone width, P positions to predict, W head width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tokenizer.projection import AttnProjection
from tokenizer.quantizers import Quantized, make_quantizer

Pick = Callable[[torch.Tensor, int], torch.Tensor]
"""(logits_BV, k) -> ids_B of sub-code k: guidance and sampling live in here, heads never hear of them."""

# Where an embedding is given what its codes were chosen from, `quantized`, its values are the same, and its gradient
# goes on to the image tokenizer: through the shares of all entries in each choice, or through the features.


class CodeTables(nn.Module):
    """K learned tables, summed: codes_NLK -> embeds_NLD. Every position stands alone, so there is nothing to cache.

    With `hidden`, a feed-forward network of so many units follows the sum, so that the codes of a position need not
    speak one by one (the pre-buffer of LongCat-Next)."""

    reads_shares = True

    def __init__(self, image_tokenizer, dim: int, hidden: int = 0):
        super().__init__()
        self.codebook_size = image_tokenizer.codebook_size
        self.tables = nn.Embedding(image_tokenizer.num_codebooks * self.codebook_size, dim)
        self.mix = FeedForward(dim, hidden) if hidden else nn.Identity()

    def forward(
        self, codes_NLK: torch.Tensor, cache: dict | None = None, quantized: Quantized | None = None
    ) -> torch.Tensor:
        offsets = torch.arange(codes_NLK.shape[-1], device=codes_NLK.device) * self.codebook_size
        embeds_NLD = self.tables(codes_NLK + offsets).sum(-2)
        if quantized is not None:
            shares_NLJ = quantized.shares_KMV.transpose(0, 1).reshape(*codes_NLK.shape[:2], -1)  # J = K * V
            embeds_NLD = embeds_NLD + (shares_NLJ - shares_NLJ.detach()) @ self.tables.weight
        return self.mix(embeds_NLD)


class FeedForward(nn.Module):
    """x + SwiGLU(RMSNorm(x)), of `hidden` units."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(self.norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class PlacedTables(CodeTables):
    """K tables, summed, and one more of the L positions in the order of drawing: rows and columns need not be counted
    out.

    Feeding an image step by step needs a `cache` (a dict, empty at first) that knows how far it is.
    """

    def __init__(self, image_tokenizer, dim: int, hidden: int = 0):
        super().__init__(image_tokenizer, dim, hidden)
        self.places = nn.Embedding(image_tokenizer.num_positions, dim)

    def forward(
        self, codes_NLK: torch.Tensor, cache: dict | None = None, quantized: Quantized | None = None
    ) -> torch.Tensor:
        start = 0 if cache is None else cache.get("seen", 0)
        end = start + codes_NLK.shape[1]
        if cache is not None:
            cache["seen"] = end
        return super().forward(codes_NLK, quantized=quantized) + self.places.weight[start:end]


class CodebookEmbedding(nn.Module):
    """UniTok's: codebook vectors, causal attention projection, LayerNorm and MLP (arXiv 2502.20321, section 4.1).

    Position l depends on positions <= l, so feeding an image step by step needs a `cache` (a dict, empty at first).
    """

    reads_shares = False

    def __init__(self, image_tokenizer, dim: int):
        super().__init__()
        code_width, width = image_tokenizer.code_width, image_tokenizer.width
        self.quantizer = make_quantizer(image_tokenizer).requires_grad_(False)
        self.attn_projection = AttnProjection(code_width, width, width // code_width, causal=True)
        self.mm_projector = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim)
        )

    def forward(
        self, codes_NLK: torch.Tensor, cache: dict | None = None, quantized: Quantized | None = None
    ) -> torch.Tensor:
        if quantized is not None:
            return self._project(quantized.features_NLQ, None)
        if cache is None:
            return self._project(self.quantizer.look_up(codes_NLK), None)
        if not cache:  # normalising the codebooks takes longer than the rest of a step
            cache.update(entries=self.quantizer.entries(), attention={})
        features_NLQ = self.quantizer.look_up(codes_NLK, cache["entries"])
        return self._project(features_NLQ, cache["attention"])

    def _project(self, features_NLQ: torch.Tensor, cache: dict | None) -> torch.Tensor:
        features_NLQ = features_NLQ.to(self.mm_projector[1].weight.dtype)
        return self.mm_projector(self.attn_projection(features_NLQ, cache))


class DepthBlock(nn.Module):
    """A Llama layer over the K sub-codes of one position: RMSNorm, rotary attention, SwiGLU."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_PKW: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        """`rotary`: as `_rotate` takes it, [2, K, 3, 1, W / heads]."""
        qkv = self.qkv(self.norm1(x_PKW)).unflatten(-1, (3, self.heads, -1))
        q, k, v = _rotate(qkv, rotary).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._finish(x_PKW, y.transpose(1, 2).flatten(2))

    def step(self, x_PW: torch.Tensor, rotary: torch.Tensor, cache: torch.Tensor, place: int) -> torch.Tensor:
        """One sub-code, after those in `cache` [P, 2, heads, K, W / heads], which takes its key and value."""
        qkv = self.qkv(self.norm1(x_PW)).unflatten(-1, (3, self.heads, -1))
        if place:  # the first is not turned, and attends to nothing but itself
            qkv = _rotate(qkv, rotary[:, place])
        cache[:, :, :, place] = qkv[:, 1:]
        k, v = cache[..., : place + 1, :].unbind(1)
        y = F.scaled_dot_product_attention(qkv[:, 0, :, None], k, v) if place else qkv[:, 2]
        return self._finish(x_PW, y.flatten(1))

    def _finish(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x + self.out(y)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def _rotate(qkv: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """x cos + [-right, left] sin, with the sign in `rotary`: [cos, sin], which are 1 and 0 for values."""
    return torch.addcmul(qkv * rotary[0], qkv.roll(qkv.shape[-1] // 2, -1), rotary[1])


class DepthHead(nn.Module):
    """A small transformer over the K codes of one position, autoregressive in K.

    Input k is the hidden state for k = 0 and the embedding of code k-1 after that; output k predicts code k. Width and
    depth are its own, not the backbone's. `shared_output` is one output matrix for all sub-codebooks (as in UniTok).
    """

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        width: int | None = None,
        layers: int = 3,
        heads: int = 4,
        hidden: int | None = None,
        shared_output: bool = False,
        rope_theta: float = 10000.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        width = width or dim
        self.enter = nn.Linear(dim, width, bias=False) if width != dim else nn.Identity()
        self.tables = nn.ModuleList(nn.Embedding(codebook_size, width) for _ in range(num_codebooks - 1))
        self.layers = nn.ModuleList(DepthBlock(width, heads, hidden or 3 * width, eps) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=eps)
        self.outputs = nn.ModuleList(
            nn.Linear(width, codebook_size) for _ in range(1 if shared_output else num_codebooks)
        )
        self.num_codebooks, self.head_width, self.rope_theta = num_codebooks, width // heads, rope_theta

    def forward(self, h_PD: torch.Tensor, codes_PK: torch.Tensor) -> torch.Tensor:
        """Teacher forced: -> logits_PKV."""
        rows = [self.enter(h_PD)] + [table(codes_PK[:, k]) for k, table in enumerate(self.tables)]
        x = torch.stack(rows, 1)
        rotary = self._rotary(x)
        for layer in self.layers:
            x = layer(x, rotary)
        x = self.norm(x)
        return torch.stack([self._output(k)(x[:, k]) for k in range(self.num_codebooks)], 1)

    @torch.no_grad()
    def sample(self, h_BD: torch.Tensor, pick: Pick) -> torch.Tensor:
        """One sub-code after the other, each layer keeping keys and values of the earlier ones: -> codes_BK."""
        x_BW, codes = self.enter(h_BD), []
        rotary = self._rotary(x_BW)
        shape = len(x_BW), 2, self.layers[0].heads, self.num_codebooks, self.head_width
        caches = [x_BW.new_empty(shape) for _ in self.layers]
        for k in range(self.num_codebooks):
            for layer, cache in zip(self.layers, caches, strict=True):
                x_BW = layer.step(x_BW, rotary, cache, k)
            codes.append(pick(self._output(k)(self.norm(x_BW)), k))
            if k < len(self.tables):
                x_BW = self.tables[k](codes[-1].clamp(min=0))  # below 0 there is none: see `sampling.sample`
        return torch.stack(codes, 1)

    def _output(self, k: int) -> nn.Linear:
        return self.outputs[k % len(self.outputs)]

    def _rotary(self, like: torch.Tensor) -> torch.Tensor:
        """As `_rotate` takes it, [2, K, 3, 1, W / heads]."""
        half = torch.arange(0, self.head_width, 2, device=like.device).float() / self.head_width
        angles = torch.arange(self.num_codebooks, device=like.device)[:, None] / self.rope_theta**half
        cos, sin = angles.cos(), angles.sin()
        turned = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])
        kept = torch.stack([torch.ones_like(turned[0]), torch.zeros_like(turned[0])])
        return torch.stack([turned, turned, kept], 2)[..., None, :].to(like.dtype)


class ParallelHead(nn.Module):
    """K independent linear heads: fast, but the codes of a position do not know of each other."""

    def __init__(self, dim: int, num_codebooks: int, codebook_size: int):
        super().__init__()
        self.num_codebooks = num_codebooks
        self.output = nn.Linear(dim, num_codebooks * codebook_size)

    def forward(self, h_PD: torch.Tensor, codes_PK: torch.Tensor) -> torch.Tensor:
        return self.output(h_PD).unflatten(-1, (self.num_codebooks, -1))

    def sample(self, h_BD: torch.Tensor, pick: Pick) -> torch.Tensor:
        logits_BKV = self.output(h_BD).unflatten(-1, (self.num_codebooks, -1))
        return torch.stack([pick(logits_BKV[:, k], k) for k in range(self.num_codebooks)], 1)


CODE_EMBEDDINGS = {"tables": CodeTables, "placed_tables": PlacedTables, "codebook": CodebookEmbedding}
CODE_HEADS = {"depth": DepthHead, "parallel": ParallelHead}
