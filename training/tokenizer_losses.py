"""Loss terms of the image tokenizer (UniTok, arXiv 2502.20321, section 3.1).

Shapes: N images with one caption each, E channels of the shared embedding.
"""

import torch
import torch.nn.functional as F

from tokenizer.image_tokenizer import TrainingOutput

from .config import TokenizerLossConfig


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, scale: torch.Tensor, ids_NT: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020). Equal captions are equally right: a small world repeats itself."""
    logits = scale * image_features.float() @ text_features.float().T
    same = (ids_NT[:, None] == ids_NT[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def tokenizer_losses(
    output: TrainingOutput,
    pixels_N3HW: torch.Tensor,
    ids_NT: torch.Tensor,
    scale: torch.Tensor,
    weights: TokenizerLossConfig,
) -> dict[str, torch.Tensor]:
    """Each term unweighted, and `loss`, their weighted sum."""
    difference = output.pixels_N3HW.float() - pixels_N3HW[: len(output.pixels_N3HW)]
    terms = {
        "l1": difference.abs().mean(),
        "l2": difference.pow(2).mean(),
        "quantizer": output.quantized.loss,
        "entropy": output.quantized.entropy_loss,
        "contrastive": contrastive_loss(output.image_features, output.text_features, scale, ids_NT),
    }
    return {"loss": sum(getattr(weights, name) * term for name, term in terms.items()), **terms}
