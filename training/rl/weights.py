"""How much each code of a drawing counts in an update. A new way is a function here and a line in `WEIGHTS`.

Shapes: G groups, n drawings each, N = G * n, L positions an image, K sub-codebooks, Q channels of a position.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tokenizer import ImageTokenizer


def by_similarity(
    codes_NLK: torch.Tensor, entropies_NLK: torch.Tensor, n: int, image_tokenizer: ImageTokenizer
) -> torch.Tensor:
    """What the drawings of a group share is not what makes one better, and its gradients contradict each other: a
    position counts less, the more similar it is (cosine of quantized features) in the group's others. After STAGE
    (arXiv 2509.25027)."""
    with torch.no_grad():
        features_NLQ = image_tokenizer.quantizer.decode(codes_NLK.to(image_tokenizer.device))
    unit_GnLQ = F.normalize(features_NLQ, dim=-1).unflatten(0, (-1, n))
    among_others_GnL = ((unit_GnLQ * unit_GnLQ.sum(1, keepdim=True)).sum(-1) - 1) / (n - 1)
    weights_NL = (1 - among_others_GnL).clamp(min=0).flatten(0, 1).to(codes_NLK.device)
    return weights_NL[..., None].expand(codes_NLK.shape)


def by_entropy(
    codes_NLK: torch.Tensor, entropies_NLK: torch.Tensor, n: int, image_tokenizer: ImageTokenizer
) -> torch.Tensor:
    """A code counts as much as there was to choose: by the entropy of its distribution (after arXiv 2506.01939)."""
    return entropies_NLK


WEIGHTS: dict[str, Callable[[torch.Tensor, torch.Tensor, int, ImageTokenizer], torch.Tensor]] = {
    "similarity": by_similarity,
    "entropy": by_entropy,
}
"""(codes, entropies of their distributions, drawings of a prompt, image tokenizer) -> weights_NLK from 0. Weights of
several ways are multiplied, and scaled to a mean of 1 in each drawing."""


def code_weights(
    names: list[str], codes_NLK: torch.Tensor, entropies_NLK: torch.Tensor, n: int, image_tokenizer: ImageTokenizer
) -> torch.Tensor:
    """weights_NLK by these keys of `WEIGHTS`; 1 without any."""
    weights_NLK = torch.ones_like(entropies_NLK)
    for name in names:
        weights_NLK = weights_NLK * WEIGHTS[name](codes_NLK, entropies_NLK, n, image_tokenizer)
    means_N = weights_NLK.mean((1, 2), keepdim=True)
    return torch.where(means_N > 0, weights_NLK / means_N.clamp(min=1e-12), 1.0)
