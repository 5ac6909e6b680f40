"""How images that are read enter the backbone: what is read at each position, and at how many. Images to draw are codes
at all of their positions, whatever is chosen here. A new input or way to shorten is one entry of a dict.

Shapes: N images, L positions an image, n of them kept, Q channels before the quantizer, D backbone width.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tokenizer import ImageTokenizerConfig
from tokenizer.layouts import layout_kind

from .device import send


class Codes(nn.Module):
    """The embeddings of codes, as of images to draw."""

    reads_features = False

    def __init__(self, image_tokenizer: ImageTokenizerConfig, dim: int):
        super().__init__()

    def forward(self, embeds_NLD: torch.Tensor, features_NLQ: torch.Tensor | None) -> torch.Tensor:
        return embeds_NLD


class Features(nn.Module):
    """The features that the quantizer would round, by a small MLP, in place of codes (ILLUME+, arXiv 2504.01934)."""

    reads_features = True

    def __init__(self, image_tokenizer: ImageTokenizerConfig, dim: int):
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(image_tokenizer.code_width, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, embeds_NLD: torch.Tensor, features_NLQ: torch.Tensor) -> torch.Tensor:
        return self.projector(features_NLQ.to(self.projector[0].weight.dtype))


class Sum(Features):
    """Codes and projected features, added at each position. UniToken (arXiv 2504.04423) puts one after the other, which
    doubles the sequence. The features' gate begins at 0, so a model that has learned codes goes on reading them."""

    def __init__(self, image_tokenizer: ImageTokenizerConfig, dim: int):
        super().__init__(image_tokenizer, dim)
        self.gate_D = nn.Parameter(torch.zeros(dim))

    def forward(self, embeds_NLD: torch.Tensor, features_NLQ: torch.Tensor) -> torch.Tensor:
        return embeds_NLD + self.gate_D * super().forward(embeds_NLD, features_NLQ)


def pool(embeds_NLD: torch.Tensor, n: int) -> torch.Tensor:
    """A square grid of L positions -> one of n, by adaptive average pooling. The model must have been trained so
    (Matryoshka multimodal models, arXiv 2405.17430; TokenFLEX, arXiv 2504.03154)."""
    grid_NDXY = embeds_NLD.transpose(1, 2).unflatten(2, (math.isqrt(embeds_NLD.shape[1]), -1))
    return F.adaptive_avg_pool2d(grid_NDXY, math.isqrt(n)).flatten(2).transpose(1, 2)


def divprune(embeds_NLD: torch.Tensor, n: int) -> torch.Tensor:
    """The n positions whose two nearest are as far apart as possible by cosine, in their order: greedily, from the
    farthest pair on. It needs no training (DivPrune, arXiv 2503.02175)."""
    units_NLD = F.normalize(embeds_NLD.detach().float(), dim=-1)
    distances_NLL = 1 - units_NLD @ units_NLD.mT
    L = embeds_NLD.shape[1]
    farthest_N = distances_NLL.flatten(1).argmax(1)
    chosen = [farthest_N // L, farthest_N % L][:n]
    nearest_NL = torch.full_like(distances_NLL[:, 0], math.inf)  # the distance to the nearest that was chosen
    for count in range(n):
        if count == len(chosen):
            chosen.append(nearest_NL.argmax(1))
        at_N1D = chosen[count][:, None, None].expand(-1, 1, L)
        nearest_NL = nearest_NL.minimum(distances_NLL.gather(1, at_N1D)[:, 0])
        nearest_NL = nearest_NL.scatter(1, chosen[count][:, None], -math.inf)
    kept_Nn = torch.stack(chosen, 1).sort(1).values
    return embeds_NLD.gather(1, kept_Nn[..., None].expand(-1, -1, embeds_NLD.shape[2]))


IMAGE_INPUTS = {"codes": Codes, "features": Features, "sum": Sum}
SHORTENINGS = {"pool": pool, "divprune": divprune}


def check_lengths(lengths: Sequence[int], sizes: ImageTokenizerConfig) -> None:
    """Raises ValueError for `image_lengths` that pooling cannot make of an image, and without that of a whole one."""
    L, whole = sizes.num_positions, [math.isqrt(max(n, 0)) ** 2 == n for n in lengths]
    if lengths and not layout_kind(sizes.layout).on_grid:
        raise ValueError(f"image_lengths: layout {sizes.layout!r} has no grid to pool: leave them out")
    if lengths and (L not in lengths or not all(whole) or min(lengths) < 1 or max(lengths) > L):
        raise ValueError(f"image_lengths {list(lengths)}: give squares from 1 to {L}, and {L} itself")


def shortened(
    embeds_NLD: torch.Tensor, lengths: Sequence[int], way: str, trained: Sequence[int], by_place: Callable
) -> torch.Tensor:
    """The embeddings of all images, one after the other, those of fewer than L positions in the `way` of a key of
    `SHORTENINGS`. `by_place` puts the positions of images row by row. Raises ValueError for pooling to a length that is
    not `trained`, and for an unknown way."""
    rows, L = list(embeds_NLD), embeds_NLD.shape[1]
    if way not in SHORTENINGS:
        raise ValueError(f"unknown image_shortening {way!r}; known: {', '.join(SHORTENINGS)}")
    for n in sorted(set(lengths) - {L}):
        if way == "pool" and n not in trained:
            known = f"lengths {', '.join(map(str, trained))}" if trained else f"all {L} positions only"
            raise ValueError(
                f"images of {n} positions, but this model learned to read {known}: set processor.image_length, or "
                "model.config.image_shortening to 'divprune', which needs no training"
            )
        at = [place for place, length in enumerate(lengths) if length == n]
        of_length = embeds_NLD.index_select(0, send(torch.tensor(at), embeds_NLD.device))
        for place, row in zip(at, SHORTENINGS[way](by_place(of_length), n), strict=True):
            rows[place] = row
    return torch.cat(rows)
