"""Loss terms of the image tokenizer (UniTok, arXiv 2502.20321, section 3.1): a new one is a function, a line in one of
the two dicts below, and its weight in the recipe (training/run/recipe.py), under the same name.

Shapes: N images with one caption each, E channels of the shared embedding.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tokenizer.image_tokenizer import TrainingOutput
from tokenizer.perceptual import LPIPS, EfficientNetLoss, PerceptualLoss, gram_loss

from ..run.distributed import gather_features
from ..run.recipe import ReconstructionConfig, TokenizerLossConfig


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, scale: torch.Tensor, ids_NT: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020). Equal captions are equally right: a small world repeats itself."""
    logits = scale * image_features.float() @ text_features.float().T
    same = (ids_NT[:, None] == ids_NT[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def disentangling_loss(features_NLQ: torch.Tensor, num_codebooks: int) -> torch.Tensor:
    """Mean squared cosine between the slices of a position (FQGAN, arXiv 2411.16681): 0 where every pair of
    sub-codebooks points elsewhere."""
    if num_codebooks == 1:
        return features_NLQ.new_zeros(())
    x_MKq = F.normalize(features_NLQ.float().flatten(0, 1).unflatten(-1, (num_codebooks, -1)), dim=-1)
    rows, columns = torch.triu_indices(num_codebooks, num_codebooks, 1, device=x_MKq.device)
    return (x_MKq @ x_MKq.mT)[:, rows, columns].pow(2).mean()


def perceptual_network(weights: ReconstructionConfig) -> PerceptualLoss | None:
    """What the perceptual and the Gram loss compare features of. Raises ValueError for a file that is not LPIPS."""
    if not weights.perceptual and not weights.gram:
        return None
    return LPIPS(weights.lpips) if weights.lpips else EfficientNetLoss()


class Pair:
    """Images before and after; what several terms need of them is computed once."""

    def __init__(self, decoded_N3HW: torch.Tensor, target_N3HW: torch.Tensor, network: PerceptualLoss | None):
        self.decoded_N3HW, self.target_N3HW, self.network = decoded_N3HW, target_N3HW, network

    @cached_property
    def difference(self) -> torch.Tensor:
        return self.decoded_N3HW.float() - self.target_N3HW

    @cached_property
    def features(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of the decoded ones, and of the target without gradient."""
        with torch.no_grad():
            target = self.network.features(self.target_N3HW)
        return self.network.features(self.decoded_N3HW), target


class Trained(NamedTuple):
    """What a training pass gave, the ids of the captions, and the temperature of the contrastive loss (its inverse)."""

    output: TrainingOutput
    ids_NT: torch.Tensor
    scale: torch.Tensor


def _entropy(trained: Trained) -> torch.Tensor:
    entropy_loss = trained.output.quantized.entropy_loss
    if entropy_loss is None:
        raise ValueError("recipe, losses.entropy: this kind of quantizer has no entropy loss")
    return entropy_loss


def _disentangle(trained: Trained) -> torch.Tensor:
    quantized = trained.output.quantized
    return disentangling_loss(quantized.features_NLQ, quantized.codes_NLK.shape[-1])


def _contrastive(trained: Trained) -> torch.Tensor:
    """Captions of all ranks meet, so that it is the same on all of them."""
    output = trained.output
    image, text, ids = map(gather_features, (output.image_features, output.text_features, trained.ids_NT))
    return contrastive_loss(image, text, trained.scale, ids)


RECONSTRUCTION_LOSSES: dict[str, Callable[[Pair], torch.Tensor]] = {
    "l1": lambda pair: pair.difference.abs().mean(),
    "l2": lambda pair: pair.difference.pow(2).mean(),
    "perceptual": lambda pair: pair.network.distance(*pair.features),
    "gram": lambda pair: gram_loss(*pair.features),
}
LOSSES: dict[str, Callable[[Trained], torch.Tensor]] = {
    "quantizer": lambda trained: trained.output.quantized.loss,
    "entropy": _entropy,
    "disentangle": _disentangle,
    "contrastive": _contrastive,
}
ALWAYS = ("l1", "l2", "quantizer")  # cost nothing, and are worth a look at weight 0, too


def reconstruction_losses(
    decoded_N3HW: torch.Tensor, target_N3HW: torch.Tensor, weights: ReconstructionConfig, network: PerceptualLoss | None
) -> dict[str, torch.Tensor]:
    """The terms that compare pixels, and `reconstruction`, their weighted sum. `network` is that of the weights."""
    total, terms = _weighted(RECONSTRUCTION_LOSSES, Pair(decoded_N3HW, target_N3HW, network), weights)
    return {"reconstruction": total, **terms}


def tokenizer_losses(
    output: TrainingOutput,
    pixels_N3HW: torch.Tensor,
    ids_NT: torch.Tensor,
    scale: torch.Tensor,
    weights: TokenizerLossConfig,
    network: PerceptualLoss | None = None,
) -> dict[str, torch.Tensor]:
    """Each term that has a weight, unweighted; `reconstruction`; and `loss`, the weighted sum of all."""
    decoded_N3HW = output.pixels_N3HW
    pixels = reconstruction_losses(decoded_N3HW, pixels_N3HW[: len(decoded_N3HW)], weights, network)
    total, terms = _weighted(LOSSES, Trained(output, ids_NT, scale), weights)
    return {"loss": pixels["reconstruction"] + total, **pixels, **terms}


def _weighted(
    losses: Mapping[str, Callable[[Any], torch.Tensor]], given: Any, weights: ReconstructionConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-> the weighted sum, and the terms."""
    names = [name for name in losses if getattr(weights, name) or name in ALWAYS]
    terms = {name: losses[name](given) for name in names}
    return sum(getattr(weights, name) * term for name, term in terms.items()), terms
