"""Loss terms of the image tokenizer (UniTok, arXiv 2502.20321, section 3.1): a new one is a function, a line in one of
the two dicts below, and its weight in the recipe (training/run/recipe.py), under the same name.

Shapes: N images with one caption each, E channels of the shared embedding.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tokenizer.blocks import VitEncoder
from tokenizer.image_tokenizer import TrainingOutput
from tokenizer.perceptual import LPIPS, EfficientNetLoss, PerceptualLoss, gram_loss

from ..run.distributed import gather_features
from ..run.recipe import ReconstructionConfig, TokenizerLossConfig

LAYERS_SCALE = 1.0  # how much more the layers count that have moved farther; this number is ours


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
    """What several losses compare features of. Raises ValueError for a file that is not LPIPS."""
    if not any(getattr(weights, name, 0) for name in ("perceptual", "gram", "teacher", "relations")):
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
    def target_features(self) -> list[torch.Tensor]:
        """Without gradient."""
        with torch.no_grad():
            return self.network.features(self.target_N3HW)

    @cached_property
    def features(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of the decoded ones, and of the target."""
        return self.network.features(self.decoded_N3HW), self.target_features


class Trained(NamedTuple):
    """What a training pass gave, the ids of the captions, the temperature of the contrastive loss (its inverse), the
    images that were decoded, and what each layer of the encoder gave before training."""

    output: TrainingOutput
    ids_NT: torch.Tensor
    scale: torch.Tensor
    pair: Pair
    start: list[torch.Tensor]

    def teacher_NLT(self) -> torch.Tensor:
        """Unit-length features of the frozen network's stage that has as many places as the decoder reads."""
        L = self.output.places_NLC.shape[1]
        return next(x.flatten(2).mT for x in self.pair.target_features if x.shape[2] * x.shape[3] == L)


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


def _teacher(trained: Trained) -> torch.Tensor:
    """1 - cosine, as in VQ-KD (BEiT v2, arXiv 2208.06366)."""
    told_NLT, teacher_NLT = trained.output.teacher_NLT, trained.teacher_NLT()
    width = 0 if told_NLT is None else told_NLT.shape[-1]
    if width != teacher_NLT.shape[-1]:
        raise ValueError(
            f"recipe, losses.teacher: the teacher has {teacher_NLT.shape[-1]} channels, model.teacher_width is {width}"
        )
    return 1 - (F.normalize(told_NLT.float(), dim=-1) * teacher_NLT).sum(-1).mean()


def _relations(trained: Trained) -> torch.Tensor:
    """Mean squared difference of the cosines between all places of an image (as in Hybrid Distillation, arXiv
    2306.15876, whose relations are those of attention)."""
    x_NLC, teacher_NLT = F.normalize(trained.output.places_NLC.float(), dim=-1), trained.teacher_NLT()
    with torch.autocast(x_NLC.device.type, enabled=False):
        return (x_NLC @ x_NLC.mT - teacher_NLT @ teacher_NLT.mT).square().mean()


def _layers(trained: Trained) -> torch.Tensor:
    """How far each layer of the encoder has gone from where it was, 1 - cosine, as a weighted mean: deeper layers count
    more, and those that have gone farther (UniFlow, arXiv 2510.10575, layer-wise adaptive self-distillation)."""
    pairs = zip(trained.output.layers, trained.start, strict=True)
    apart = torch.stack([1 - F.cosine_similarity(now.float(), then.float(), dim=-1).mean() for now, then in pairs])
    depth = torch.arange(1, len(apart) + 1, device=apart.device)
    return ((depth.log() + LAYERS_SCALE * apart.detach()).softmax(0) * apart).sum()


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
    "teacher": _teacher,
    "relations": _relations,
    "layers": _layers,
}
ALWAYS = ("l1", "l2", "quantizer")  # cost nothing, and are worth a look at weight 0, too


def reconstruction_losses(
    decoded_N3HW: torch.Tensor, target_N3HW: torch.Tensor, weights: ReconstructionConfig, network: PerceptualLoss | None
) -> dict[str, torch.Tensor]:
    """The terms that compare pixels, and `reconstruction`, their weighted sum. `network` is that of the weights."""
    return _reconstruction(Pair(decoded_N3HW, target_N3HW, network), weights)


def _reconstruction(pair: Pair, weights: ReconstructionConfig) -> dict[str, torch.Tensor]:
    total, terms = _weighted(RECONSTRUCTION_LOSSES, pair, weights)
    return {"reconstruction": total, **terms}


def tokenizer_losses(
    output: TrainingOutput,
    pixels_N3HW: torch.Tensor,
    ids_NT: torch.Tensor,
    scale: torch.Tensor,
    weights: TokenizerLossConfig,
    network: PerceptualLoss | None = None,
    start: VitEncoder | None = None,
) -> dict[str, torch.Tensor]:
    """Each term that has a weight, unweighted; `reconstruction`; and `loss`, the weighted sum of all. `start` is the
    encoder before training, for `layers`."""
    decoded_N3HW = output.pixels_N3HW
    pair = Pair(decoded_N3HW, pixels_N3HW[: len(decoded_N3HW)], network)
    pixels = _reconstruction(pair, weights)
    with torch.no_grad():
        before = start.layers(pixels_N3HW) if start else []
    total, terms = _weighted(LOSSES, Trained(output, ids_NT, scale, pair, before), weights)
    return {"loss": pixels["reconstruction"] + total, **pixels, **terms}


def _weighted(
    losses: Mapping[str, Callable[[Any], torch.Tensor]], given: Any, weights: ReconstructionConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-> the weighted sum, and the terms."""
    names = [name for name in losses if getattr(weights, name) or name in ALWAYS]
    terms = {name: losses[name](given) for name in names}
    return sum(getattr(weights, name) * term for name, term in terms.items()), terms
