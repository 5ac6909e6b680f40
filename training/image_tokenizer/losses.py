"""Loss terms of the image tokenizer (UniTok, arXiv 2502.20321, section 3.1).

Shapes: N images with one caption each, E channels of the shared embedding.
"""

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
    cosine_MKK = x_MKq @ x_MKq.mT
    pairs = cosine_MKK.new_ones(num_codebooks, num_codebooks).triu(1).bool()
    return cosine_MKK[:, pairs].pow(2).mean()


def perceptual_network(weights: ReconstructionConfig) -> PerceptualLoss | None:
    """What the perceptual and the Gram loss compare features of. Raises ValueError for a file that is not LPIPS."""
    if not weights.perceptual and not weights.gram:
        return None
    return LPIPS(weights.lpips) if weights.lpips else EfficientNetLoss()


def reconstruction_losses(
    decoded_N3HW: torch.Tensor, target_N3HW: torch.Tensor, weights: ReconstructionConfig, network: PerceptualLoss | None
) -> dict[str, torch.Tensor]:
    """The terms that compare pixels, and `reconstruction`, their weighted sum."""
    difference = decoded_N3HW.float() - target_N3HW
    terms = {"l1": difference.abs().mean(), "l2": difference.pow(2).mean()}
    if network:
        features, target = network.features(decoded_N3HW), _without_gradient(network, target_N3HW)
        if weights.perceptual:
            terms["perceptual"] = network.distance(features, target)
        if weights.gram:
            terms["gram"] = gram_loss(features, target)
    return {"reconstruction": _weighted(terms, weights), **terms}


def tokenizer_losses(
    output: TrainingOutput,
    pixels_N3HW: torch.Tensor,
    ids_NT: torch.Tensor,
    scale: torch.Tensor,
    weights: TokenizerLossConfig,
    network: PerceptualLoss | None = None,
) -> dict[str, torch.Tensor]:
    """Each term unweighted, `reconstruction`, and `loss`, the weighted sum of all. Captions of all ranks meet in the
    contrastive term, which is therefore the same on all of them."""
    decoded_N3HW = output.pixels_N3HW
    pixels = reconstruction_losses(decoded_N3HW, pixels_N3HW[: len(decoded_N3HW)], weights, network)
    terms = {"quantizer": output.quantized.loss, "entropy": output.quantized.entropy_loss}
    if weights.disentangle:
        num_codebooks = output.quantized.codes_NLK.shape[-1]
        terms["disentangle"] = disentangling_loss(output.quantized.features_NLQ, num_codebooks)
    if weights.contrastive:
        image, text, ids = map(gather_features, (output.image_features, output.text_features, ids_NT))
        terms["contrastive"] = contrastive_loss(image, text, scale, ids)
    return {"loss": pixels["reconstruction"] + _weighted(terms, weights), **pixels, **terms}


def _weighted(terms: dict[str, torch.Tensor], weights: ReconstructionConfig) -> torch.Tensor:
    return sum(getattr(weights, name) * term for name, term in terms.items())


def _without_gradient(network: PerceptualLoss, pixels_N3HW: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return network.features(pixels_N3HW)
